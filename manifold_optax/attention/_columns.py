"""Which factor multiplies each entry of a leaf."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from manifold_optax.attention._beside import is_vector
from manifold_optax.attention._spec import Attention, HeadPart, SIDES
from manifold_optax.matrices import Split
from manifold_optax.matrices._axes import normalized_axis, split_axis


def layer_axes(
    attention: Attention, part: HeadPart, rank: int, path: str
) -> tuple[int, ...]:
    """The axes of stacked layers of a leaf, as numbers from 0."""
    layers = attention.layers if part.layers is None else part.layers
    layers = (layers,) if isinstance(layers, int) else tuple(layers)
    axes = tuple(normalized_axis(axis, rank, path) for axis in layers)
    if len(set(axes)) < len(axes):
        raise ValueError(f"The axes of layers {layers} of {path!r} must be different.")
    return axes


def columns_of(
    attention: Attention, side: str, part: HeadPart, shape: Sequence[int], path: str
) -> np.ndarray:
    """For each entry of a leaf the column of `side_factors` that multiplies it.

    Returns:
        Integers of the rank of the leaf, to broadcast with it.

    Raises:
        ValueError: for axes that the leaf does not have, and sizes that do not fit.
    """
    rank = len(shape)
    place, counts = SIDES.index(side), attention.counts
    first, count, untouched = sum(counts[:place]), counts[place], sum(counts)
    layers = layer_axes(attention, part, rank, path)
    axes = _head_axes(part, rank, len(layers), path, shape)
    cut = () if part.split is None else (split_axis(part.split, shape, path),)
    if len(set(axes)) < len(axes) or {*axes, *cut} & set(layers):
        raise ValueError(
            f"The axes of heads {part.axis}, of layers {layers} and of the split "
            f"{cut} of {path!r}, which has the shape {tuple(shape)}, must be different."
        )
    sizes = [shape[axis] if axis in (*axes, *cut) else 1 for axis in range(rank)]
    chosen = _chosen(part, sizes, path)
    if not axes:
        return np.where(chosen, first, untouched)
    number = _numbers_along(chosen, axes)
    total = int(number.max(initial=-1)) + 1
    if total % count or not total:
        raise ValueError(
            f"The {total} entries of {path!r} (shape {tuple(shape)}) along the axis "
            f"{part.axis} cannot be shared evenly by {count} {side} heads."
        )
    return np.where(chosen, first + number // (total // count), untouched)


def _head_axes(
    part: HeadPart, rank: int, layers: int, path: str, shape: Sequence[int]
) -> tuple[int, ...]:
    """The axes of the heads of a leaf, as numbers from 0."""
    axes = part.axis
    if axes is None:
        return ()
    if axes == "default":
        if rank - layers == 2 and not is_vector(path):
            raise ValueError(
                f"The kernel {path!r} of shape {tuple(shape)} has two axes, and the "
                "spec does not say along which of them the heads lie: write "
                f"mo.HeadPart({part.path!r}, axis=-1) for [embed, heads · head_dim], "
                "or axis=-2 for [heads · head_dim, embed]."
            )
        axes = -2
    axes = (axes,) if isinstance(axes, int) else tuple(axes)
    return tuple(normalized_axis(axis, rank, path) for axis in axes)


def _chosen(part: HeadPart, shape: Sequence[int], path: str) -> np.ndarray:
    """Which entries belong to the blocks of a part, as an array of this shape."""
    if part.split is None:
        return np.ones(shape, bool)
    mask = _of_blocks(part, part.split, path)
    sizes = [1] * len(shape)
    sizes[part.split.axis] = -1
    return np.broadcast_to(mask.reshape(sizes), shape)


def _numbers_along(chosen: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """Numbers the chosen entries along some axes, of which the last is the fastest.

    A split across these axes, of each head's own entries, cuts all heads alike; the
    numbers do not depend on it.
    """
    others = tuple(axis for axis in range(chosen.ndim) if axis not in axes)
    along = np.asarray(chosen.any(axis=others, keepdims=True))
    counted = np.moveaxis(along, axes, range(len(axes)))
    numbers = np.cumsum(counted).reshape(counted.shape) - 1
    return np.moveaxis(numbers, range(len(axes)), axes)


def merge(columns: Sequence[np.ndarray], untouched: int, path: str) -> np.ndarray:
    """The columns of several parts of one leaf.

    Raises:
        ValueError: where two parts claim the same entry.
    """
    merged = columns[0]
    for other in columns[1:]:
        if np.any((merged != untouched) & (other != untouched)):
            raise ValueError(
                f"Two parts of the spec name the same entries of {path!r}; give each "
                "its own block of a split."
            )
        merged = np.minimum(merged, other)
    return merged


def spread(
    factors: Float[Array, "*layers columns"], columns: np.ndarray, layers: Sequence[int]
) -> Array:
    """The factor of each entry of a leaf, to broadcast with it."""
    inner = columns.reshape(
        [size for axis, size in enumerate(columns.shape) if axis not in layers]
    )
    taken = jnp.take(factors, inner, axis=-1)
    return jnp.moveaxis(taken, range(len(layers)), layers)


def _of_blocks(part: HeadPart, split: Split, path: str) -> np.ndarray:
    """Which entries along a split axis the blocks of a part hold."""
    blocks = [part.block] if isinstance(part.block, int) else list(part.block)
    if any(not 0 <= block < len(split.sizes) for block in blocks) or not blocks:
        raise ValueError(
            f"The block {part.block} of {path!r} must name some of the blocks 0 to "
            f"{len(split.sizes) - 1} of its split."
        )
    if blocks != sorted(set(blocks)):
        raise ValueError(
            f"The blocks {blocks} of {path!r} must be different and in order."
        )
    owner = np.repeat(np.arange(len(split.sizes)), split.sizes)
    return np.isin(owner, blocks)
