"""The oblique manifold: all rows, or all columns, of one length."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._typing import AxisName
from manifold_optax.geometry._blocks import (
    block_dot,
    block_norm,
    check_lines,
    Lines,
    normalize_blocks,
)
from manifold_optax.geometry._manifold import check_size, Manifold


@dataclasses.dataclass(frozen=True)
class Oblique(Manifold):
    """Matrices whose rows (or columns) all have the Euclidean norm `radius`.

    A product of spheres, one per row: for embeddings, and for neurons whose weight
    vectors should differ in direction only. A zero row has no direction and stays zero;
    its residual is 1.

    Args:
        radius: a number > 0; √n makes rows of n entries have RMS 1.
        of: `"rows"` (fan-out) or `"columns"` (fan-in).

    Raises:
        ValueError: for a radius that is not a positive number, or another `of`.

    Example:
        >>> Oblique().project(jnp.array([[3.0, 4.0], [0.0, -2.0]]))
        Array([[ 0.6,  0.8],
               [ 0. , -1. ]], dtype=float32)

    Source: P.-A. Absil, K. Gallivan, "Joint Diagonalization on the Oblique Manifold for
    Independent Component Analysis" (ICASSP, 2006).
    """

    radius: float = 1.0
    of: Lines = "rows"

    def __post_init__(self) -> None:
        """Checks the radius and the name of the lines."""
        check_size("radius", self.radius, ())
        check_lines(self.of)

    @property
    def size(self) -> float:
        """The radius."""
        return self.radius

    @property
    def transposable(self) -> bool:
        """False: rows become columns."""
        return False

    def unit(self) -> "Oblique":
        """Rows, or columns, of norm 1."""
        return Oblique(of=self.of)

    def _project(self, x: Array, axis_name: AxisName) -> Array:
        return normalize_blocks(x, self.of, axis_name)

    def _to_tangent(self, point: Array, vector: Array, axis_name: AxisName) -> Array:
        return vector - point * block_dot(point, vector, self.of, axis_name)

    def _residual(self, x: Array, axis_name: AxisName) -> Array:
        off = jnp.abs(block_norm(x, self.of, axis_name) - 1)
        largest = jnp.max(off, axis=(-2, -1), initial=0)
        if self.of == "rows" and axis_name is not None:
            largest = jax.lax.pmax(largest, axis_name)
        return largest
