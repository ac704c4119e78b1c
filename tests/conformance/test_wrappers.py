"""Inside the wrappers of Optax every transformation does what it does alone."""

import re
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import manifold_optax as mo
from conformance.case import Case, ROUNDING, Tree, Tx
from conformance.steps import gradients, parameters, update_of
from conformance.table import each_case


def assert_close(found: Tree, expected: Tree) -> None:
    chex.assert_trees_all_close(found, expected, rtol=ROUNDING, atol=ROUNDING)


def alone(case: Case, gradient: Tree) -> tuple[Tree, Tree]:
    """The first update, and the state after it."""
    params = parameters(case)
    return update_of(case)(gradient, case.make().init(params), params)


def injected(case: Case) -> Tx:
    """The transformation with all of its numbers in its state."""
    static = [name for name, value in case.arguments.items() if name == "steps"]
    return case.make(optax.inject_hyperparams(case.factory, static_args=static))


@each_case(lambda case: bool(case.numbers))
def test_all_numbers_may_be_injected(case: Case) -> None:
    tx, params, gradient = injected(case), parameters(case), gradients(case)
    state = jax.eval_shape(tx.init, params)
    assert set(state.hyperparams) == set(case.numbers)
    updates, _ = jax.eval_shape(tx.update, gradient, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, gradient)


@pytest.mark.promise(
    "Wrappers and frameworks",
    "`inject_hyperparams` gives the same update",
    on="every transformation",
)
@each_case(lambda case: bool(case.numbers), compiles=True)
def test_injected_numbers_give_the_same_update(case: Case) -> None:
    tx, params, gradient = injected(case), parameters(case), gradients(case)
    state = jax.jit(tx.init)(params)
    updates, state = jax.jit(tx.update)(gradient, state, params)
    assert_close((updates, state.inner_state), alone(case, gradient))


@pytest.mark.parametrize("factory", [mo.dual_ascent_spectral, mo.manifold_muon])
def test_injected_steps_are_an_error_that_says_what_to_do(
    factory: Callable[..., Tx], unhooked: None
) -> None:
    numbers = {} if factory is mo.dual_ascent_spectral else {"learning_rate": 0.1}
    tx = optax.inject_hyperparams(factory)(**numbers, steps=2)
    with pytest.raises(TypeError, match=r"static_args=\('steps',\)"):
        tx.init({"w": jnp.ones((8, 2))})


@pytest.mark.promise(
    "Wrappers and frameworks",
    "`partition` leaves the leaves of others alone",
    on="every transformation of matrices",
)
@each_case(lambda case: not case.names_leaves, compiles=True)
def test_partition_leaves_the_masked_leaves_alone(case: Case) -> None:
    rules = {"first|second": "ours"}
    tx = optax.partition(
        {"ours": case.make(), "rest": optax.sgd(1.0)},
        mo.roles(rules, default="rest"),
    )
    params, gradient = parameters(case), gradients(case)
    updates, _ = jax.jit(tx.update)(gradient, tx.init(params), params)
    expected, _ = alone(case, gradient)
    for name in gradient:
        ours = name in ("first", "second")
        wanted = expected[name] if ours else jax.tree.map(jnp.negative, gradient[name])
        assert_close(updates[name], wanted)


@pytest.mark.promise(
    "Wrappers and frameworks",
    "`MultiSteps` takes the step of the mean gradient",
    on="every transformation",
)
@each_case(compiles=True)
def test_multi_steps_emit_nothing_and_then_the_mean(case: Case) -> None:
    tx = optax.MultiSteps(case.make(), every_k_schedule=2).gradient_transformation()
    update = jax.jit(tx.update)
    params = parameters(case)
    first, second = gradients(case, 1), gradients(case, 2)
    silent, state = update(first, tx.init(params), params)
    chex.assert_trees_all_equal(silent, jax.tree.map(jnp.zeros_like, params))
    emitted, state = update(second, state, params)
    mean = jax.tree.map(lambda x, y: x + (y - x) / 2, first, second)
    assert_close((emitted, state.inner_opt_state), alone(case, mean))


@pytest.mark.promise(
    "Faults",
    "`optax.apply_if_finite` skips a step with NaN or infinity whole, "
    "counts it, and momentum keeps its bits",
    on="every transformation",
)
@each_case(compiles=True)
def test_apply_if_finite_protects_the_state(case: Case) -> None:
    tx: Any = optax.apply_if_finite(case.make(), max_consecutive_errors=3)
    update = jax.jit(tx.update)
    params, good = parameters(case), gradients(case)
    kernel = good["first"]["kernel"]
    state = start = tx.init(params)
    for count, bad in enumerate(
        (
            kernel.at[1, 1].set(jnp.nan),
            kernel.at[0, 1].set(jnp.inf),
            jnp.full_like(kernel, -jnp.inf),
        ),
        start=1,
    ):
        updates, state = update(good | {"first": {"kernel": bad}}, state, params)
        moved = optax.apply_updates(params, updates)
        chex.assert_trees_all_equal(moved, params)
        chex.assert_trees_all_equal(state.inner_state, start.inner_state)
        seen = int(state.notfinite_count), int(state.total_notfinite)
        assert seen == (count, count)
    updates, state = update(good, state, params)
    assert_close((updates, state.inner_state), alone(case, good))
    assert (int(state.notfinite_count), int(state.total_notfinite)) == (0, 3)


@pytest.mark.promise(
    "Wrappers and frameworks",
    "Extra arguments for other links are ignored",
    on="every transformation",
)
@each_case()
def test_unknown_extra_arguments_are_ignored(case: Case) -> None:
    tx, params, gradient = case.make(), parameters(case), gradients(case)
    state = tx.init(params)

    def program(**extra: object) -> str:
        update = lambda *trees: tx.update(*trees, **extra)
        text = str(jax.make_jaxpr(update)(gradient, state, params))
        # JAX 0.7 prints the rules of derivatives with their addresses.
        return re.sub(r"0x[0-9a-f]+", "", text)

    assert program(value=1.0, max_logits={"attention": params}) == program()


@pytest.mark.promise(
    "Faults",
    "Missing parameters are an error that says what to pass",
    on="every transformation",
)
@each_case(lambda case: case.needs_params)
def test_missing_parameters_are_an_error_that_says_so(
    case: Case, unhooked: None
) -> None:
    tx, gradient = case.make(), gradients(case)
    state = tx.init(parameters(case))
    with pytest.raises(ValueError, match=r"params"):
        jax.eval_shape(lambda: tx.update(gradient, state))


@each_case(lambda case: not case.needs_params)
def test_parameters_may_be_missing(case: Case) -> None:
    tx, gradient = case.make(), gradients(case)
    state = tx.init(parameters(case))
    shapes, _ = jax.eval_shape(lambda: tx.update(gradient, state))
    chex.assert_trees_all_equal_shapes_and_dtypes(shapes, gradient)


@pytest.mark.promise(
    "Wrappers and frameworks",
    "`optax.contrib.schedule_free` takes the steps of what it wraps",
    on="Muon, sign descent",
)
@pytest.mark.slow
@pytest.mark.parametrize("make", [mo.muon, mo.sign_descent])
def test_schedule_free_takes_the_steps_of_what_it_wraps(
    make: Callable[..., Tx],
) -> None:
    params = {"w": jnp.eye(6, 3) + 0.1}
    gradient = {"w": jnp.arange(18.0).reshape(6, 3) - 7}
    inner = make(0.1, momentum=None)
    tx: Any = optax.contrib.schedule_free(inner, learning_rate=0.1)
    _, state = jax.jit(tx.update)(gradient, tx.init(params), params)
    expected, _ = jax.jit(inner.update)(gradient, inner.init(params), params)
    assert_close(jax.tree.map(jnp.subtract, state.z, params), expected)
