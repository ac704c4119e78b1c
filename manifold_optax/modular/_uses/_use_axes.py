"""How a leaf is a batch of matrices, from how it and its results are taken apart."""

import functools

import numpy as np
import optax

from manifold_optax.matrices import Axes, CONV, HEADS, HEADS_OUT, OUT_IN, Split, STACKED
from manifold_optax.modular._uses._provenance import (
    axes_in,
    Factor,
    Pattern,
    places,
    positions,
)
from manifold_optax.modular._uses._walk import Found, Group

_NAMED = (STACKED, OUT_IN, CONV, HEADS, HEADS_OUT)


def axes_of_use(
    shape: tuple[int, ...], found: Found, groups: list[Group], shards: dict[int, int]
) -> tuple[Axes, str]:
    """How a leaf is a batch of matrices, and a note on it.

    An axis along which every entry is taken apart is a batch axis; an axis that is
    taken in blocks is fused.
    """
    sides = [sorted(found.outputs), sorted(found.inputs)]
    split, notes = None, []
    for side in sides:
        for axis in tuple(side):
            taken = [g for g in groups if any(_has(p, axis) for p, _ in g.parts)]
            sizes, why = _blocks(shape[axis], axis, taken, shards, len(side) == 1)
            if max(sizes, default=0) == 1 and len(side) > 1:
                side.remove(axis)
            elif len(sizes) > 1 and split is None:
                split = (sizes, axis - len(shape))
            elif len(sizes) > 1:
                why = ["two fused axes, of which one is declared"]
            notes.extend(word for word in why if word not in notes)
    outputs, inputs = ([axis - len(shape) for axis in side] for side in sides)
    axes = optax.contrib.MuonDimensionNumbers(_one(inputs), _one(outputs))
    axes = next((named for named in _NAMED if named == axes), axes)
    if split is not None:
        return Split(*split, axes), ", ".join(notes)
    return axes, ", ".join(notes)


def _blocks(
    size: int, axis: int, groups: list[Group], shards: dict[int, int], alone: bool
) -> tuple[tuple[int, ...], list[str]]:
    """The blocks in which an axis of a leaf is taken apart; empty if it is whole.

    Args:
        size: of the axis.
        axis: of the leaf.
        groups: how the leaf and its results are taken.
        shards: numbers of parts of axes of which a device sees one part.
        alone: whether no other axis is on the same side of the matrix; its entries
            cannot be matrices of their own then.
    """
    count = shards.get(axis, 1)
    label = np.zeros(size // count, np.int64)
    taken = np.zeros(size // count, bool)
    reasons: dict[str, None] = {}
    for group in groups:
        for piece in _pieces(size // count, axis, group, alone):
            both = label * (piece.max() + 1) + piece
            finer = np.unique(both, return_inverse=True)[1]
            if finer.max() > label.max():
                reasons[group.reason if piece.max() > 1 else "fused"] = None
            label = finer
            taken |= piece > 0
    ends = np.flatnonzero(np.diff(label)) + 1
    if len(np.unique(label[taken])) < 2:
        # One part is taken beside the whole, or the others are not used at all.
        return (), []
    if len(ends) > label.max():
        return (), ["its parts alternate: one matrix"]
    sizes = np.diff([0, *ends.tolist(), size // count]).tolist() * count
    if len(sizes) == size and alone and "groups" not in reasons:
        return (), []
    if [*reasons] == ["fused"]:
        return tuple(sizes), [f"{len(sizes)} fused products"]
    return tuple(sizes), [_REASONS[reason] for reason in reasons]


_REASONS = {
    "heads": "heads one by one",
    "experts": "experts one by one",
    "batch": "a batch",
    "one by one": "slices one by one",
    "groups": "groups",
    "fused": "fused",
}
"""Notes on why a leaf is taken apart."""


def _pieces(size: int, axis: int, group: Group, alone: bool) -> list[np.ndarray]:
    """Labels of the entries of an axis: 0 for those that are not taken.

    One array for each part that is taken; parts that stand beside each other in one
    array, as the halves of a rotation do, are one part.
    """
    parts: dict[tuple[Factor, ...], tuple[Pattern, tuple[int, ...]]] = {}
    for pattern, apart in group.parts:
        own = tuple(factor for dim in pattern for factor in dim if factor.axis == axis)
        if not own or (_is_whole(own, size) and axis not in axes_in(pattern, apart)):
            continue
        key = (*(factor._replace(before=0, after=0) for factor in own),)
        parts.setdefault(key, (pattern, apart))
    found = [positions(pattern, axis, apart) for pattern, apart in parts.values()]
    labels = []
    for where, matrix in found:
        label = np.zeros(size, np.int64)
        label[where] = matrix + 1
        labels.append(label)
    joined = len({places(pattern) for pattern, _ in group.parts}) > 1
    if joined and labels:
        labels = [functools.reduce(np.maximum, labels)]
    if alone and group.reason != "groups":
        # Single entries are no matrices: they are taken apart for another reason.
        labels = [
            label if len(np.unique(label[label > 0])) < np.sum(label > 0) else label > 0
            for label in labels
        ]
    return labels


def _is_whole(factors: tuple[Factor, ...], size: int) -> bool:
    return len(factors) == 1 and factors[0].start == 0 and factors[0].size == size


def _has(pattern: Pattern, axis: int) -> bool:
    return axis in axes_in(pattern, range(len(pattern)))


def _one(axes: list[int]) -> int | tuple[int, ...]:
    return axes[0] if len(axes) == 1 else tuple(axes)
