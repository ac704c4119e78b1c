"""How each parameter of a model is used, read from its computation."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from manifold_optax.matrices import Axes
from manifold_optax.modular._computation._graph import Graph, Operation
from manifold_optax.modular._uses import (
    _walk_axes as moves,
    _walk_entries as entries,
    _walk_lookups as lookups,
    _walk_loops as loops,
    _walk_products as products,
)
from manifold_optax.modular._uses._backwards import Backwards
from manifold_optax.modular._uses._provenance import Pattern
from manifold_optax.modular._uses._use_axes import axes_of_use
from manifold_optax.modular._uses._walk import Facts, leaf_facts, Rule, Walk

_MOVES: dict[str, Callable[[Operation, list[Facts]], list[Facts]]] = {
    "transpose": moves.transpose,
    "squeeze": moves.squeeze,
    "broadcast_in_dim": moves.broadcast,
    "slice": moves.cut,
    "split": moves.split,
    "unstack": moves.unstack,
    "pad": moves.pad,
    "joined_shards": moves.joined_shards,
    "tile": moves.tile,
    "reduce_sum": moves.reduction,
    "reduce_max": moves.reduction,
    "reduce_min": moves.reduction,
    "reduce_prod": moves.reduction,
    "reduce_and": moves.reduction,
    "reduce_or": moves.reduction,
    "reduce_xor": moves.reduction,
    "argmax": moves.reduction,
    "argmin": moves.reduction,
}
"""Primitives of which parameters come out as they go in, but for their axes."""

_RULES: dict[str, Rule] = {
    "reshape": moves.reshape,
    "concatenate": moves.concatenate,
    "stack": moves.stack,
    "scan": loops.scan,
    "while": loops.loop,
    "cond": loops.branches,
    "shard": loops.shard,
    "all_gather": loops.all_gather,
    "all_gather_invariant": loops.all_gather,
    "dot_general": products.dot_general,
    "ragged_dot_general": products.ragged_dot,
    "conv_general_dilated": products.convolution,
    "gather": lookups.gather,
    "dynamic_slice": lookups.dynamic_slice,
    "dynamic_update_slice": lookups.dynamic_update_slice,
    "reduce_window_sum": moves.same_rank,
    "reduce_window_max": moves.same_rank,
    "reduce_window_min": moves.same_rank,
    "reduce_window": moves.same_rank,
    "scatter": moves.same_rank,
    "scatter-add": moves.same_rank,
    "top_k": moves.same_rank,
}
"""Other primitives through which parameters are followed; the rest see `default`."""


def _rules() -> dict[str, Rule]:
    def watched(rule: Callable[[Operation, list[Facts]], list[Facts]]) -> Rule:
        return lambda _, operation, facts: rule(operation, facts)

    return {**_RULES, **{name: watched(rule) for name, rule in _MOVES.items()}}


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

    def __repr__(self) -> str:
        """Without the operands of the operation, which are half the model."""
        return (
            f"Use({self.kind!r}, {self.axes}, {self.operation}, "
            f"readout={self.readout}, note={self.note!r})"
        )


def uses(graph: Graph, paths: Sequence[str]) -> dict[str, tuple[Use, ...]]:
    """How each parameter is used: different uses, each once.

    Args:
        graph: of a model, whose first inputs are the parameters.
        paths: of the parameters.

    Returns:
        The uses of each path. A parameter that no output needs has none, and so have
        integers and random keys.
    """
    parameters = graph.inputs[: len(paths)]
    walk = Walk([value.shape for value in parameters], _rules(), entries.default)
    inputs = [
        leaf_facts(number, value.shape) if value.is_float else Facts(live=True)
        for number, value in enumerate(parameters)
    ]
    rest = [Facts(live=True)] * (len(graph.inputs) - len(paths))
    returned = Operation("output", graph.outputs, {})
    _end(walk, returned, walk.run(graph, [*inputs, *rest]))
    followed = Backwards(walk.matrices)
    followed.run(graph, [False] * len(graph.outputs))
    gradient = Backwards(set(), frozenset(["stop_gradient"]))
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
            axes, note = axes_of_use(shape, one, groups, shards)
            if leaf in walk.scanned:
                note = ", ".join(filter(None, ("scanned", note)))
        readout = one.last and operation not in passed
        known = different.get((one.kind, axes))
        if known is not None:
            known = known._replace(readout=known.readout and readout)
        use = known or Use(one.kind, axes, operation, readout, note)
        different[one.kind, axes] = use
    return tuple(different.values())
