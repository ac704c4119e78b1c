"""States: fixed from `init` on, restorable, and open to Optax's own tools."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from conformance.case import Case, Tree
from conformance.steps import filled, gradients, parameters, steps_of, update_of
from conformance.table import CASES, each_case
from manifold_optax.states import state_digest

ABSTRACT = {
    case.name: jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        case.shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )
    for case in CASES
}


def facts(tree: Tree) -> Tree:
    """Shape, dtype and weakness of every leaf; equal facts compile once."""

    def of_leaf(leaf: Any) -> tuple[Any, ...]:
        return tuple(leaf.shape), str(leaf.dtype), bool(leaf.weak_type)

    return jax.tree.map(of_leaf, tree)


def has_state(case: Case) -> bool:
    return bool(jax.tree.leaves(jax.eval_shape(case.make().init, ABSTRACT[case.name])))


FIXED_FROM_INIT = pytest.mark.promise(
    "State and checkpoints",
    "Structure, shapes and dtypes of a state are fixed from `init`",
    on="every transformation",
)


@FIXED_FROM_INIT
@each_case()
def test_an_abstract_init_tells_the_state(case: Case) -> None:
    tx = case.make()
    abstract = jax.eval_shape(tx.init, ABSTRACT[case.name])
    assert facts(abstract) == facts(tx.init(parameters(case)))


@FIXED_FROM_INIT
@each_case(abstract=True)
def test_an_update_keeps_the_facts_of_the_state(case: Case) -> None:
    tx = case.make()
    state = jax.eval_shape(tx.init, ABSTRACT[case.name])
    _, new = jax.eval_shape(tx.update, ABSTRACT[case.name], state, ABSTRACT[case.name])
    assert facts(new) == facts(state)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))


@pytest.mark.promise(
    "Numbers",
    "Updates of bfloat16 parameters are bfloat16, our averages float32 or what was "
    "asked for",
    on="every transformation",
)
@each_case(abstract=True)
def test_bfloat16_comes_out_as_bfloat16_and_is_kept_in_float32(case: Case) -> None:
    tx = case.make()
    params = filled(case.shapes, 0, jnp.bfloat16)

    def step(params: Tree, gradient: Tree) -> Tree:
        state = tx.init(params)
        updates, new = tx.update(gradient, state, params)
        return updates, optax.apply_updates(params, updates), state, new

    updates, moved, state, new = jax.eval_shape(step, params, params)
    chex.assert_trees_all_equal_dtypes(updates, moved, params)
    assert facts(new) == facts(state)
    # AdamW of `hybrid`'s vectors keeps its averages in the dtype of the parameters.
    model = state["model"] if case.public_name == "muon_clip" else state
    ours = model
    if case.whole_model:
        ours = {k: v for k, v in model.inner_states.items() if k != "other"}
    kept = {leaf.dtype for leaf in jax.tree.leaves(ours)}
    narrow = {"bfloat16", "int8"} if case.narrow else set()
    assert kept <= {jnp.dtype(name) for name in {"float32", "int32"} | narrow}


@pytest.mark.promise(
    "State and checkpoints",
    "Gradients of another dtype than the parameters change no dtype of the state",
    on="every transformation; bfloat16, float16 and float32",
)
@each_case(abstract=True)
def test_bfloat16_gradients_of_float32_parameters(case: Case) -> None:
    tx, params = case.make(), ABSTRACT[case.name]
    halves = filled(case.shapes, 0, jnp.bfloat16)
    state = jax.eval_shape(tx.init, params)
    updates, new = jax.eval_shape(tx.update, halves, state, params)
    assert facts(new) == facts(state)
    if case.retracts:
        chex.assert_trees_all_equal_dtypes(updates, params)


@pytest.mark.promise(
    "State and checkpoints",
    "`optax.tree.map_params` goes over the state",
    on="every transformation",
)
@each_case()
def test_map_params_goes_over_the_state(case: Case) -> None:
    tx = case.make()
    state = tx.init(parameters(case))
    mapped = optax.tree.map_params(tx, lambda leaf: leaf, state)
    chex.assert_trees_all_equal(mapped, state)


@pytest.mark.promise(
    "Faults",
    "A healthy step has no NaN anywhere, also inside: `jax_debug_nans` passes",
    on="every transformation",
)
@each_case()
def test_a_healthy_step_passes_the_check_for_nans(case: Case) -> None:
    params, gradient = parameters(case), gradients(case)
    with jax.debug_nans(True):
        state = case.make().init(params)
        updates, new = update_of(case)(gradient, state, params)
    for leaf in jax.tree.leaves((state, updates, new)):
        assert np.isfinite(leaf).all()


@pytest.mark.promise(
    "State and checkpoints",
    "A state that Orbax restored continues to the bit",
    on="every transformation that has a state",
)
@pytest.mark.parametrize("narrow", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_restored_states_go_on_bitwise(tmp_path: Any, narrow: bool) -> None:
    cases = [c for c in CASES if has_state(c) and c.narrow == narrow]
    trained = {case.name: steps_of(case, 2) for case in cases}
    states = {name: state for name, (_, state, _) in trained.items()}
    # All in one checkpoint: making one takes longer than a step.
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "states", states)
        checkpointer.wait_until_finished()
        target = {
            case.name: jax.eval_shape(case.make().init, ABSTRACT[case.name])
            for case in cases
        }
        restored = checkpointer.restore(tmp_path / "states", target)
    # Orbax commits arrays to a device, for which every update would compile again.
    restored = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), restored)
    assert state_digest(restored) == state_digest(states)
    for case in cases:
        params, state, _ = trained[case.name]
        gradient = gradients(case, 3)
        went_on = update_of(case)(gradient, state, params)
        again = update_of(case)(gradient, restored[case.name], params)
        assert state_digest(again) == state_digest(went_on), case.name
