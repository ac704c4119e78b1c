"""Matrices with mutually orthogonal columns of any length."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from manifold_optax._typing import AxisName
from manifold_optax.geometry._blocks import block_dot, block_norm, normalize_blocks
from manifold_optax.geometry._manifold import Manifold
from manifold_optax.linalg import polar
from manifold_optax.linalg._reductions import (
    divisor,
    gram,
    inner,
    matmul,
    max_abs,
    near_one,
    nonzero,
    row_count,
    symmetric,
)

_ROUNDS = 4
"""Alternations of `project`: near the manifold the first one is exact to rounding."""

_SHORTEST = 1e-3
"""Square of the relative column length below which weights grow: √1e-3 ≈ 0.03."""


@dataclasses.dataclass(frozen=True)
class DiagonalGram(Manifold):
    """Matrices whose Gram matrix `WᵀW` is diagonal: orthogonal columns, free lengths.

    It contains every multiple of its points, so it has one size only. `project` is a
    descent towards the nearest point, `W = Q·diag(s)`, that alternates between the best
    `Q` (a polar factor) and the best lengths `s`; it keeps points of the manifold, so
    that it is a retraction.

    Raises:
        ValueError: at the first matrix with more columns (fan-in) than rows (fan-out),
            where orthogonal columns would have to be zero.

    Example:
        >>> point = DiagonalGram().random_point(jax.random.key(0), (5, 3))
        >>> bool(DiagonalGram().residual(point) < 1e-6)
        True

    Source: the Gram-space table of the Tilde group (2026).
    """

    @property
    def size(self) -> float:
        """Always 1: every multiple of a point is a point."""
        return 1.0

    @property
    def transposable(self) -> bool:
        """False: columns become rows."""
        return False

    def unit(self) -> "DiagonalGram":
        """Itself."""
        return self

    def _project(self, x: Array, axis_name: AxisName) -> Array:
        _check_tall(x, axis_name)
        x, scale = near_one(x, axis_name)

        def alternate(_: ArrayLike, state: tuple[Array, Array]) -> tuple[Array, Array]:
            lengths = jnp.abs(state[1])
            # Any weights keep orthogonal columns; these are the lengths (the best ones)
            # down to where the polar factor would take a short column for no column.
            relative = lengths / nonzero(jnp.max(lengths, axis=-1, keepdims=True))
            weights = jnp.maximum(relative, _SHORTEST / nonzero(relative))
            weighted = jnp.where(relative > 0, x * weights, jnp.zeros_like(x))
            basis = polar(weighted, axis_name=axis_name)
            return basis, block_dot(basis, x, "columns", axis_name)

        start = x, block_norm(x, "columns", axis_name)
        basis, lengths = jax.lax.fori_loop(0, _ROUNDS, alternate, start)
        return scale * basis * lengths

    def _to_tangent(self, point: Array, vector: Array, axis_name: AxisName) -> Array:
        # A multiple of the point has the same tangent space. A power of two changes no
        # digit, and keeps the squares of the columns from underflow and overflow.
        exponent = jnp.frexp(divisor(max_abs(point, axis_name)))[1]
        unit = jnp.ldexp(point, -exponent)
        multiplier = normal_multiplier(unit, vector, axis_name)
        return vector - matmul(unit, multiplier)

    def _residual(self, x: Array, axis_name: AxisName) -> Array:
        _check_tall(x, axis_name)
        cosines = off_diagonal(
            gram(normalize_blocks(x, "columns", axis_name), axis_name)
        )
        return jnp.max(jnp.abs(cosines), axis=(-2, -1), initial=0)


def normal_multiplier(point: Array, vector: Array, axis_name: AxisName) -> Array:
    """The symmetric `S` with zero diagonal for which `vector − W S` is tangent."""
    squares = block_dot(point, point, "columns", axis_name)
    overlap = off_diagonal(2 * symmetric(inner(point, vector, axis_name)))
    return overlap / nonzero(squares + squares.mT)


def off_diagonal(x: Array) -> Array:
    """`x` with zeros on the diagonal."""
    identity = jnp.eye(x.shape[-1], dtype=x.dtype)
    return x * (1 - jnp.broadcast_to(identity, x.shape))


def _check_tall(x: Array, axis_name: AxisName) -> None:
    rows, columns = row_count(x, axis_name), x.shape[-1]
    if rows < columns:
        raise ValueError(
            f"DiagonalGram needs fan_out ≥ fan_in, got {rows} × {columns}: not all of "
            "more columns than rows can be orthogonal without being zero."
        )
