"""Which axes of a leaf are the matrix: named axes, fused blocks, axes by path."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable, TypeAlias

import numpy as np
import optax

STACKED = optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
"""`[*batch, in, out]`: Flax kernels, stacked by layers or experts."""

OUT_IN = optax.contrib.MuonDimensionNumbers(reduction_axis=-1, output_axis=-2)
"""`[*batch, out, in]`: the linear layers of PyTorch and Equinox."""

CONV = optax.contrib.MuonDimensionNumbers((-4, -3, -2), -1)
"""`[*batch, height, width, in, out]` (HWIO): Flax's convolutions of two axes, as the
linear map from a whole window to the output channels."""

HEADS = optax.contrib.MuonDimensionNumbers(-3, (-2, -1))
"""`[*batch, in, heads, head_dim]`: Flax's queries, keys and values, all heads of a
layer as one matrix."""

HEADS_OUT = optax.contrib.MuonDimensionNumbers((-3, -2), -1)
"""`[*batch, heads, head_dim, out]`: Flax's output projection of attention."""


class _SplitFields(NamedTuple):
    sizes: tuple[int, ...]
    axis: int = -1
    axes: optax.contrib.MuonDimensionNumbers = STACKED


class Split(_SplitFields):
    """Declares that a leaf is several matrices fused along one axis.

    Example: queries, keys and values of grouped-query attention in one kernel
    `[embed, 4096 + 1024 + 1024]` are `Split((4096, 1024, 1024))`; each block is then a
    matrix of its own.

    Args:
        sizes: sizes of the blocks, ints; their sum is the size of the axis. A pattern
            that repeats, `(64,) * 32` or `(128, 64) * 32`, costs no more than one
            period of it.
        axis: the fused axis.
        axes: how each block is a batch of matrices.

    Raises:
        TypeError: for sizes or an axis that are not ints, or `axes` of another kind.
    """

    __slots__ = ()

    def __new__(
        cls,
        sizes: Sequence[int],
        axis: int = -1,
        axes: optax.contrib.MuonDimensionNumbers = STACKED,
    ) -> "Split":
        """Checks the entries."""
        if isinstance(sizes, str) or not isinstance(sizes, Sequence):
            raise TypeError(
                "The sizes of a Split must be a tuple of ints, the sizes of its "
                f"blocks, got {sizes!r}."
            )
        for position, size in enumerate(sizes):
            _check_int(f"The size of block {position} of a Split", size)
        _check_int("The axis of a Split", axis)
        if isinstance(axes, Split | str | int | float):
            raise TypeError(
                "The axes of a Split must be an optax.contrib.MuonDimensionNumbers, "
                f"how each block is a batch of matrices; got {axes!r}."
            )
        return super().__new__(cls, tuple(sizes), axis, axes)


Axes: TypeAlias = optax.contrib.MuonDimensionNumbers | Split
"""How a leaf is a batch of matrices."""


@runtime_checkable
class AxesByPath(Protocol):
    """Axes of many leaves that lie differently; `mo.Roles` are."""

    def axes_of(self, path: str, shape: tuple[int, ...]) -> Axes | None:
        """Axes of the leaf at `path`; `None` if it is no matrix."""
        ...


AxesLike: TypeAlias = optax.contrib.MuonDimensionNumbers | Split | AxesByPath | None
"""What every argument `axes` takes: the axes of all leaves, or `mo.Roles`, by path;
`None`: leaves have two axes exactly, `[in, out]`."""


def check_axes(axes: Any) -> Axes:
    """`axes`, hashable.

    Raises:
        TypeError: for anything but `optax.contrib.MuonDimensionNumbers` and a `Split`.
    """
    if isinstance(axes, Split):
        return axes._replace(axes=check_axes(axes.axes), sizes=tuple(axes.sizes))
    if isinstance(axes, optax.contrib.MuonDimensionNumbers):
        return type(axes)(_hashable(axes.reduction_axis), _hashable(axes.output_axis))
    raise TypeError(
        "axes must be named axes such as mo.STACKED, an "
        "optax.contrib.MuonDimensionNumbers, a mo.Split, or mo.Roles for leaves that "
        f"lie differently; got {axes!r}."
    )


def check_axes_like(axes: Any) -> None:
    """Raises TypeError unless `axes` are `None`, `mo.Roles`, or axes of all leaves."""
    by_path = isinstance(axes, AxesByPath) and not isinstance(axes, type)
    if axes is not None and not by_path:
        check_axes(axes)


def axes_at(axes: AxesLike, path: str, shape: tuple[int, ...]) -> Axes | None:
    """The axes of one leaf; `None` if `mo.Roles` say that it is no matrix.

    Raises:
        TypeError: for `axes` of another kind.
        ValueError: for a leaf of more than two axes where `axes` are `None`.
    """
    if axes is None:
        if len(shape) > 2:
            raise ValueError(
                f"The leaf {path!r} of shape {shape} has more than two axes, and "
                "nothing says which of them are the matrix. Give axes=mo.STACKED for "
                "[*batch, in, out], mo.CONV for [height, width, in, out], mo.HEADS for "
                "[in, heads, head_dim], mo.HEADS_OUT for [heads, head_dim, out]; or "
                "mo.roles({pattern: axes}) where leaves lie differently."
            )
        return STACKED
    if isinstance(axes, Split | optax.contrib.MuonDimensionNumbers):
        return axes
    if isinstance(axes, AxesByPath):
        return axes.axes_of(path, shape)
    return check_axes(axes)


def split_axis(split: Split, shape: Sequence[int], path: str) -> int:
    """The fused axis of a leaf of this shape, as a number from 0.

    Raises:
        ValueError: for an axis that the leaf does not have, and for sizes of blocks
            that do not add up.
    """
    axis = normalized_axis(split.axis, len(shape), path)
    if sum(split.sizes) != shape[axis] or min(split.sizes, default=0) < 1:
        raise ValueError(
            f"The split {split.sizes} of axis {split.axis} sums to {sum(split.sizes)}, "
            f"but the leaf {path!r} of shape {tuple(shape)} has {shape[axis]} there; "
            "the sizes must be positive and add up."
        )
    return axis


def normalized_axis(axis: int, rank: int, path: str) -> int:
    """An axis as a number from 0; ValueError for one that the leaf does not have."""
    if not -rank <= axis < rank:
        raise ValueError(f"Axis {axis} does not exist in {path!r}, which has {rank}.")
    return axis % rank


def _check_int(what: str, value: Any) -> None:
    """Raises TypeError for numbers that are not ints, and for strings.

    Other objects pass: JAX builds a tuple again with whatever it maps over its entries.
    """
    if isinstance(value, bool | float | complex | str | np.floating | np.bool_):
        raise TypeError(
            f"{what} must be an int, got {value!r} of type {type(value).__name__}."
        )


def _hashable(axes: Sequence[int] | int) -> tuple[int, ...] | int:
    return axes if isinstance(axes, int) else tuple(axes)
