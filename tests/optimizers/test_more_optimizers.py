"""spel, spectral_sphere, hyperball, scion, normuon: float64 oracles and bounds."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import optimize

import manifold_optax as mo
import oracles
from manifold_optax.geometry import ColumnRms, RmsToRms, RowRms
from manifold_optax.linalg import JORDAN

# Kernels [fan_in, fan_out].
SHAPES = {"tall": (6, 3), "wide": (3, 6), "square": (4, 4)}
RATE, STEPS = 0.1, 4


def gaussian(shapes, seed):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


def float32(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


def taken_gradients(shapes=SHAPES, steps=STEPS):
    return [gaussian(shapes, seed) for seed in range(1, steps + 1)]


def train(tx, params, taken, init=None):
    """Parameters after each step of `tx`."""
    params, update = float32(params), jax.jit(tx.update)
    state, history = (init or tx.init)(params), []
    for gradient in taken:
        updates, state = update(float32(gradient), state, params)
        params = optax.apply_updates(params, updates)
        history.append(params)
    return history


def expected_history(step, params, taken, decay, nesterov):
    """The same in float64: `step(w, average) -> w` after the momentum."""
    history = []
    averages = {
        name: oracles.muon_momentum([g[name] for g in taken], decay, nesterov, False)
        for name in params
    }
    for number in range(len(taken)):
        params = {name: step(w, averages[name][number]) for name, w in params.items()}
        history.append(params)
    return history


def assert_same_path(found, expected, atol):
    for number, params in enumerate(expected):
        for name, w in params.items():
            np.testing.assert_allclose(found[number][name], w, rtol=0, atol=atol)


def unit(x):
    return x / np.linalg.norm(x)


def rms_gain(w):
    return np.sqrt(w.shape[1] / w.shape[0])


def spectral_norm(x):
    return np.linalg.norm(np.asarray(x, np.float64), 2)


@pytest.mark.parametrize("scale", [pytest.param(2.0, marks=pytest.mark.slow), "rms"])
@pytest.mark.slow
def test_spel_is_two_polar_factors(scale):
    def size(w):
        return rms_gain(w) if scale == "rms" else scale

    def step(w, average):
        s = size(w)
        point = w / s
        turn = (lambda x: x.T) if w.shape[0] < w.shape[1] else (lambda x: x)
        tangent = turn(oracles.stiefel_tangent(turn(point), turn(average)))
        # What a projection leaves of zero is rounding: 1e-9 counts as zero.
        return s * oracles.polar(point - RATE * oracles.polar(tangent, 1e-9))

    params = {
        name: size(x) * oracles.polar(x) for name, x in gaussian(SHAPES, 0).items()
    }
    taken = taken_gradients()
    found = train(mo.spel(RATE, manifold=mo.Stiefel(scale)), params, taken)
    expected = expected_history(step, params, taken, 0.9, False)
    # Float32 rounding of the average, amplified by the condition of its tangent part.
    assert_same_path(found, expected, 1e-4)


def spectral_sphere_direction(w, gradient):
    """Best `A` with `‖A‖₂ ≤ 1` and `u₁ᵀ A v₁ = 0`, in float64, by root finding."""
    left, _, right = np.linalg.svd(w)
    normal = np.outer(left[:, 0], right[0])
    slope = lambda lam: np.sum(normal * oracles.polar(gradient + lam * normal))
    bound = 2 * np.linalg.norm(gradient, "nuc")
    return oracles.polar(gradient + optimize.brentq(slope, -bound, bound) * normal)


def test_spectral_sphere_keeps_the_largest_singular_value():
    def step(w, average):
        radius = rms_gain(w)
        moved = w - RATE * radius * spectral_sphere_direction(w, average)
        return radius * moved / spectral_norm(moved)

    # For square matrices the slope may jump over the root; see the tests of `steepest`.
    shapes = {name: SHAPES[name] for name in ("tall", "wide")}
    params = {
        name: rms_gain(x) * x / spectral_norm(x)
        for name, x in gaussian(shapes, 0).items()
    }
    taken = taken_gradients(shapes)
    found = train(mo.spectral_sphere(RATE), params, taken)
    expected = expected_history(step, params, taken, 0.9, True)
    # The search for the root stops where the objective is flat to 1e-7.
    assert_same_path(found, expected, 1e-4)
    for w in found[-1].values():
        np.testing.assert_allclose(spectral_norm(w), rms_gain(w), rtol=1e-6)


def test_spel_of_a_column_is_hyperspherical_descent():
    params = {"w": unit(gaussian({"w": (6, 1)}, 0)["w"])}
    taken = taken_gradients({"w": (6, 1)})
    found = train(mo.spel(RATE, momentum=None), params, taken)
    expected = train(mo.hyperspherical_descent(RATE), params, taken)
    assert_same_path(found, expected, 1e-6)


def test_hyperball_turns_by_the_normalised_direction_of_muon():
    def step(w, average):
        radius = np.linalg.norm(w)
        direction = unit(oracles.newton_schulz(average, JORDAN))
        return radius * unit(w - RATE * radius * direction)

    params, taken = gaussian(SHAPES, 0), taken_gradients()
    found = train(mo.hyperball(RATE), params, taken)
    expected = expected_history(step, params, taken, 0.95, True)
    # Float32 rounding, amplified by the polynomial: 3.4⁵ of entries of order 1e-1.
    assert_same_path(found, expected, 1e-4)


@pytest.mark.slow
@pytest.mark.slow
def test_hyperball_takes_any_inner_transformation():
    sphere, taken = mo.Sphere(3.0), taken_gradients()
    project = jax.jit(lambda tree: mo.project(tree, sphere))
    params = project(float32(gaussian(SHAPES, 0)))
    adam: Any = optax.scale_by_adam()
    tx: Any = mo.hyperball(RATE, inner=adam, momentum=None, manifold=sphere)
    assert list(tx.init(params)) == [
        "inner",
        "direction",
        "size",
        "scale_by_learning_rate",
        "retraction",
    ]
    found = train(tx, params, taken)
    direction, _ = adam.update(float32(taken[0]), adam.init(params), params)
    for name, w in params.items():
        moved = np.asarray(w, np.float64) - 3 * RATE * unit(np.asarray(direction[name]))
        np.testing.assert_allclose(found[0][name], 3 * unit(moved), rtol=0, atol=2e-6)
        np.testing.assert_allclose(np.linalg.norm(found[-1][name]), 3, rtol=1e-6)


@pytest.mark.parametrize("make", [mo.hyperball, mo.hyperspherical_descent])
def test_a_zero_matrix_stays_zero_where_the_norm_is_kept(make):
    params = {"w": np.zeros((4, 3)), "other": np.ones((4, 3))}
    taken = taken_gradients({"w": (4, 3), "other": (4, 3)}, 2)
    last = train(make(RATE, manifold=mo.Sphere("kept")), params, taken)[-1]
    np.testing.assert_array_equal(last["w"], 0)
    np.testing.assert_allclose(np.linalg.norm(last["other"]), 12**0.5, rtol=1e-6)
    # With a number as radius the first step reaches the sphere, but for an error at
    # `init` that only a traced start escapes.
    tx = make(RATE, manifold=mo.Sphere(2.0))
    with pytest.raises(ValueError, match=r"not on Sphere\(radius=2.0\)"):
        tx.init(float32(params))
    last = train(tx, params, taken, init=jax.jit(tx.init))[-1]
    np.testing.assert_allclose(np.linalg.norm(last["w"]), 2, rtol=1e-6)


def steepest_kernel(norm, gradient):
    """`[fan_in, fan_out]` direction of the linear minimization oracle, in float64."""
    match norm:
        case RmsToRms():
            return rms_gain(gradient) * oracles.polar(gradient)
        case RowRms():
            length = np.linalg.norm(gradient, axis=0, keepdims=True)
            return np.sqrt(gradient.shape[0]) * gradient / length
        case ColumnRms():
            length = np.linalg.norm(gradient, axis=1, keepdims=True)
            return np.sqrt(gradient.shape[1]) * gradient / length
        case _:
            return np.sign(gradient)


NORMS = pytest.mark.parametrize(
    "norm",
    [RmsToRms(), RowRms(), ColumnRms(), mo.Max()],
    ids=lambda norm: type(norm).__name__,
)


@NORMS
def test_scion_steps_to_the_corner_of_the_ball(norm):
    decay = 0.5

    def step(w, average):
        return w - RATE * (steepest_kernel(norm, average) + decay * w)

    params, taken = gaussian(SHAPES, 0), taken_gradients()
    tx = mo.scion(RATE, norm=norm, weight_decay=decay)
    expected = expected_history(step, params, taken, 0.9, False)
    assert_same_path(train(tx, params, taken), expected, 2e-5)


@NORMS
@pytest.mark.slow
def test_constrained_scion_stays_in_the_ball(norm):
    radius, share = 0.5, 0.3
    tx = mo.scion(share * radius, norm=norm, weight_decay=1 / radius, momentum=None)
    # The same gradient again and again pushes hardest.
    taken = [gaussian(SHAPES, 1)] * 8 + taken_gradients(steps=4)
    start = jax.tree.map(lambda leaf: 1e-3 * leaf, gaussian(SHAPES, 0))
    for params in train(tx, start, taken):
        for leaf in params.values():
            # Rows are fan-out; a few roundings.
            assert float(norm.value(leaf.T)) <= radius * (1 + 1e-5)


def test_scion_has_a_norm_per_role():
    params = float32({"hidden": np.ones((4, 4)), "head": np.ones((4, 2))})
    tx: Any = optax.partition(
        {"inside": mo.scion(0.1), "last": mo.scion(1.0, norm=mo.Max())},
        mo.roles({"head": "last"}, default="inside"),
    )
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_array_equal(updates["head"], -1)
    # The polar factor of ones is ones/4.
    np.testing.assert_allclose(updates["hidden"], -0.1 / 4, rtol=1e-5)


def test_normuon_evens_out_the_rows():
    decay, weight_decay = 0.95, 0.1
    mean_square = {name: np.zeros((1, shape[1])) for name, shape in SHAPES.items()}

    def step(name, w, average):
        o = oracles.newton_schulz(average, JORDAN)
        mean = np.mean(o**2, axis=0, keepdims=True)
        mean_square[name] = decay * mean_square[name] + (1 - decay) * mean
        even = unit(o / np.sqrt(mean_square[name])) * np.linalg.norm(o)
        update = 0.2 * np.sqrt(max(w.shape)) * even
        return w - RATE * (update + weight_decay * w)

    params, taken = gaussian(SHAPES, 0), taken_gradients()
    found = train(mo.normuon(RATE, weight_decay=weight_decay), params, taken)
    for name, w in params.items():
        grads = [gradient[name] for gradient in taken]
        averages = oracles.muon_momentum(grads, 0.95, False, False)
        for number, average in enumerate(averages):
            w = step(name, w, average)
            # As for `hyperball`.
            np.testing.assert_allclose(found[number][name], w, rtol=0, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("soft", ["decay", "shrink"])
def test_the_spectral_norm_is_bounded_by_scale_over_decay(rank, soft):
    # Directions of spectral norm exactly 1, the same one at every step.
    factors = gaussian({"left": (6, rank), "right": (rank, 4)}, 0)
    gradient = {"w": jnp.asarray(factors["left"] @ factors["right"], jnp.float32)}
    lam, rate = 2.0, 0.05
    direction = mo.steepest(mo.Euclidean(), mo.Spectral())
    tx: Any = {
        "decay": optax.chain(
            direction, optax.add_decayed_weights(lam), optax.sgd(rate)
        ),
        "shrink": optax.chain(
            direction, optax.sgd(rate), mo.shrink_norm(mo.Spectral(), rate * lam)
        ),
    }[soft]

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        params: Any = optax.apply_updates(params, updates)
        return (params, state), params["w"]

    for size in (0.1, 3.0):
        start = {"w": jnp.asarray(size * np.eye(6, 4), jnp.float32)}
        scan = jax.jit(lambda carry: jax.lax.scan(step, carry, length=150)[1])
        norms = np.linalg.norm(scan((start, tx.init(start))), 2, axis=(-2, -1))
        assert norms.max() <= max(size, 1 / lam) * (1 + 1e-5)
        # (1 − rate·decay)^150 = 1e-7 of the start is left.
        np.testing.assert_allclose(norms[-1], 1 / lam, rtol=1e-4)


def test_transport_on_the_sphere():
    decay, taken = 0.9, taken_gradients()
    params = {name: unit(x) for name, x in gaussian(SHAPES, 0).items()}
    average = mo.momentum(decay, nesterov=False, transport=mo.Sphere())
    found = train(mo.hyperspherical_descent(RATE, momentum=average), params, taken)
    for name, w in params.items():
        average = np.zeros_like(w)
        for number, gradient in enumerate(taken):
            average = average - w * np.sum(w * average)
            average = decay * average + (1 - decay) * gradient[name]
            w = oracles.sphere_step(w, average, RATE)
            np.testing.assert_allclose(found[number][name], w, rtol=0, atol=2e-6)
