"""Sets of inputs that attacks stay in, and the geometry of stacks of points.

The first axis counts the points; everything else is one point.
"""

import dataclasses
from typing import TypeAlias

import jax.numpy as jnp
from jaxtyping import Array

# Rounding must not carry a point out of the ball: the norm of 3,072 float32 numbers,
# and the point scaled by it, are each right to a few eps, 1.2e-7.
_INSIDE = 1 - 1e-6


@dataclasses.dataclass(frozen=True)
class InBox:
    """Inputs whose entries lie in `[low, high]`."""

    low: float
    high: float

    def nearest(self, points: Array) -> Array:
        """Returns the points of the set that are nearest."""
        return jnp.clip(points, self.low, self.high)

    def extreme(self, directions: Array) -> Array:
        """Returns the points of the set that are farthest in some directions."""
        return jnp.where(directions > 0, self.high, self.low).astype(directions.dtype)


@dataclasses.dataclass(frozen=True)
class InBall:
    """Inputs whose Euclidean norm, over all axes but the first, is at most `radius`."""

    radius: float

    def nearest(self, points: Array) -> Array:
        """Returns the points of the set that are nearest."""
        return points * shrinking(points, self.radius)

    def extreme(self, directions: Array) -> Array:
        """Returns the points of the set that are farthest in some directions."""
        return self.radius * _INSIDE * normalized(directions)


Domain: TypeAlias = InBox | InBall


def norms(points: Array) -> Array:
    """Euclidean norm over all axes but the first, with a gradient everywhere."""
    squares = jnp.sum(jnp.square(points.reshape(len(points), -1)), -1)
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)


def normalized(points: Array) -> Array:
    """Points of norm 1; those of norm 0 as they are."""
    lengths = norms(points)
    return points / aligned(jnp.where(lengths > 0, lengths, 1), points)


def shrinking(points: Array, radius: Array | float) -> Array:
    """Factors that bring points into the ball; 1 for those inside."""
    lengths = norms(points)
    factors = jnp.minimum(1, radius * _INSIDE / jnp.where(lengths > 0, lengths, 1))
    return aligned(factors, points)


def aligned(numbers: Array, like: Array) -> Array:
    """Numbers of the first axes, with axes of size 1 for the rest of `like`."""
    return numbers.reshape(numbers.shape + (1,) * (like.ndim - numbers.ndim))
