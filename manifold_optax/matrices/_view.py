"""Leaves as batches of matrices: blocks, batch axes, fan-in and fan-out."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array

from manifold_optax._checks import require_floating, require_rank
from manifold_optax.matrices._axes import (
    axes_at,
    AxesLike,
    normalized_axis,
    Split,
    split_axis,
)


@dataclasses.dataclass(frozen=True)
class View:
    """One block of a leaf as a batch of matrices.

    `window` is `(axis, start, stop)` of the block in its leaf, `None` for the whole
    leaf; `shape` and the axes are those of the block. Blocks that repeat are one view:
    the split axis is folded in two, `repeats` and one period, of which the block is a
    window; the first of the two is the last one of the batch axes.
    """

    path: str
    shape: tuple[int, ...]
    batch_axes: tuple[int, ...]
    in_axes: tuple[int, ...]
    out_axes: tuple[int, ...]
    window: tuple[int, int, int] | None = None
    repeats: int = 1

    @property
    def fan_in(self) -> int:
        """Number of inputs of the linear map."""
        return math.prod(self.shape[axis] for axis in self.in_axes)

    @property
    def fan_out(self) -> int:
        """Number of outputs of the linear map."""
        return math.prod(self.shape[axis] for axis in self.out_axes)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the batch axes; one matrix per entry."""
        return tuple(self.shape[axis] for axis in self.batch_axes)

    @property
    def matrix_axes(self) -> tuple[int, ...]:
        """All axes that make up one matrix."""
        return (*self.in_axes, *self.out_axes)

    @property
    def leaf_batch_axes(self) -> tuple[int, ...]:
        """Batch axes that the leaf itself has, as axes of the leaf."""
        if self.window is None or self.repeats == 1:
            return self.batch_axes
        folded = self.window[0] - 1
        return tuple(axis - (axis > folded) for axis in self.batch_axes[:-1])

    def folded(self, array: Array) -> Array:
        """A leaf, or its state along the split axis, with the repeats on an axis."""
        if self.window is None or self.repeats == 1:
            return array
        axis, shape = self.window[0] - 1, array.shape
        period = shape[axis] // self.repeats
        return array.reshape(*shape[:axis], self.repeats, period, *shape[axis + 1 :])

    def block(self, leaf: Any) -> Any:
        """The part of `leaf` that this view is about; of a shape, if it is one."""
        if self.window is None:
            return leaf
        axis, start, stop = self.window

        def cut(leaf: Array) -> Array:
            return jax.lax.slice_in_dim(self.folded(leaf), start, stop, axis=axis)

        is_shape = isinstance(leaf, jax.ShapeDtypeStruct)
        return jax.eval_shape(cut, leaf) if is_shape else cut(leaf)


def views_of(leaf: Any, path: str, axes: AxesLike) -> tuple[View, ...]:
    """The blocks of a leaf, one view each.

    Raises:
        TypeError: for a leaf that is not a real floating array.
        ValueError: for a leaf whose rank or sizes do not fit `axes`, and for one that
            is no matrix by `mo.Roles`.
    """
    require_floating(leaf, path)
    shape = tuple(leaf.shape)
    axes = axes_at(axes, path, shape)
    if axes is None:
        raise ValueError(
            f"By its role the leaf {path!r} of shape {shape} is no matrix. Give such "
            "leaves another optimizer, mo.hybrid(matrices, others=..., labels=roles); "
            "or give it axes by a rule of mo.roles."
        )
    if not isinstance(axes, Split):
        return (_view_of(leaf.shape, path, axes, None),)
    require_rank(leaf, 2, path)
    axis = split_axis(axes, leaf.shape, path)
    # Along an axis that devices share, folding would move data; a slice says so.
    period = _period_of(axes.sizes)
    if (len(axes.sizes) // len(period)) % _parts_of(leaf, axis):
        period = axes.sizes
    views, start = [], 0
    for size in period:
        shape = (*leaf.shape[:axis], size, *leaf.shape[axis + 1 :])
        views.append(_view_of(shape, path, axes.axes, (axis, start, start + size)))
        start += size
    if any(axis in view.batch_axes for view in views):
        raise ValueError(
            f"The split axis {axes.axis} of the leaf {path!r} is a batch axis of "
            f"{axes.axes}; split an input or an output axis."
        )
    return tuple(_repeated(view, len(axes.sizes) // len(period)) for view in views)


def joined(views: Sequence[View], blocks: Sequence[Array]) -> Array:
    """The leaf of these blocks, one per view; undoes `View.block`."""
    view = views[0]
    if view.window is None:
        return blocks[0]
    axis = view.window[0]
    whole = jnp.concatenate(blocks, axis=axis)
    return whole if view.repeats == 1 else _merged(whole, axis - 1)


def per_matrix_shape(leaf: Any, views: Sequence[View]) -> tuple[int, ...]:
    """Shape of one number per matrix: the batch axes, then the blocks of a split."""
    first = views[0]
    blocks = () if first.window is None else (len(views) * first.repeats,)
    return (*(leaf.shape[axis] for axis in first.leaf_batch_axes), *blocks)


def numbers_of(view: View, position: int, views: int, numbers: Array) -> Array:
    """The part of `[*batch, blocks, …]` of the view at `position` of `views`."""
    if view.window is None:
        return numbers
    own = position if view.repeats == 1 else slice(position, None, views)
    return numbers[(*(slice(None),) * len(view.leaf_batch_axes), own)]


def joined_numbers(views: Sequence[View], numbers: Sequence[Array]) -> Array:
    """`[*batch, blocks, …]` from the parts of all views; undoes `numbers_of`."""
    if views[0].window is None:
        return numbers[0]
    stacked = jnp.stack(numbers, axis=len(views[0].batch_axes))
    batch = len(views[0].leaf_batch_axes)
    return stacked if views[0].repeats == 1 else _merged(stacked, batch)


def block_spec(view: View, spec: PartitionSpec) -> tuple[Any, ...]:
    """`spec` padded with `None` to the rank of the view.

    Raises:
        ValueError: for a spec with more entries than the leaf has axes.
    """
    if len(spec) > len(view.shape):
        raise ValueError(
            f"The spec {spec} has more entries than the leaf {view.path!r} of shape "
            f"{view.shape} has axes."
        )
    return (*spec, *(None,) * (len(view.shape) - len(spec)))


def leaf_axis(view: View) -> int:
    """The split axis of a view of a block, as an axis of its leaf."""
    assert view.window is not None
    return view.window[0] - (view.repeats > 1)


def folded_spec(
    view: View, spec: PartitionSpec, sizes: Mapping[str, int]
) -> PartitionSpec:
    """The spec of a block, from that of its leaf and the sizes of the mesh axes.

    Where each device has whole periods of blocks, it is their batch that is cut.
    """
    if view.window is None or view.repeats == 1:
        return spec
    folded = leaf_axis(view)
    if len(spec) <= folded:
        return spec
    parts = math.prod(sizes.get(name, 1) for name in names_of(spec[folded]))
    entries = (
        (spec[folded], None) if view.repeats % parts == 0 else (None, spec[folded])
    )
    return PartitionSpec(*spec[:folded], *entries, *spec[folded + 1 :])


def names_of(entry: Any) -> tuple[str, ...]:
    """Mesh axes of one entry of a spec."""
    if entry is None or entry is PartitionSpec.UNCONSTRAINED:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def _view_of(
    shape: tuple[int, ...],
    path: str,
    axes: optax.contrib.MuonDimensionNumbers,
    window: tuple[int, int, int] | None,
) -> View:
    named_in, named_out = _tuple(axes.reduction_axis), _tuple(axes.output_axis)
    needed = max((-a if a < 0 else a + 1 for a in (*named_in, *named_out)), default=0)
    require_rank(jax.ShapeDtypeStruct(shape, "float32"), max(needed, 2), path)
    in_axes = tuple(normalized_axis(axis, len(shape), path) for axis in named_in)
    out_axes = tuple(normalized_axis(axis, len(shape), path) for axis in named_out)
    named = (*in_axes, *out_axes)
    if not in_axes or not out_axes or len(set(named)) < len(named):
        raise ValueError(
            f"{axes} must name at least one input axis and one output axis, all "
            f"different; on the leaf {path!r} of shape {shape} they are {in_axes} and "
            f"{out_axes}."
        )
    batch = tuple(axis for axis in range(len(shape)) if axis not in named)
    return View(path, shape, batch, in_axes, out_axes, window)


def _repeated(view: View, repeats: int) -> View:
    """A view of one period as the view of all `repeats` periods."""
    if view.window is None or repeats == 1:
        return view
    axis, start, stop = view.window

    def moved(axes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(a + (a >= axis) for a in axes)

    return View(
        view.path,
        (*view.shape[:axis], repeats, *view.shape[axis:]),
        (*moved(view.batch_axes), axis),
        moved(view.in_axes),
        moved(view.out_axes),
        (axis + 1, start, stop),
        repeats,
    )


def _merged(array: Array, axis: int) -> Array:
    """`array` with an axis and the one after it as one."""
    shape = array.shape
    size = shape[axis] * shape[axis + 1]
    return array.reshape(*shape[:axis], size, *shape[axis + 2 :])


def _period_of(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The shortest beginning of `sizes` of which they are a multiple."""
    count = len(sizes)
    lengths = (n for n in range(1, count + 1) if count % n == 0)
    return next(
        sizes[:n] for n in lengths if tuple(sizes[:n]) * (count // n) == tuple(sizes)
    )


def _parts_of(leaf: Any, axis: int) -> int:
    """Into how many parts the type of a leaf says that this axis is cut."""
    sharding = jax.typeof(leaf).sharding
    names = names_of(sharding.spec[axis]) if axis < len(sharding.spec) else ()
    return math.prod(sharding.mesh.shape[name] for name in names)


def _tuple(axes: Sequence[int] | int) -> tuple[int, ...]:
    return (axes,) if isinstance(axes, int) else tuple(axes)
