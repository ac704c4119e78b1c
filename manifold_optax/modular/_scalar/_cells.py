"""Cells of arguments, and what is known of a function on each of them."""

import dataclasses
from typing import TypeAlias

import numpy as np

from manifold_optax.modular._scalar._scaled import FloatArray, Scaled

BoolArray: TypeAlias = np.ndarray

NEGATIVE, ZERO, POSITIVE = 1, 2, 4
ANY = NEGATIVE | ZERO | POSITIVE
"""Signs that a switch may have on a cell, as bits."""


@dataclasses.dataclass(frozen=True)
class Cells:
    """Intervals of arguments lo ≤ x ≤ hi, none with 0 inside.

    Args:
        lo: left ends.
        hi: right ends.
        signs: assumed signs of each switch (rows) in each cell, as bits; `ANY` assumes
            nothing. A cell with assumptions stands for its points where they hold.
    """

    lo: FloatArray
    hi: FloatArray
    signs: np.ndarray


@dataclasses.dataclass(frozen=True)
class Enclosure:
    """What is known of one result on each cell.

    Args:
        value: bounds of the value.
        slope: bounds of the derivative, almost everywhere.
        broken: where the result may jump or be undefined; the slope says nothing there.
    """

    value: Scaled
    slope: Scaled
    broken: BoolArray


@dataclasses.dataclass(frozen=True)
class Truth:
    """Whether a condition may hold, and whether it may fail, on each cell."""

    holds: BoolArray
    fails: BoolArray


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Bounds of an expression on cells.

    Args:
        value: lower and upper bounds of f(x).
        slope: lower and upper bounds of f'(x).
        quotient: lower and upper bounds of f(x) / |x|.
        broken: where f may jump or be undefined.
        signs: the signs that each switch (rows) may have, as bits; 0 on a cell without
            points that meet its assumptions.
        moving: where the derivative of each switch is not 0, so its zeros are isolated.
    """

    value: tuple[FloatArray, FloatArray]
    slope: tuple[FloatArray, FloatArray]
    quotient: tuple[FloatArray, FloatArray]
    broken: BoolArray
    signs: np.ndarray
    moving: BoolArray
