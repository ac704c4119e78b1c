"""Momentum carried from the state of one optimizer to that of another."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array

from manifold_optax._checks import require_flag
from manifold_optax._typing import ArrayTree
from manifold_optax.transforms import (
    CodedMomentumState,
    CorrectedMomentumState,
    momentum,
    MomentumState,
)
from manifold_optax.trees import is_absent, leaf_path, leaves_by_path

# Each keeps m ← β·m + (1−β)·g from zero on, beside its count: ours read it themselves.
_OURS = (MomentumState, CorrectedMomentumState, CodedMomentumState)
_AVERAGES = (*_OURS, optax.contrib.MuonState, optax.ScaleByAdamState)
_SCHEDULES = (optax.ScaleByScheduleState, optax.InjectStatefulHyperparamsState)


@dataclasses.dataclass(frozen=True)
class _Found:
    """What the old state keeps, by the path of the parameter."""

    first: Mapping[str, Array]
    """Averages of the gradients."""
    second: Mapping[str, Array]
    """Averages of their squares, where the old optimizer was Adam."""
    count: Array
    """Number of steps."""


def momentum_from(
    old_state: ArrayTree, new_state: ArrayTree, *, allow_missing: bool = False
) -> ArrayTree:
    """The state of a new optimizer with the momentum of an old one.

    Carries the averages of the gradients, the second moments of Adam and the count of
    steps, on which bias correction and schedules depend, between the states of
    `mo.momentum` (so of every optimizer of this library with momentum, in any dtype),
    `optax.contrib.muon` and `optax.adam`/`adamw`, in both directions, at any depth:
    in chains, `hybrid`, `optax.partition`, masks, wrappers. All three keep the average
    m ← β·m + (1−β)·g from zero on, so it is carried over as it is. From
    `optax.contrib.muon` to `mo.muon` with equal hyperparameters training continues as
    if nothing had happened. Where β differs, the weights of the first steps sum to
    another number: by (1−β₁ᵗ)/(1−β₂ᵗ), which is below 1 % off after 90 steps at 0.95.

    Everything else stays as `new_state` has it: vectors of power iterations, row
    averages of NorMuon, the micro-batches of `optax.MultiSteps`.

    Args:
        old_state: state of the optimizer that trained so far.
        new_state: `tx.init(params)` of the one that continues, for the same parameters.
        allow_missing: whether parameters for which the old state has no average (or, on
            the way to Adam, no second moment) may begin with that of `new_state`. Since
            Adam's bias correction goes by the common count, the first step of such a
            parameter can be 3 times as long as in a fresh start (at Adam's defaults).

    Returns:
        A tree like `new_state`, of its dtypes; what is narrower is rounded to nearest.

    Raises:
        ValueError: if either state has no average of these kinds, the old one has two
            for a parameter or different counts, or shapes differ; and for parameters
            without an average, unless they are allowed. All name the parameters.

    Example:
        >>> params = {"w": jnp.ones((4, 2))}
        >>> old = optax.adamw(1e-3)
        >>> _, old_state = old.update({"w": jnp.ones((4, 2))}, old.init(params), params)
        >>> new_state = mo.states.momentum_from(old_state, mo.muon(0.02).init(params))
        >>> print(new_state["momentum"].count, new_state["momentum"].average["w"][0])
        1 [0.1 0.1]
    """
    require_flag("allow_missing", allow_missing)
    found = _find(old_state)
    missing: list[str] = []

    def carried(node: Any) -> Any:
        if isinstance(node, optax.InjectStatefulHyperparamsState):
            counted = jax.tree.map(_counted(found), node.hyperparams_states)
            inner = walk(node.inner_state)
            return node._replace(
                count=found.count, hyperparams_states=counted, inner_state=inner
            )
        if isinstance(node, optax.ScaleByScheduleState):
            return node._replace(count=found.count)
        return _filled(node, found, missing) if isinstance(node, _AVERAGES) else node

    def walk(tree: ArrayTree) -> ArrayTree:
        return jax.tree.map(carried, tree, is_leaf=_is_known)

    if not _averages(new_state):
        raise ValueError(_no_average("new"))
    result = walk(new_state)
    if missing and not allow_missing:
        raise ValueError(
            "The old state has nothing to carry over for these parameters: "
            f"{', '.join(missing)}. Give them the optimizer that they had, or let them "
            "begin anew: allow_missing=True."
        )
    return result


def momentum_to(state: ArrayTree, dtype: Any) -> ArrayTree:
    """The state of an optimizer with its momentum kept in another dtype.

    It is the state of the same optimizer with `momentum(…, dtype=dtype)`: counts, row
    averages and all else stay as they are. A narrower dtype rounds to nearest, a wider
    one keeps every bit, so that the way to `None` and back changes nothing.

    Args:
        state: state with `mo.momentum` inside, at any depth.
        dtype: as for `momentum`.

    Returns:
        A tree like `state` but for the states of momentum.

    Raises:
        ValueError: if there is no state of `mo.momentum` inside.
        TypeError: for a dtype that `momentum` does not take.

    Example:
        >>> params = {"w": jnp.ones((4, 2))}
        >>> small = mo.states.momentum_to(mo.muon(0.02).init(params), "int8")
        >>> tx = mo.muon(0.02, momentum=mo.Average(0.95, dtype="int8"))
        >>> mo.states.check_state_format(mo.states.state_format(small), tx.init(params))
    """
    is_ours = lambda node: isinstance(node, _OURS)
    wanted = momentum(0.0, dtype=dtype)

    def converted(node: Any) -> Any:
        if not is_ours(node):
            return node
        average = node.read()
        new: Any = wanted.init(average)
        return new.written(average)._replace(count=node.count)

    if not any(map(is_ours, jax.tree.leaves(state, is_leaf=is_ours))):
        raise ValueError(
            "The state has no average of mo.momentum. That of optax.contrib.muon or "
            "Adam is carried over by mo.states.momentum_from(old_state, new_state)."
        )
    return jax.tree.map(converted, state, is_leaf=is_ours)


def _is_known(node: Any) -> bool:
    return isinstance(node, (*_AVERAGES, *_SCHEDULES))


def _averages(state: ArrayTree) -> list[Any]:
    """The states of momentum inside a state."""
    is_average = lambda node: isinstance(node, _AVERAGES)
    return [
        node for node in jax.tree.leaves(state, is_leaf=is_average) if is_average(node)
    ]


def _no_average(which: str) -> str:
    return (
        f"The {which} state has no average that can be carried over, which is that of "
        "mo.momentum, optax.contrib.muon, optax.adam or optax.adamw. (optax.trace "
        "keeps a sum: multiply it by 1 − its decay.)"
    )


def _find(state: ArrayTree) -> _Found:
    nodes = _averages(state)
    if not nodes:
        raise ValueError(_no_average("old"))
    first: dict[str, Array] = {}
    second: dict[str, Array] = {}
    for node in nodes:
        for path, leaf in _present(_first(node)).items():
            if path in first:
                raise ValueError(
                    f"The old state has two averages for the parameter {path!r}; give "
                    "that part of it which holds the one to carry over."
                )
            first[path] = leaf
        if isinstance(node, optax.ScaleByAdamState):
            second |= _present(node.nu)
    counts = [node.count for node in nodes]
    known = {int(np.max(c)) for c in counts if not isinstance(c, Tracer)}
    if len(known) > 1:
        raise ValueError(
            f"The parts of the old state have made {sorted(known)} steps; only one "
            "count can be carried over. Give the parts one by one."
        )
    return _Found(first, second, jnp.asarray(counts[0], jnp.int32))


def _first(node: Any) -> ArrayTree:
    """The average of the gradients in a state of momentum."""
    return node.read() if isinstance(node, _OURS) else node.mu


def _present(tree: ArrayTree) -> dict[str, Array]:
    leaves = leaves_by_path(tree)
    # A checkpoint may have been restored as arrays of NumPy.
    return {p: jnp.asarray(leaf) for p, leaf in leaves.items() if not is_absent(leaf)}


def _counted(found: _Found) -> Any:
    """Counts of the schedules of `optax.inject_hyperparams`; other leaves stay."""

    def count(leaf: Any) -> Any:
        is_count = leaf.shape == () and leaf.dtype == jnp.int32
        return found.count if is_count else leaf

    return count


def _filled(node: Any, found: _Found, missing: list[str]) -> Any:
    """A state of momentum with the averages of the old one."""
    adam = isinstance(node, optax.ScaleByAdamState)

    def take(source: Mapping[str, Array], tree: ArrayTree) -> ArrayTree:
        def one(keys: Any, leaf: Any) -> Any:
            if is_absent(leaf):
                return leaf
            path = leaf_path(keys)
            # Adam divides by the second moment: without it, the first is of no use.
            if path not in found.first or (adam and path not in found.second):
                missing.extend([repr(path)] if source is found.first else [])
                return leaf
            return _like(source[path], leaf, path)

        return jax.tree_util.tree_map_with_path(one, tree, is_leaf=is_absent)

    average = take(found.first, _first(node))
    if isinstance(node, _OURS):
        return node.written(average)._replace(count=found.count)
    fields = {"count": found.count, "mu": average}
    if adam:
        fields["nu"] = take(found.second, node.nu)
    return node._replace(**fields)


def _like(leaf: Array, wanted: Any, path: str) -> Array:
    if leaf.shape != wanted.shape:
        raise ValueError(
            f"The average of the parameter {path!r} has shape {tuple(leaf.shape)} in "
            f"the old state and {tuple(wanted.shape)} in the new one; both optimizers "
            "must be of the same parameters."
        )
    return jnp.asarray(leaf, wanted.dtype)
