"""muon gives the updates of optax.contrib.muon; sign_descent is what it says."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manifold_optax as mo
import oracles

Axes = optax.contrib.MuonDimensionNumbers
EPS = float(np.finfo(np.float32).eps)

LEAVES = {
    "square": ((16, 16), Axes(0, 1)),
    "wide": ((8, 24), Axes(0, 1)),
    "tall": ((24, 8), Axes(0, 1)),
    "layers_last": ((12, 8, 3), Axes(0, 1)),
    "conv": ((3, 3, 4, 8), Axes((0, 1, 2), 3)),
    "queries": ((12, 3, 4), Axes(0, (1, 2))),
}
FEW = ("wide", "conv")


def gaussian(names, seed):
    rng = np.random.default_rng(seed)
    shapes = {name: LEAVES[name][0] for name in names}
    leaves = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    return {name: jnp.asarray(leaf, jnp.float32) for name, leaf in leaves.items()}


def trajectory(tx, params, grads):
    """Updates of every step, with the parameters following them."""
    update, state, updates = jax.jit(tx.update), tx.init(params), []
    for grad in grads:
        update_tree, state = update(grad, state, params)
        params = optax.apply_updates(params, update_tree)
        updates.append(update_tree)
    return updates


@pytest.mark.promise(
    "Numbers",
    "`mo.muon` equals `optax.contrib.muon` where both are defined",
    on="float32",
)
@pytest.mark.parametrize(
    ("names", "ours", "theirs"),
    [
        (tuple(LEAVES), {}, {}),
        pytest.param(
            FEW, {"nesterov": False}, {"nesterov": False}, marks=pytest.mark.slow
        ),
        pytest.param(
            FEW,
            {"momentum": 0.5, "weight_decay": 0.1},
            {"beta": 0.5, "weight_decay": 0.1},
            marks=pytest.mark.slow,
        ),
        (
            FEW,
            {"schedule": mo.linalg.YOU, "scale": "rms"},
            {"ns_coeffs": mo.linalg.YOU, "consistent_rms": 0.2},
        ),
    ],
    ids=["default", "plain", "decays", "you_rms"],
)
def test_equals_optax(names, ours, theirs, measured):
    axes = {name: LEAVES[name][1] for name in names}
    expected = optax.contrib.muon(1.0, muon_weight_dimension_numbers=axes, **theirs)
    tx = mo.muon(1.0, axes=mo.roles(axes), **ours)
    params = gaussian(names, seed=0)
    grads = [gaussian(names, seed) for seed in range(1, 11)]
    steps = zip(
        trajectory(tx, params, grads), trajectory(expected, params, grads), strict=True
    )
    for found, wanted in steps:
        for name in names:
            # The 1e-5: entries are below 2, and two roundings of products of
            # steep polynomials part them (seen: 1.4e-6).
            measured(np.abs(found[name] - wanted[name]).max(), at_most=1e-5)


@pytest.mark.parametrize(
    ("rule", "shape", "factor"),
    [
        ("none", (8, 24), 1.0),
        ("width", (8, 24), np.sqrt(3)),
        ("width", (24, 8), 1.0),
        ("spectral", (8, 24), np.sqrt(3)),
        ("spectral", (24, 8), np.sqrt(1 / 3)),
        ("rms", (24, 8), 0.2 * np.sqrt(24)),
    ],
)
def test_one_step_against_the_oracle(rule, shape, factor):
    # A Flax kernel [fan_in, fan_out].
    rng = np.random.default_rng(0)
    w, g = rng.standard_normal((2, *shape))
    params = {"w": jnp.asarray(w, jnp.float32)}
    tx: Any = mo.muon(0.1, scale=rule, weight_decay=0.5)
    updates, _ = tx.update({"w": jnp.asarray(g, jnp.float32)}, tx.init(params), params)
    direction = factor * oracles.newton_schulz(g, mo.linalg.JORDAN)
    # As newton_schulz against its oracle, times 0.1 (seen: 2e-7).
    expected = -0.1 * (direction + 0.5 * w)
    np.testing.assert_allclose(updates["w"], expected, atol=16 * EPS)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("debias", [False, True])
def test_momentum_against_the_oracle(nesterov, debias):
    grads = np.random.default_rng(0).standard_normal((6, 5, 3))
    tx = mo.momentum(0.9, nesterov=nesterov, debias=debias)
    params = {"w": jnp.zeros((5, 3))}
    state, update = tx.init(params), jax.jit(tx.update)
    expected = oracles.muon_momentum(list(grads), 0.9, nesterov, debias)
    for grad, wanted in zip(grads, expected, strict=True):
        updates, state = update({"w": jnp.asarray(grad, jnp.float32)}, state)
        # 1 - 0.9^t is a difference: its rounding counts tenfold (seen: 8 eps).
        np.testing.assert_allclose(updates["w"], wanted, atol=40 * EPS)


def test_momentum_of_muon_is_optax_s():
    # The identity as polynomial only normalises: the momentum shows.
    tx = mo.muon(1.0, schedule=((1.0, 0.0, 0.0),), scale="none")
    params = {"w": jnp.zeros((5, 3))}
    state, update = tx.init(params), jax.jit(tx.update)
    grads = np.random.default_rng(0).standard_normal((6, 5, 3))
    for grad, average in zip(
        grads, oracles.muon_momentum(list(grads), 0.95), strict=True
    ):
        updates, state = update({"w": jnp.asarray(grad, jnp.float32)}, state, params)
        # 1 - 0.95^t is a difference: its rounding counts twentyfold (seen: 4 eps).
        expected = -average / np.linalg.norm(average)
        np.testing.assert_allclose(updates["w"], expected, atol=40 * EPS)


@pytest.mark.parametrize("momentum", [None, 0.5])
def test_sign_descent(momentum):
    rng = np.random.default_rng(0)
    w, grads = rng.standard_normal((4, 3)), list(rng.standard_normal((5, 4, 3)))
    grads[2][1] = 0
    tx: Any = mo.sign_descent(0.125, momentum=momentum, weight_decay=0.5)
    params = {"w": jnp.asarray(w, jnp.float32)}
    state = tx.init(params)
    averages = grads
    if momentum is not None:
        averages = oracles.muon_momentum(grads, momentum, nesterov=False, debias=False)
    for grad, average in zip(grads, averages, strict=True):
        updates, state = tx.update({"w": jnp.asarray(grad, jnp.float32)}, state, params)
        # Signs are exact; the decay is rounded twice.
        expected = -0.125 * (np.sign(average) + 0.5 * w)
        np.testing.assert_allclose(updates["w"], expected, rtol=4 * EPS, atol=EPS)
