"""Momentum carried from Optax's optimizers to ours and back."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manifold_optax as mo
from manifold_optax.states import momentum_from

SHAPES = {"up": {"kernel": (6, 4), "bias": (4,)}, "embed": {"embedding": (5, 6)}}
MATRICES = mo.roles({"kernel": mo.STACKED, "embedding": "embedding", "bias": "vector"})


def gaussian(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    draw = lambda shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    return jax.tree.map(draw, SHAPES, is_leaf=lambda node: isinstance(node, tuple))


def ours(rate: Any = 0.02) -> Any:
    # Optax's AdamW of Muon looks one step ahead.
    adamw = optax.adamw(rate, nesterov=True)
    return mo.hybrid(mo.muon(rate), others=adamw, labels=MATRICES)


def theirs(rate: Any = 0.02) -> Any:
    is_kernel = lambda keys, _: keys[-1].key == "kernel"

    def axes(params: Any) -> Any:
        named = jax.tree_util.tree_map_with_path(is_kernel, params)
        axes = optax.contrib.MuonDimensionNumbers()
        return jax.tree.map(lambda kernel: axes if kernel else None, named)

    return optax.contrib.muon(
        rate, adam_weight_decay=1e-4, muon_weight_dimension_numbers=axes
    )


def train(tx: Any, params: Any, state: Any, seeds: range) -> tuple[Any, Any]:
    update = jax.jit(tx.update)
    for seed in seeds:
        updates, state = update(gaussian(seed), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


SCHEDULE = optax.linear_schedule(0.1, 0.0, 10)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.02, SCHEDULE], ids=["number", "schedule"])
@pytest.mark.parametrize("there", [True, False], ids=["to ours", "to Optax's"])
def test_training_goes_on_as_if_nothing_had_happened(rate: Any, there: bool) -> None:
    one, other = (theirs(rate), ours(rate)) if there else (ours(rate), theirs(rate))
    start = gaussian(0)
    params, state = train(one, start, one.init(start), range(1, 4))
    wanted, _ = train(one, params, state, range(4, 7))
    carried: Any = momentum_from(state, other.init(params))
    found, _ = train(other, params, carried, range(4, 7))
    # Three steps of up to 0.1: their polynomials are rounded differently, see
    # `test_equals_optax`, times the rate.
    chex.assert_trees_all_close(found, wanted, rtol=0, atol=1e-6)
    anew, _ = train(other, params, other.init(params), range(4, 7))
    assert max(jax.tree.leaves(jax.tree.map(_distance, anew, wanted))) > 1e-2


def _distance(one: Any, other: Any) -> float:
    return float(jnp.abs(one - other).max())


def new(tx: Any) -> Any:
    """Its first state, in NumPy: `init` would compile a program for each shape."""
    shapes = jax.eval_shape(tx.init, gaussian(0))
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def after_seven_steps(tx: Any) -> Any:
    """A state with averages that can be told apart."""

    def fill(leaf: Any) -> Any:
        numbers = np.arange(1, leaf.size + 1, dtype=leaf.dtype).reshape(leaf.shape)
        return numbers if leaf.ndim else leaf + 7

    return jax.tree.map(fill, new(tx))


def test_every_average_and_count_is_carried_both_ways() -> None:
    state, fresh = after_seven_steps(theirs(SCHEDULE)), new(ours(SCHEDULE))
    carried: Any = momentum_from(state, fresh)
    chex.assert_trees_all_equal_shapes_and_dtypes(carried, fresh)
    muon, adam = (state.inner_states[name].inner_state for name in ("muon", "adam"))
    matrix, other = (
        carried.inner_states[name].inner_state for name in ("matrix", "other")
    )
    average = matrix["momentum"].average["up"]["kernel"]
    np.testing.assert_array_equal(average, muon[0].mu["up"]["kernel"])
    chex.assert_trees_all_equal(other, adam)
    assert matrix["momentum"].count == matrix["scale_by_learning_rate"].count == 7
    # Back comes all but the coefficients, which are those of the new optimizer.
    fresh = new(theirs(SCHEDULE))
    back: Any = momentum_from(carried, fresh)
    back = back.inner_states
    chex.assert_trees_all_equal(back["adam"], state.inner_states["adam"])
    coefficients = fresh.inner_states["muon"].inner_state[0].ns_coeffs
    wanted = muon[0]._replace(ns_coeffs=coefficients)
    chex.assert_trees_all_equal(back["muon"].inner_state[0], wanted)


def test_adamw_of_the_whole_model_becomes_a_hybrid() -> None:
    state = after_seven_steps(optax.adamw(1e-3))
    fresh = new(optax.chain(optax.clip_by_global_norm(1.0), ours()))
    carried: Any = momentum_from(state, fresh)
    partition = carried[1].inner_states
    average = partition["matrix"].inner_state["momentum"].average["up"]["kernel"]
    np.testing.assert_array_equal(average, state[0].mu["up"]["kernel"])
    moments = partition["other"].inner_state[0]
    np.testing.assert_array_equal(
        moments.nu["embed"]["embedding"], state[0].nu["embed"]["embedding"]
    )
    # One step by the formula of the average in float64, debiased by the count that was
    # carried over.
    gradient = gaussian(3)["up"]["kernel"]
    g, m = np.asarray(gradient, np.float64), np.asarray(average, np.float64)
    m = 0.95 * m + 0.05 * g
    expected = 0.95 * m / (1 - 0.95**9) + 0.05 * g / (1 - 0.95**8)
    link = mo.momentum(0.95, debias=True)
    kept = partition["matrix"].inner_state["momentum"]
    found: Any
    found, _ = link.update({"w": gradient}, kept._replace(average={"w": average}))
    # 1 − βᵗ is a difference, whose rounding counts twofold: units of 6e-8 of entries
    # up to 60.
    np.testing.assert_allclose(found["w"], expected, rtol=2e-6)


@pytest.mark.slow
def test_injected_rates_go_on_with_their_schedule() -> None:
    params = {"w": jnp.ones((4, 2))}
    adamw = optax.adamw(1e-3)
    _, state = adamw.update(params, adamw.init(params), params)
    tx: Any = optax.inject_hyperparams(mo.muon)(SCHEDULE)
    carried: Any = momentum_from(state, tx.init(params))
    after: Any
    _, after = tx.update(params, carried, params)
    # The second rate of the schedule, rounded once.
    np.testing.assert_allclose(
        after.hyperparams["learning_rate"], SCHEDULE(1), rtol=1e-6
    )
    assert after.inner_state["momentum"].count == 2


def test_it_may_be_compiled_and_keeps_the_new_dtypes() -> None:
    params = {"w": jnp.ones((4, 2), jnp.bfloat16)}
    state = optax.adamw(1e-3).init(params)
    fresh = mo.muon(0.02).init(params)
    carried = jax.jit(momentum_from)(state, fresh)
    chex.assert_trees_all_equal_shapes_and_dtypes(carried, fresh)


def test_what_has_no_average_is_named_unless_allowed() -> None:
    # Muon has no second moments, which AdamW of the embedding needs.
    state, fresh = after_seven_steps(optax.contrib.muon(0.02)), new(ours())
    with pytest.raises(ValueError, match=r"parameters: 'embed/embedding'\. .*anew"):
        momentum_from(state, fresh)
    carried: Any = momentum_from(state, fresh, allow_missing=True)
    moments = carried.inner_states["other"].inner_state[0]
    assert not moments.mu["embed"]["embedding"].any()
    assert not moments.nu["embed"]["embedding"].any()
    assert moments.nu["up"]["bias"].all()


MUON: Any = mo.muon(0.02).init({"w": jnp.ones((4, 2))})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (optax.sgd(0.1, 0.9), MUON, "The old state has no average.*optax.trace"),
        (mo.muon(0.1), (), "The new state has no average"),
        (
            optax.chain(optax.adam(0.1), optax.adam(0.1)),
            MUON,
            "two averages for the parameter 'w'",
        ),
        (
            mo.muon(0.1),
            mo.muon(0.02).init({"w": jnp.ones((2, 4))}),
            r"'w' has shape \(4, 2\) in the old state and \(2, 4\)",
        ),
        (
            mo.muon(0.1),
            mo.muon(0.02).init({"v": jnp.ones((4, 2))}),
            "these parameters: 'v'",
        ),
    ],
    ids=["sum", "nothing", "two", "shapes", "names"],
)
def test_states_that_do_not_belong_together(old: Any, new: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        momentum_from(old.init({"w": jnp.ones((4, 2))}), new)


def test_different_counts_are_refused() -> None:
    other = MUON["momentum"]._replace(count=jnp.asarray(3), average={"v": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"made \[0, 3\] steps"):
        momentum_from((MUON, other), MUON)
