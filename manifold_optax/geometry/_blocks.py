"""The independent vectors of which a matrix can be made: rows, columns, entries."""

from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._typing import AxisName
from manifold_optax.linalg._reductions import divisor, nonzero

Lines: TypeAlias = Literal["rows", "columns"]
"""Rows are fan-out, columns fan-in."""

Blocks: TypeAlias = Literal["matrix", "rows", "columns", "entries"]
"""The parts that are one vector each."""

_AXES: dict[Blocks, tuple[int, ...]] = {
    "matrix": (-2, -1),
    "rows": (-1,),
    "columns": (-2,),
    "entries": (),
}


def check_lines(of: str) -> None:
    """Raises ValueError unless `of` is "rows" or "columns"."""
    if of not in ("rows", "columns"):
        raise ValueError(f'of must be "rows" or "columns", got {of!r}.')


def crosses_rows(of: Blocks) -> bool:
    """Whether a block has a part on every device where the rows are split."""
    return of in ("matrix", "columns")


def block_dot(x: Array, y: Array, of: Blocks, axis_name: AxisName = None) -> Array:
    """Inner product of each block of `x` with that of `y`, with the axes kept."""
    products = jnp.sum(x * y, axis=_AXES[of], keepdims=True)
    if axis_name is None or not crosses_rows(of):
        return products
    return jax.lax.psum(products, axis_name)


def block_norm(x: Array, of: Blocks, axis_name: AxisName = None) -> Array:
    """Euclidean norm of each block, with the axes kept; for entries of any scale."""
    if of == "entries":
        return jnp.abs(x)
    largest = jnp.max(jnp.abs(x), axis=_AXES[of], keepdims=True, initial=0)
    if axis_name is not None and crosses_rows(of):
        largest = jax.lax.pmax(largest, axis_name)
    largest = divisor(largest)
    scaled = x / largest
    return largest * jnp.sqrt(block_dot(scaled, scaled, of, axis_name))


def normalize_blocks(x: Array, of: Blocks, axis_name: AxisName = None) -> Array:
    """Each block divided by its norm, for entries of any scale.

    A zero block stays zero; one with a non-finite entry becomes NaN.
    """
    # Twice: a norm that is not a normal number of the dtype is rounded coarsely.
    x = x / nonzero(block_norm(x, of, axis_name))
    norm = block_norm(x, of, axis_name)
    return x / jnp.where(norm == 0, 1, norm)


def is_finite(x: Array, of: Blocks, axis_name: AxisName = None) -> Array:
    """Whether all entries of each block are finite, with the axes kept."""
    bad = (~jnp.isfinite(x)).astype(x.dtype)
    return block_dot(bad, bad, of, axis_name) == 0
