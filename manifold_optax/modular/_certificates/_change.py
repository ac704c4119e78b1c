"""The change of an output under a finite step, from its rate all along the step.

The output of `params + t · updates` moves at a rate that is a formula of norms: of the
step, and of the weights at time t. A norm of weights is convex along the step, so it is
at most what lies on the line between its values at both ends. The change is at most
the integral of the formula over t from 0 to 1. For a chain of layers that is
`∏(σ + δ) − ∏ σ` where all norms grow by those of their steps.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float32

from manifold_optax.modular._bounds._number import Size
from manifold_optax.modular._certificates._evaluate import (
    EPS,
    Evaluation,
    numbers_of,
)

_PIECES = 32
"""Into so many the step is cut. The trapezoidal rule is high by 1/12 · 1/32² of how
much the slope of the rate grows over the step, a sum of largest values by 1/32 of how
much the rate changes at most."""

_ROUNDING = 64 * EPS
"""Allowance for a sum of that many numbers, and for the lines between norms."""


def change_along(
    rate: Size,
    steps: Mapping[Any, Array],
    ends: Mapping[Any, tuple[Array, Array]],
    arrays: Sequence[Array],
) -> Float32[Array, ""]:
    """An upper bound of the integral of a rate.

    It is the smaller of two. If norms that shrink are held, all are convex and grow,
    hence so do their sums and products, and the trapezoidal rule is above the integral.
    And whatever grows with the norms is at most what it is for the larger norms of the
    ends of a piece.

    Args:
        rate: a formula of norms.
        steps: name → norm of a step.
        ends: name → norms of a weight, before and after.
        arrays: all weights that matter, which must be finite.
    """
    time = jnp.linspace(0.0, 1.0, _PIECES + 1)
    norms = dict(steps)
    for name, (before, after) in ends.items():
        line = (1 - time) * before + time * after
        pieces, held = jnp.maximum(line[:-1], line[1:]), jnp.maximum(line, before)
        norms[name] = jnp.concatenate([pieces, held])
    evaluation = Evaluation(lambda names: [norms[name] for name in names], arrays)
    rates = jnp.broadcast_to(evaluation.value(rate), (2 * _PIECES + 1,))
    pieces, held = rates[:_PIECES], rates[_PIECES:]
    result = jnp.mean(pieces)
    if not any(number.kind == "steps" for number in numbers_of(rate)):
        trapezoids = jnp.mean((held[:-1] + held[1:]) / 2)
        result = jnp.minimum(result, trapezoids)
    return result * (1 + _ROUNDING)


def rate_before(
    rate: Size,
    steps: Mapping[Any, Array],
    ends: Mapping[Any, tuple[Array, Array]],
    arrays: Sequence[Array],
) -> Float32[Array, ""]:
    """The rate at the start: the change to first order."""
    known = {**steps, **{name: before for name, (before, _) in ends.items()}}
    evaluation = Evaluation(lambda names: [known[name] for name in names], arrays)
    return evaluation.value(rate)


def symbols_of(size: Size) -> list[Any]:
    """The names of all symbols of a formula."""
    return [number.data for number in numbers_of(size) if number.kind == "symbol"]
