"""What will happen to each parameter, as a table to read before the first step."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from manifold_optax._typing import ArrayTree
from manifold_optax.labels import MATRIX
from manifold_optax.matrices import (
    Axes,
    LAST_TWO,
    Placement,
    Plan,
    plan_matrices,
)
from manifold_optax.matrices._view import View, views_of
from manifold_optax.trees import is_absent, leaf_path

_HEADER = ("path", "shape", "dtype", "label", "fan_out × fan_in", "matrices")


@dataclasses.dataclass(frozen=True)
class LabelledLeaf:
    """What is known of one parameter before the first step."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    label: str
    views: tuple[View, ...]
    """The batches of matrices that it is, one per block of a `Split`, where those that
    repeat are one; none where the label says something else."""

    @property
    def count(self) -> int:
        """Number of matrices."""
        return sum(math.prod(view.batch_shape) for view in self.views)

    @property
    def sizes(self) -> str:
        """`fan_out × fan_in` of its matrices, of each block its own."""
        blocks = (f"{view.fan_out} × {view.fan_in}" for view in self.views)
        return ", ".join(dict.fromkeys(blocks))


@dataclasses.dataclass(frozen=True)
class Description:
    """All parameters of a model, and the plans of its matrices; `str` is a table."""

    leaves: tuple[LabelledLeaf, ...]
    plans: tuple[Plan, ...]
    """One for each label of matrices, in the order of `axes`."""

    def __str__(self) -> str:
        """One line per parameter; then, where there are matrices, their plans."""
        rows = [_HEADER, *map(_row, self.leaves)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = "\n".join(
            "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows
        )
        return "\n\n".join([table, *filter(None, map(str, self.plans))])


def describe(
    labels: ArrayTree | Callable[[ArrayTree], ArrayTree],
    params: ArrayTree,
    *,
    axes: Axes | Mapping[str, Axes] = LAST_TWO,
    placement: Placement | None = None,
) -> Description:
    """What the library knows about a model before its first step; print it to read it.

    One line per parameter: its label, and if that is `"matrix"` (or a label that `axes`
    names), which matrices the optimizer sees in it (`fan_out × fan_in`, and how many of
    them). Then the plan of these matrices, as of `plan_matrices`: which share a stack,
    and by which recipe they are computed. A wrong label, fan-in taken for fan-out, and
    a layout that is not known are all seen here. It computes nothing: the time is that
    of one trace.

    Args:
        labels: what `hybrid` and `optax.partition` take: a function from the parameters
            to their labels (`label_matrices`, `label_by_path(...)`), or a tree of
            labels, which may be a prefix of `params`.
        params: tree of arrays or `jax.ShapeDtypeStruct`s of any shapes and dtypes.
            `None`, `optax.MaskedNode` and empty leaves are passed over, as they are by
            the optimizers.
        axes: that of the optimizer of the matrices. Where `hybrid` has several, a dict
            of the labels of matrices and the axes of each.
        placement: likewise.

    Returns:
        The table as an object: its `leaves` and its `plans`.

    Raises:
        ValueError: for a parameter without a label, for a label without a parameter
            (in `labels`, and of a dict `axes`), and for matrices that do not fit `axes`
            or `placement`.
        TypeError: for matrices of a dtype that cannot be optimized. All name the leaf.

    Example:
        >>> params = {"w1": jnp.ones((4, 2)), "b1": jnp.ones(2)}
        >>> print(describe(label_matrices, params))
        path  shape   dtype    label   fan_out × fan_in  matrices
        b1    (2,)    float32  other
        w1    (4, 2)  float32  matrix  2 × 4             1
        <BLANKLINE>
        stack          matrices  recipe  FLOPs  bytes sent  leaves
        4 × 2 float32  1         local   ...    0           w1
        busiest device: ... FLOPs, 0 bytes sent
    """
    labels = labels(params) if callable(labels) else labels
    paired, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_absent)
    names = _label_of_each(labels, paired)
    kinds = axes if isinstance(axes, Mapping) else {MATRIX: axes}
    leaves, rows = [], []
    for keys, leaf in paired:
        known = None if is_absent(leaf) else _labelled(keys, leaf, names[keys], kinds)
        leaves.extend([] if known is None else [known])
        rows.append((leaf, known.label if known is not None and known.views else None))
    if isinstance(axes, Mapping) and (idle := set(axes) - {*names.values()}):
        raise ValueError(
            f"axes names the labels {sorted(idle)}, which no parameter has; the labels "
            f"are {sorted({str(name) for name in names.values()})}."
        )

    def plan_of(label: str, own: Axes) -> Plan:
        matrices = [leaf if name == label else None for leaf, name in rows]
        tree = treedef.unflatten(matrices)
        return plan_matrices(tree, axes=own, placement=placement)

    plans = tuple(plan_of(label, own) for label, own in kinds.items())
    return Description(tuple(leaves), plans)


def _label_of_each(
    labels: ArrayTree, paired: Sequence[tuple[tuple[Any, ...], Any]]
) -> dict[tuple[Any, ...], Any]:
    """The label at each path, or at the part of it that has one."""
    labelled = dict(jax.tree_util.tree_flatten_with_path(labels)[0])
    found, used = {}, set()
    for keys, leaf in paired:
        stems = (keys[:length] for length in range(len(keys), -1, -1))
        stem = next((stem for stem in stems if stem in labelled), None)
        used.add(stem)
        if is_absent(leaf):
            continue
        if stem is None:
            raise ValueError(
                f"The tree of labels has none for the parameter {leaf_path(keys)!r}; "
                "it must have the structure of the parameters, or be a prefix of it."
            )
        found[keys] = labelled[stem]
    if unused := [leaf_path(keys) for keys in labelled if keys not in used]:
        raise ValueError(
            f"There are labels at {unused}, but no parameters; the paths are: "
            f"{', '.join(map(leaf_path, found))}."
        )
    return found


def _labelled(
    keys: tuple[Any, ...], leaf: Any, label: Any, kinds: Mapping[str, Axes]
) -> LabelledLeaf | None:
    """One line of the table; `None` for a leaf without an entry."""
    path, shape = leaf_path(keys), tuple(getattr(leaf, "shape", ()))
    if not math.prod(shape):
        return None
    views = views_of(leaf, path, kinds[label]) if label in kinds else ()
    dtype = str(getattr(leaf, "dtype", type(leaf).__name__))
    return LabelledLeaf(path, shape, dtype, str(label), views)


def _row(leaf: LabelledLeaf) -> tuple[str, ...]:
    count = str(leaf.count) if leaf.views else ""
    return leaf.path, str(leaf.shape), leaf.dtype, leaf.label, leaf.sizes, count
