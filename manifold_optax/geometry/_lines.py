"""Rows and columns of a matrix, each a vector of its own."""

from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._typing import AxisName
from manifold_optax.linalg import nonzero

Lines: TypeAlias = Literal["rows", "columns"]
"""Rows are fan-out, columns fan-in."""


def check_lines(of: str) -> None:
    """Raises ValueError unless `of` is "rows" or "columns"."""
    if of not in ("rows", "columns"):
        raise ValueError(f'of must be "rows" or "columns", got {of!r}.')


def line_dot(x: Array, y: Array, of: Lines, axis_name: AxisName = None) -> Array:
    """Inner product of each line of `x` with that of `y`, with the axes kept.

    Where the rows are split each row is whole, and only columns need a sum.
    """
    products = jnp.sum(x * y, axis=_axis(of), keepdims=True)
    if of == "rows" or axis_name is None:
        return products
    return jax.lax.psum(products, axis_name)


def line_norm(x: Array, of: Lines, axis_name: AxisName = None) -> Array:
    """Euclidean norm of each line, with the axes kept; scale-safe."""
    largest = jnp.max(jnp.abs(x), axis=_axis(of), keepdims=True, initial=0)
    if of == "columns" and axis_name is not None:
        largest = jax.lax.pmax(largest, axis_name)
    largest = nonzero(largest)
    scaled = x / largest
    return largest * jnp.sqrt(line_dot(scaled, scaled, of, axis_name))


def normalize_lines(x: Array, of: Lines, axis_name: AxisName = None) -> Array:
    """Each line divided by its norm, scale-safe.

    A zero line stays zero, one with a non-finite entry becomes NaN.
    """
    # Twice: a norm that is not a normal number of the dtype is rounded coarsely.
    x = x / nonzero(line_norm(x, of, axis_name))
    norm = line_norm(x, of, axis_name)
    return x / jnp.where(norm == 0, 1, norm)


def _axis(of: Lines) -> int:
    return -1 if of == "rows" else -2
