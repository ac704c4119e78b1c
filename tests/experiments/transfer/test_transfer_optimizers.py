"""Directions times factors are the library's optimizers."""

from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manifold_optax as mo
from manifold_optax.experiments.transfer import optimizers
from manifold_optax.experiments.transfer.networks import Network

RATE = 0.0625
PERCEPTRON = Network("residual", width=48, depth=2, inputs=12, outputs=5)
TRANSFORMER = Network("transformer", width=32, depth=2, inputs=7, outputs=7)


def _name(rule):
    return cast("optimizers.OptimizerName", f"muon_{rule}")


def _inputs(network):
    if network.family == "transformer":
        return jnp.arange(10, dtype=jnp.int32).reshape(2, 5) % network.inputs
    drawn = np.random.default_rng(0).standard_normal((6, network.inputs))
    return jnp.asarray(drawn, jnp.float32)


def _two_steps(tx, network, factors=None):
    """Parameters after two steps on the mean square of the logits."""
    params = {name: jnp.asarray(leaf) for name, leaf in network.draw(1).items()}
    loss = lambda params: jnp.mean(network.apply(params, _inputs(network)) ** 2)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        if factors is not None:
            updates = jax.tree.map(lambda u, own: u * own, updates, factors)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(2):
        params, state = step(params, state)
    return params


def _assert_close(found, wanted):
    # The same operations in another order: a few eps of float32, relative to the
    # largest entries, which are of order 1.
    for name, leaf in wanted.items():
        np.testing.assert_allclose(found[name], leaf, atol=2e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["none", "width", "spectral", "rms"])
def test_muon_of_a_perceptron(rule):
    own = optimizers.plain_factors(_name(rule), PERCEPTRON, RATE)
    factors = {key: RATE * leaf for key, leaf in own.items()}
    found = _two_steps(optimizers.build("muon", PERCEPTRON), PERCEPTRON, factors)
    wanted = _two_steps(mo.muon(RATE, scale=rule, axes=mo.STACKED), PERCEPTRON)
    _assert_close(found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["width", "rms"])
def test_muon_of_the_transformer(rule):
    own = optimizers.plain_factors(_name(rule), TRANSFORMER, RATE)
    factors = {key: RATE * leaf for key, leaf in own.items()}
    found = _two_steps(optimizers.build("muon", TRANSFORMER), TRANSFORMER, factors)
    roles = optimizers.reading(TRANSFORMER).roles
    tx = mo.hybrid(
        mo.muon(RATE, scale=rule, axes=roles),
        others=optax.adamw(RATE if rule == "rms" else 0.008),
        labels=roles,
    )
    _assert_close(found, _two_steps(tx, TRANSFORMER))


@pytest.mark.slow
@pytest.mark.parametrize("network", [PERCEPTRON, TRANSFORMER], ids=lambda n: n.family)
@pytest.mark.parametrize("name", ["nominal", "derived", "measured"])
def test_budgets(name, network):
    budget = optimizers.budget_of(name, network, (1, _inputs(network)))
    own = optimizers.budget_factors(budget, network)
    factors = {key: RATE * leaf for key, leaf in own.items()}
    found = _two_steps(optimizers.build("modular", network), network, factors)
    module = optimizers.reading(network)
    tx = mo.modular.modular_optimizer(
        module, RATE, budget=budget, schedule=mo.linalg.JORDAN
    )
    _assert_close(found, _two_steps(tx, network))


def test_the_root_of_equal_masses_is_one_factor():
    budget = mo.modular.budget(optimizers.reading(PERCEPTRON))
    plain = optimizers.budget_factors(budget, PERCEPTRON)
    rooted = optimizers.budget_factors(budget, PERCEPTRON, root=True)
    for name, leaf in plain.items():
        # Four matrices of mass 1; exact but for float32.
        np.testing.assert_allclose(rooted[name], 2 * leaf, rtol=1e-6)


def test_with_roots_the_squares_of_the_changes_sum_to_one():
    module = optimizers.reading(PERCEPTRON)
    budget = mo.modular.budget(module, tare={"inner": 5.0})
    rooted = optimizers.budget_factors(budget, PERCEPTRON, root=True)
    changes = [
        rooted[name].ravel() * np.asarray(own)
        for name, own in budget.sensitivities.items()
    ]
    assert np.sum(np.concatenate(changes) ** 2) == pytest.approx(1, rel=1e-6)
    # Masses 1, 5 and 1; the readout has the sensitivity 1.
    assert rooted["last"] == pytest.approx((1 / 7) ** 0.5, rel=1e-6)
