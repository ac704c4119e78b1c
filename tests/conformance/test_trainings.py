"""Trained in other ways that should not matter, every optimizer ends in the same place.

And in bfloat16 it trains float32 parameters.
"""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from conformance.case import Case, ROUNDING, Tree
from conformance.steps import gradients, on_manifold, parameters
from conformance.table import CASES
from conformance.training import examples, is_optimizer, loss, STEPS, trained

# A gradient that is summed in another order differs by some float32 units; directions
# and three steps amplify that as `ROUNDING` says, tenfold at worst.
REORDERED = 10 * ROUNDING


def nightly(
    keep: Callable[[Case], bool], gate: tuple[str, ...] = ()
) -> pytest.MarkDecorator:
    """Parametrizes over the cases that `keep` keeps; those named run in the gate."""

    def marks(case: Case) -> list[pytest.MarkDecorator]:
        return [] if case.name in gate else [pytest.mark.slow]

    chosen = [pytest.param(c, id=c.name, marks=marks(c)) for c in CASES if keep(c)]
    return pytest.mark.parametrize("case", chosen)


def assert_ends_alike(found: Tree, expected: Tree) -> None:
    chex.assert_trees_all_close(found, expected, rtol=REORDERED, atol=REORDERED)


@functools.cache
def reference(case: Case) -> tuple[Tree, Tree]:
    return trained(case)


@pytest.mark.promise(
    "Wrappers and frameworks",
    "Gradients accumulated by `optax.MultiSteps` train as the large batch does",
    on="every optimizer",
)
@nightly(is_optimizer)
def test_accumulated_gradients_train_as_the_large_batch(case: Case) -> None:
    tx = optax.MultiSteps(case.make(), every_k_schedule=4).gradient_transformation()

    @jax.jit
    def step(params: Tree, state: Tree, x: jax.Array) -> tuple[Tree, Tree]:
        updates, state = tx.update(jax.grad(loss)(params, x), state, params)
        return optax.apply_updates(params, updates), state

    params = parameters(case)
    state: Any = tx.init(params)
    for _ in range(STEPS):
        for part in jnp.split(examples(), 4):
            params, state = step(params, state, part)
    assert_ends_alike((params, state.inner_opt_state), reference(case))


@pytest.mark.promise(
    "Wrappers and frameworks",
    "`jax.checkpoint` changes nothing",
    on="every optimizer",
)
@nightly(is_optimizer)
def test_rematerialized_gradients_train_alike(case: Case) -> None:
    assert_ends_alike(trained(case, jax.checkpoint(loss)), reference(case))


@pytest.mark.promise(
    "Wrappers and frameworks",
    "A training inside `lax.scan` with donated buffers ends alike",
    on="every optimizer",
)
@nightly(is_optimizer)
def test_a_training_inside_scan_with_donated_buffers_ends_alike(case: Case) -> None:
    tx = case.make()

    def step(carry: Tree, x: jax.Array) -> tuple[Tree, None]:
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, x), state, params)
        return (optax.apply_updates(params, updates), state), None

    train = jax.jit(functools.partial(jax.lax.scan, step), donate_argnums=0)
    params = parameters(case)
    start = params, tx.init(params)
    found, _ = train(start, jnp.stack([examples()] * STEPS))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(start))
    assert_ends_alike(found, reference(case))


@pytest.mark.promise(
    "Wrappers and frameworks",
    "A model that computes in bfloat16 trains float32 parameters, with a float32 state",
    on="every optimizer; on the manifold where there is one",
)
@nightly(is_optimizer)
def test_bfloat16_computes_and_float32_is_trained(case: Case) -> None:
    def in_bfloat16(params: Tree, x: jax.Array) -> jax.Array:
        halves = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (params, x))
        return loss(*halves).astype(jnp.float32)

    start = parameters(case)
    params, state = trained(case, in_bfloat16)
    chex.assert_trees_all_equal_shapes_and_dtypes(params, start)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, case.make().init(start))
    if case.retracts:
        landed = jax.tree.map(functools.partial(on_manifold, case.manifold), params)
        # The retraction computes in float32, whatever made the gradients: some units.
        chex.assert_trees_all_close(params, landed, rtol=0, atol=2e-6)
    moved, expected = difference(params, start), difference(reference(case)[0], start)
    # bfloat16 has 8 bits: gradients are off by per cents, and so are the steps.
    assert np.dot(moved, expected) > 0.9 * np.linalg.norm(moved) * np.linalg.norm(
        expected
    )


def difference(params: Tree, start: Tree) -> np.ndarray:
    """The way from the start, as one vector."""
    parts = jax.tree.map(lambda x, y: np.ravel(np.asarray(x - y)), params, start)
    return np.concatenate(jax.tree.leaves(parts))


@pytest.mark.promise(
    "Wrappers and frameworks",
    "`optax.masked` passes what is not masked",
    on="every transformation that names no leaves",
)
@nightly(lambda case: not case.names_leaves)
def test_masked_passes_what_is_not_its_own(case: Case) -> None:
    params, gradient = parameters(case), gradients(case)
    ours = {"first": gradient["first"], "second": gradient["second"]}
    mask = {name: name in ours for name in gradient}
    tx = optax.masked(case.make(), mask)
    updates, _ = jax.jit(tx.update)(gradient, tx.init(params), params)
    alone, few = case.make(), {name: params[name] for name in ours}
    expected, _ = jax.jit(alone.update)(ours, alone.init(few), few)
    for name in gradient:
        wanted = expected[name] if name in ours else gradient[name]
        chex.assert_trees_all_close(updates[name], wanted, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.promise(
    "Wrappers and frameworks",
    "`optax.tree.get` and `set` reach every field of a state",
    on="every optimizer",
)
@nightly(is_optimizer, gate=("muon", "hybrid"))
def test_optax_gets_and_sets_every_field_of_a_state(case: Case) -> None:
    state = case.make().init(parameters(case))
    paths = [keys for keys, _ in jax.tree_util.tree_leaves_with_path(state)]
    # Of a state of ours or of Optax; a mapping of names is Optax's `named_chain`.
    fields = {
        key.name
        for keys in paths
        for key in keys
        if isinstance(key, jax.tree_util.GetAttrKey)
    }
    assert fields
    for field in fields:
        found = optax.tree.get_all_with_path(state, field)
        assert found
        changed = optax.tree.set(state, **{field: "changed"})
        kept = optax.tree.get_all_with_path(changed, field)
        assert [value for _, value in kept] == ["changed"] * len(found)
        # Only the field was changed, so that setting it back gives the state again.
        for path, value in found:
            at = lambda where, _value, path=path: where == path
            changed = optax.tree.set(changed, at, **{field: value})
        chex.assert_trees_all_equal(changed, state)


@pytest.mark.promise(
    "Wrappers and frameworks",
    "A rate that is set under `optax.inject_hyperparams` is the rate",
    on="every optimizer without weight decay",
)
@nightly(lambda case: is_optimizer(case) and not case.decays)
def test_an_injected_rate_that_is_set_is_the_rate(case: Case) -> None:
    static = [name for name, value in case.arguments.items() if name == "steps"]
    factory = optax.inject_hyperparams(case.factory, static_args=static)
    tx, params, gradient = case.make(factory), parameters(case), gradients(case)
    state: Any = tx.init(params)
    assert float(optax.tree.get(state, "learning_rate")) == pytest.approx(0.1)
    state = optax.tree.set(state, learning_rate=jnp.float32(0.0))
    updates, _ = jax.jit(tx.update)(gradient, state, params)
    # Vectors of whole models have an optimizer of their own, with its own rate.
    matrices = [leaf for leaf in jax.tree.leaves(updates) if leaf.ndim > 1]
    none = [jnp.zeros_like(leaf) for leaf in matrices]
    chex.assert_trees_all_close(matrices, none, rtol=0, atol=ROUNDING)
