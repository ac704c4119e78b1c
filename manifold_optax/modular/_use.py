"""How each parameter of a model is used, read from its computation."""

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import optax

from manifold_optax.matrices import Axes, CONV, HEADS, HEADS_OUT, OUT_IN, Split, STACKED
from manifold_optax.modular import _walk_axes as axes_rules, _walk_products as products
from manifold_optax.modular._graph import Graph, Operation, Value
from manifold_optax.modular._provenance import (
    axes_in,
    Factor,
    Pattern,
    places,
    positions,
)
from manifold_optax.modular._walk import (
    Facts,
    Found,
    Group,
    leaf_facts,
    Rule,
    Walk,
)

_NAMED = (STACKED, OUT_IN, CONV, HEADS, HEADS_OUT)

_RULES: dict[str, Rule] = {
    "transpose": axes_rules.transpose,
    "squeeze": axes_rules.squeeze,
    "broadcast_in_dim": axes_rules.broadcast,
    "reshape": axes_rules.reshape,
    "slice": axes_rules.cut,
    "split": axes_rules.split,
    "concatenate": axes_rules.concatenate,
    "stack": axes_rules.stack,
    "unstack": axes_rules.unstack,
    "pad": axes_rules.pad,
    "tile": axes_rules.tile,
    "scan": axes_rules.scan,
    "while": axes_rules.loop,
    "cond": axes_rules.branches,
    "shard_map": axes_rules.shard_map,
    "dot_general": products.dot_general,
    "ragged_dot_general": products.ragged_dot,
    "conv_general_dilated": products.convolution,
    "gather": products.gather,
    "dynamic_slice": products.dynamic_slice,
    "dynamic_update_slice": products.dynamic_update_slice,
    **dict.fromkeys(
        "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor "
        "argmax argmin".split(),
        axes_rules.reduction,
    ),
    **dict.fromkeys(
        "reduce_window_sum reduce_window_max reduce_window_min reduce_window "
        "scatter scatter_add scatter-add top_k".split(),
        axes_rules.same_rank,
    ),
}
"""How parameters are followed through a primitive; all others see `default`."""


class Use(NamedTuple):
    """One way in which a parameter is used.

    Attributes:
        kind: `"matrix"`, `"convolution"`, `"embedding"` (rows are looked up), `"bias"`
            (added to activations, or placed beside them), `"gain"` (multiplied with
            them), `"other"`, or `"output"` (returned as it is).
        axes: for matrices and convolutions, how the leaf is a batch of matrices.
        operation: where it is used.
        readout: whether the result leaves the model without a further matrix,
            convolution or embedding.
        note: what else is known, in words: `"heads one by one"`.
    """

    kind: str
    axes: Axes | None
    operation: Operation
    readout: bool = False
    note: str = ""


def uses(graph: Graph, paths: Sequence[str]) -> dict[str, tuple[Use, ...]]:
    """How each parameter is used: different uses, each once.

    Args:
        graph: of a model, whose first inputs are the parameters.
        paths: of the parameters.

    Returns:
        The uses of each path. A parameter that no output needs has none.
    """
    parameters = graph.inputs[: len(paths)]
    walk = Walk([value.shape for value in parameters], _RULES)
    inputs = [
        leaf_facts(number, value.shape) if value.is_float else Facts(live=True)
        for number, value in enumerate(parameters)
    ]
    rest = [Facts(live=True)] * (len(graph.inputs) - len(paths))
    returned = Operation("output", graph.outputs, {})
    _end(walk, returned, walk.run(graph, [*inputs, *rest]))
    followed = _Backwards(walk.matrices)
    followed.run(graph, [False] * len(graph.outputs))
    gradient = _Backwards(set(), frozenset(["stop_gradient"]))
    gradient.run(graph, [True] * len(graph.outputs))
    alive = gradient.found | {returned}
    return {
        path: _of_leaf(walk, number, parameters[number].shape, followed.found, alive)
        for number, path in enumerate(paths)
    }


def _end(walk: Walk, returned: Operation, outputs: Sequence[Facts]) -> None:
    """Notes what the outputs have of each leaf."""
    for facts in outputs:
        walk.end(facts, returned, "output")
        parts: dict[int, list[tuple[Pattern, tuple[int, ...]]]] = {}
        for pattern, strands in facts.strands.items():
            for strand in strands:
                if not strand.weight:
                    parts.setdefault(strand.leaf, []).append((pattern, ()))
        for leaf, group in parts.items():
            walk.group(leaf, group)


def _of_leaf(
    walk: Walk,
    leaf: int,
    shape: tuple[int, ...],
    passed: set[Operation],
    alive: set[Operation],
) -> tuple[Use, ...]:
    """The different uses of one leaf, the decisive ones first."""
    different: dict[tuple[str, Axes | None], Use] = {}
    groups = list(walk.groups.get(leaf, {}))
    shards = {axis: n for (number, axis), n in walk.shards.items() if number == leaf}
    order = ("matrix", "convolution", "embedding", "bias", "gain", "other", "output")
    found = walk.uses_of(leaf, alive)
    for one, operation in sorted(found, key=lambda pair: order.index(pair[0].kind)):
        axes, note = None, ""
        if one.inputs:
            axes, note = _axes_of(shape, one, groups, shards)
            if leaf in walk.scanned:
                note = ", ".join(filter(None, ("scanned", note)))
        readout = one.last and operation not in passed
        known = different.get((one.kind, axes))
        if known is not None:
            known = known._replace(readout=known.readout and readout)
        use = known or Use(one.kind, axes, operation, readout, note)
        different[one.kind, axes] = use
    return tuple(different.values())


def _axes_of(
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
    reasons: dict[str, None] = {}
    for group in groups:
        for piece in _pieces(size // count, axis, group, alone):
            finer = np.unique(np.stack([label, piece]), axis=1, return_inverse=True)[1]
            finer = finer.reshape(-1)
            if finer.max() > label.max():
                reasons[group.reason if piece.max() > 1 else "fused"] = None
            label = finer
    ends = np.flatnonzero(np.diff(label)) + 1
    if len(ends) == 0:
        return (), []
    if len(ends) > label.max():
        return (), ["its parts alternate: one matrix"]
    sizes = np.diff([0, *ends, size // count]).tolist() * count
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
        own = tuple(
            factor for dim in pattern for factor in dim if factor.axis == axis
        )
        if not own or _is_whole(own, size) and axis not in axes_in(pattern, apart):
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


class _Backwards:
    """Follows values backwards from the outputs of a graph.

    Attributes:
        sources: operations whose operands are followed, too.
        stops: names of operations that are not passed.
        found: operations that have a result that is followed.
    """

    def __init__(self, sources: set[Operation], stops: frozenset[str] = frozenset()):
        self.sources = sources
        self.stops = stops
        self.found: set[Operation] = set()

    def run(self, graph: Graph, outputs: Sequence[bool]) -> list[bool]:
        """Which inputs are followed, if these outputs are."""
        known: dict[Value, bool] = {}

        def note(values: Iterable[Value], followed: Iterable[bool]) -> None:
            for value, one in zip(values, followed, strict=True):
                known[value] = known.get(value, False) or one

        note(graph.outputs, outputs)
        for operation in reversed(graph.operations()):
            results = [known.get(value, False) for value in operation.results]
            if any(results):
                self.found.add(operation)
            if operation.bodies:
                note(operation.operands, self._through(operation, results))
            elif operation.name not in self.stops:
                every = any(results) or operation in self.sources
                note(operation.operands, [every] * len(operation.operands))
        return [known.get(value, False) for value in graph.inputs]

    def _through(self, operation: Operation, results: list[bool]) -> list[bool]:
        """Which operands of a loop or of a branch are followed."""
        params, body = operation.params, operation.bodies[-1]
        if operation.name == "cond":
            every = [self.run(branch, results) for branch in operation.bodies]
            return [False, *map(any, zip(*every, strict=True))]
        if operation.name == "scan":
            first, count, tests = params["num_consts"], params["num_carry"], 0
        elif operation.name == "while":
            first, tests = params["body_nconsts"], params["cond_nconsts"]
            count = len(results)
        else:
            return self.run(body, results)
        while True:
            inputs = self.run(body, results)
            carried = inputs[first : first + count]
            new = [a or b for a, b in zip(results, carried, strict=False)]
            new += results[count:]
            if new == results:
                return [False] * tests + inputs
            results = new
