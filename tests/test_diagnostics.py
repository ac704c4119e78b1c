"""What `diagnostics.collect` finds in the states of real chains."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manifold_optax as mo

SHAPES = {"gap": (8, 4), "deep": {"w": (3, 4, 8)}}


def tree(seed):
    rng = np.random.default_rng(seed)
    is_shape = lambda node: isinstance(node, tuple)
    draw = lambda shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    return jax.tree.map(draw, SHAPES, is_leaf=is_shape)


def solver(learning_rate=0.1):
    return optax.named_chain(
        ("direction", mo.dual_ascent_spectral(steps=0, certify=True)),
        ("learning_rate", optax.scale_by_learning_rate(learning_rate)),
    )


@pytest.fixture(scope="module")
def params():
    return mo.project(tree(0), mo.Stiefel())


def after_one_step(tx, params):
    return jax.jit(tx.update)(tree(1), tx.init(params), params)[1]


def test_numbers_come_by_parameter(params):
    found = mo.diagnostics.collect(after_one_step(solver(), params))
    assert set(found) == {"gap", "tangency"}
    # A parameter that is called like a field is a parameter.
    assert {k: v.shape for k, v in found["gap"].items()} == {"gap": (), "deep/w": (3,)}
    assert all((v >= 0).all() and (v < 0.5).all() for v in found["gap"].values())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.MultiSteps(tx, 1),
        lambda tx: optax.apply_if_finite(tx, 3),
        lambda tx: optax.chain(optax.clip(1.0), tx),
        lambda tx: optax.masked(tx, {"gap": True, "deep": False}),
    ],
    ids=["multi_steps", "apply_if_finite", "chain", "masked"],
)
def test_at_any_depth(params, wrap):
    found = mo.diagnostics.collect(wrap(solver()).init(params))
    assert "gap" in found["gap"]
    assert np.isnan(found["gap"]["gap"])


def test_through_a_partition_and_injected_numbers(params):
    tx = optax.partition(
        {"a": optax.inject_hyperparams(solver)(0.1), "b": solver()},
        {"gap": "a", "deep": {"w": "b"}},
    )
    found = mo.diagnostics.collect(tx.init(params))
    assert set(found["gap"]) == set(found["tangency"]) == {"gap", "deep/w"}


def test_two_reports_on_one_parameter_stay_apart(params):
    tx = optax.chain(solver(), solver())
    found = mo.diagnostics.collect(tx.init(params))
    assert len(found["gap"]) == 4
    assert {"gap", "deep/w"} < set(found["gap"])


def test_a_state_without_numbers_gives_none(params):
    assert mo.diagnostics.collect(optax.adamw(1e-3).init(params)) == {}
