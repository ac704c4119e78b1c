import jax
import jax.numpy as jnp
import numpy as np
import pytest

from manifold_optax.experiments.adversary import (
    attack_decisions,
    Effort,
    largest_change,
    largest_ratio,
)
from manifold_optax.experiments.input_sets import InBall, InBox

# Each test compiles a search, which takes a second.
pytestmark = pytest.mark.slow

# What is found is a quotient of float32 numbers: norms of 50 entries and products of
# 50 terms are each right to a few eps, 1.2e-7. Largest excess observed: 2.6e-6.
ROUNDING = 1 + 1e-5


def linear(params, x):
    return x @ params["readout"]


def perceptron(params, x):
    return jax.nn.relu(x @ params["hidden"]) @ params["readout"]


def orthogonal(rng, rows, columns):
    tall = rng.standard_normal((max(rows, columns), min(rows, columns)))
    factor = np.linalg.qr(tall)[0]
    return jnp.asarray(factor if rows >= columns else factor.T, jnp.float32)


def classifier(rng, count=64):
    """A linear classifier, inputs, its decisions, and their distances to a change."""
    readout = rng.standard_normal((30, 5)).astype(np.float32)
    x = rng.standard_normal((count, 30)).astype(np.float32)
    logits = x @ readout
    labels = logits.argmax(-1)
    gaps = logits[np.arange(count), labels][:, None] - logits
    apart = np.linalg.norm(readout[:, labels].T[:, :, None] - readout[None], axis=1)
    distances = np.where(apart > 0, gaps / np.where(apart > 0, apart, 1), np.inf)
    return (
        {"readout": jnp.asarray(readout)},
        jnp.asarray(x),
        jnp.asarray(labels, jnp.int32),
        distances.min(1),
    )


@pytest.fixture(scope="module")
def attacked():
    """One attack, compiled once: at distance 0.3."""
    params, x, labels, distances = classifier(np.random.default_rng(0))
    arguments = (x, labels, jnp.float32(0.3), jax.random.key(0))
    effort = Effort(steps=20, restarts=3)
    found = attack_decisions(linear, params, *arguments, effort=effort)
    return params, x, labels, distances, found


def test_every_decision_that_can_change_does_and_no_other(attacked):
    params, _, labels, distances, found = attacked
    changed = np.asarray(found.changed)
    assert changed[distances < 0.99 * 0.3].all()
    assert not changed[distances > 0.3 * ROUNDING].any()
    assert 0 < changed.sum() < len(changed)
    decisions = linear(params, found.inputs).argmax(-1)
    np.testing.assert_array_equal(decisions != labels, changed)


def test_no_input_moves_farther_than_allowed(attacked):
    _, x, _, _, found = attacked
    moved = np.linalg.norm(np.asarray(found.inputs) - np.asarray(x), axis=1)
    # x + d is rounded to eps of x, whose norm is about 20 times the radius.
    assert moved.max() <= 0.3 * ROUNDING
    # The ball is used up.
    assert moved.min() > 0.99 * 0.3


def test_what_is_misclassified_counts_as_changed_and_the_box_is_kept(attacked):
    params, x, *_ = attacked
    x = jnp.clip(0.5 + 0.1 * x, 0, 1)
    wrong = (linear(params, x).argmax(-1) + 1) % 5
    found = attack_decisions(
        linear,
        params,
        x,
        wrong.astype(jnp.int32),
        jnp.float32(1e-4),
        jax.random.key(0),
        effort=Effort(steps=2, restarts=2),
        box=InBox(0.0, 1.0),
    )
    assert found.changed.all()
    assert found.inputs.min() >= 0
    assert found.inputs.max() <= 1


@pytest.mark.parametrize("domain", [None, InBox(0.0, 1.0), InBall(2.0)])
def test_the_ratio_of_a_linear_map_is_its_spectral_norm(domain, rng):
    readout = rng.standard_normal((50, 10)).astype(np.float32)
    x = jnp.asarray(rng.standard_normal((8, 50)), jnp.float32)
    found = largest_ratio(
        linear, {"readout": jnp.asarray(readout)}, x, jax.random.key(1), domain=domain
    )
    ratio = float(found.value) / np.linalg.norm(readout, 2)
    assert 0.99 < ratio <= ROUNDING


def test_the_ratio_of_an_orthogonal_perceptron_is_found(rng):
    params = {"hidden": orthogonal(rng, 30, 20), "readout": orthogonal(rng, 20, 10)}
    x = jnp.asarray(rng.standard_normal((32, 30)), jnp.float32)
    found = largest_ratio(perceptron, params, x, jax.random.key(1))
    assert 0.99 < found.value <= ROUNDING


def test_the_change_of_a_linear_map_is_found(rng):
    readout = rng.standard_normal((50, 10)).astype(np.float32)
    x = jnp.asarray(rng.standard_normal((8, 50)), jnp.float32)
    params, updates = (
        {"readout": jnp.zeros((50, 10))},
        {"readout": jnp.asarray(readout)},
    )
    found = largest_change(linear, params, updates, x, domain=InBall(2.0))
    ratio = float(found.value) / (2 * np.linalg.norm(readout, 2))
    assert 0.99 < ratio <= ROUNDING
    in_box = largest_change(linear, params, updates, x, domain=InBox(0.0, 1.0))
    # No sign pattern of a box of 50 axes gives more than this norm of its diagonal.
    assert 0.3 < float(in_box.value) / (np.sqrt(50) * np.linalg.norm(readout, 2)) < 1


def test_points_of_the_sets():
    points = jnp.array([[3.0, -4.0], [0.0, 0.0]])
    box, ball = InBox(-1.0, 2.0), InBall(2.5)
    np.testing.assert_array_equal(box.nearest(points), [[2.0, -1.0], [0.0, 0.0]])
    np.testing.assert_array_equal(box.extreme(points)[0], [2.0, -1.0])
    for found in (ball.nearest(points), ball.extreme(points)):
        # Points of the ball are 1e-6 inside it.
        np.testing.assert_allclose(found, [[1.5, -2.0], [0.0, 0.0]], rtol=2e-6)
