"""Ranges of smooth functions and of their derivatives on intervals."""

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from manifold_optax.modular._scalar._scaled import FloatArray, LEAST

_Map: TypeAlias = Callable[[FloatArray], FloatArray]
Interval: TypeAlias = tuple[FloatArray, FloatArray]

_erf = np.frompyfunc(math.erf, 1, 1)
_erfc = np.frompyfunc(math.erfc, 1, 1)


def erf(x: FloatArray) -> FloatArray:
    """The error function, by the C library."""
    return np.asarray(_erf(x), np.float64)


def erfc(x: FloatArray) -> FloatArray:
    """1 - erf(x), by the C library, without cancellation."""
    return np.asarray(_erfc(x), np.float64)


def logistic(x: FloatArray) -> FloatArray:
    """1 / (1 + exp(-x)), by the exponential of -|x|."""
    small = np.exp(-np.abs(x))
    return np.where(x < 0, small, 1.0) / (1.0 + small)


def logistic_slope(x: FloatArray) -> FloatArray:
    """The derivative of `logistic`, which decays like exp(-|x|)."""
    small = np.exp(-np.abs(x))
    return small / (1.0 + small) ** 2


def increasing(f: _Map) -> Callable[[FloatArray, FloatArray], Interval]:
    """The range of an increasing function: its values at the ends."""
    return lambda lo, hi: (f(lo), f(hi))


def bell(f: _Map) -> Callable[[FloatArray, FloatArray], Interval]:
    """The range of an even function that decreases in |x|."""

    def range_of(lo: FloatArray, hi: FloatArray) -> Interval:
        near = np.maximum(np.maximum(lo, -hi), 0.0)
        return f(np.maximum(np.abs(lo), np.abs(hi))), np.maximum(f(near), LEAST)

    return range_of


def valley(f: _Map) -> Callable[[FloatArray, FloatArray], Interval]:
    """The range of an even function that increases in |x|."""
    return lambda lo, hi: (
        f(np.maximum(np.maximum(lo, -hi), 0.0)),
        f(np.maximum(np.abs(lo), np.abs(hi))),
    )


def wave(f: _Map, phase: float) -> Callable[[FloatArray, FloatArray], Interval]:
    """The range of f(x) = cos(x - phase): f at the ends, and ±1 at extrema between."""

    def passes(lo: FloatArray, hi: FloatArray, at: float) -> FloatArray:
        turns = (lo - at) / (2 * np.pi), (hi - at) / (2 * np.pi)
        return np.floor(turns[1] + _TURN) >= np.ceil(turns[0] - _TURN)

    def range_of(lo: FloatArray, hi: FloatArray) -> Interval:
        far = np.maximum(np.abs(lo), np.abs(hi)) > _FAR
        lo, hi = np.where(far, 0.0, lo), np.where(far, 7.0, hi)
        ends = f(lo), f(hi)
        low = np.where(passes(lo, hi, phase + np.pi), -1.0, np.minimum(*ends))
        return low, np.where(passes(lo, hi, phase), 1.0, np.maximum(*ends))

    return range_of


_FAR = 1e6
"""Beyond it a wave is only known to be in [-1, 1]; here turns are exact to 4e-11."""

_TURN = 1e-9
"""An extremum this close to an end of the interval counts as inside (in turns)."""


def _decay(f: _Map) -> Callable[[FloatArray, FloatArray], Interval]:
    """The range of an increasing function ≥ 0 that may underflow."""
    return lambda lo, hi: (f(lo), np.maximum(f(hi), LEAST))


def _gaussian(x: FloatArray) -> FloatArray:
    return 2 / math.sqrt(math.pi) * np.exp(-x * x)


def _negative(lo: FloatArray, hi: FloatArray) -> Interval:
    low, high = bell(_gaussian)(lo, hi)
    return -high, -low


def _minus_sin(lo: FloatArray, hi: FloatArray) -> Interval:
    low, high = wave(np.sin, np.pi / 2)(lo, hi)
    return -high, -low


RANGES: dict[str, tuple[Callable[[FloatArray, FloatArray], Interval], ...]] = {
    # name: range of the function, range of its derivative
    "exp": (_decay(np.exp), _decay(np.exp)),
    "expm1": (increasing(np.expm1), _decay(np.exp)),
    # tanh' = 1 - tanh² = 4 σ'(2x), even, decreasing in |x|
    "tanh": (increasing(np.tanh), bell(lambda x: 4.0 * logistic_slope(2.0 * x))),
    "logistic": (_decay(logistic), bell(logistic_slope)),
    # log(1 + exp(x)), whose derivative is the logistic function
    "softplus": (_decay(lambda x: np.logaddexp(x, 0.0)), _decay(logistic)),
    "erf": (increasing(erf), bell(_gaussian)),
    "erfc": (lambda lo, hi: (erfc(hi), np.maximum(erfc(lo), LEAST)), _negative),
    "sin": (wave(np.sin, np.pi / 2), wave(np.cos, 0.0)),
    "cos": (wave(np.cos, 0.0), _minus_sin),
    "sinh": (increasing(np.sinh), valley(np.cosh)),
    "cosh": (valley(np.cosh), increasing(np.sinh)),
    "atan": (increasing(np.arctan), bell(lambda x: 1.0 / (1.0 + x * x))),
    "asinh": (increasing(np.arcsinh), bell(lambda x: 1.0 / np.hypot(1.0, x))),
}
"""Smooth functions of the whole line: monotone, or even and monotone in |x|, so that
their ranges are those of their ends and of the point nearest to 0."""

STEPS: dict[str, tuple[_Map, _Map]] = {
    "floor": (np.floor, np.floor),
    "ceil": (np.ceil, np.ceil),
    # Halves may be rounded either way.
    "round": (lambda x: np.ceil(x - 0.5), lambda x: np.floor(x + 0.5)),
}
"""Nondecreasing step functions: a lower and an upper bound of each."""
