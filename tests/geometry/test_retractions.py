"""Retractions other than the projection, against their definitions in float64."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg

import oracles
from manifold_optax import Spectral, spel, Sphere, steepest_direction, Stiefel

TALL, WIDE = (8, 5), (2, 3, 7)
# Rounding of float64 in a few products of matrices of norm 2 (seen: 2e-15).
ROUNDING = 1e-13
OTHERS = ("qr", "cubic", "isometry")

retract = jax.jit(
    lambda manifold, point, vector: manifold.retract(point, vector), static_argnums=0
)


def by_matrix(function, *arrays):
    """`function` of each matrix of the arrays, turned so that it is tall."""
    wide = arrays[0].shape[-2] < arrays[0].shape[-1]
    turned = [np.swapaxes(a, -1, -2) if wide else np.asarray(a) for a in arrays]
    flat = [a.reshape(-1, *a.shape[-2:]) for a in turned]
    found = np.stack([function(*each) for each in zip(*flat, strict=True)])
    found = found.reshape(turned[0].shape)
    return np.swapaxes(found, -1, -2) if wide else found


def orthonormal_columns(x):
    factors: Any = linalg.qr(x, mode="economic")
    q, r = factors
    return q * np.sign(np.diagonal(r))


def cubic(x):
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    return (u * (1.5 * s - 0.5 * s**3)) @ vt


EXACT = {"qr": orthonormal_columns, "cubic": cubic, "polar": oracles.polar}


def draw(shape, seed=0):
    """A point of the Stiefel manifold and a tangent vector of unit spectral norm."""
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((2, *shape))
    point = by_matrix(oracles.polar, x)
    tangent = by_matrix(oracles.stiefel_tangent, point, y)
    return point, tangent / np.linalg.norm(tangent, 2, axis=(-2, -1), keepdims=True)


def isometry(shape, rank, seed=0):
    """A point, and a tangent partial isometry of the given rank at it."""
    point, tangent = draw(shape, seed)

    def of_each(w, a):
        # Orthogonal to the columns of w, hence tangent.
        u, _, vt = np.linalg.svd(a - w @ (w.T @ a), full_matrices=False)
        return u[:, :rank] @ vt[:rank]

    return point, by_matrix(of_each, point, tangent)


@pytest.mark.parametrize("shape", [TALL, WIDE])
@pytest.mark.parametrize("name", ["qr", "cubic"])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_stiefel_against_the_definition(x64, name, shape, scale):
    point, tangent = draw(shape)
    manifold = Stiefel(scale, retraction=name)
    found = retract(manifold, jnp.asarray(scale * point), jnp.asarray(0.3 * tangent))
    expected = scale * by_matrix(EXACT[name], point + 0.3 / scale * tangent)
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("shape", [TALL, (7, 3), (2, 3, 7)])
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("length", [1e-30, 0.1, 3.0])
def test_isometry_is_the_polar_factor_for_partial_isometries(x64, shape, rank, length):
    point, tangent = isometry(shape, rank)
    manifold = Stiefel(retraction="isometry")
    found = retract(manifold, jnp.asarray(point), jnp.asarray(length * tangent))
    expected = by_matrix(oracles.polar, point + length * tangent)
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(
    ("name", "order", "first"),
    [("qr", 2, 1e-2), ("cubic", 4, 1e-2), ("isometry", 8, 3e-2)],
)
def test_they_agree_with_the_polar_factor_near_the_point(x64, name, order, first):
    # The singular values of the sum are 1 + η²/2 + O(η⁴): the cubic step squares the
    # error η², the closed form has it right to η² for every vector and then takes one.
    point, tangent = draw(TALL)
    errors = []
    for length in (first, 3 * first):
        step = jnp.asarray(length * tangent)
        found = retract(Stiefel(retraction=name), jnp.asarray(point), step)
        expected = oracles.polar(point + length * tangent)
        errors.append(np.linalg.norm(found - expected))
    # Exact up to terms of relative size η² (seen: 2.00, 4.00, 7.95).
    assert np.log(errors[1] / errors[0]) / np.log(3) == pytest.approx(order, abs=0.08)


# By the series 1 - (3/8) η⁴ + …, to these digits.
@pytest.mark.parametrize(
    ("length", "value"),
    [
        (0.01, 0.99999999625),
        (0.05, 0.99999765820),
        (0.1, 0.99996262430),
        (0.3, 0.99704927),
    ],
)
def test_singular_values_after_a_cubic_step(x64, length, value):
    point, tangent = isometry(TALL, 3)
    found = retract(
        Stiefel(retraction="cubic"), jnp.asarray(point), jnp.asarray(length * tangent)
    )
    values = np.linalg.svd(found, compute_uv=False)
    assert values[-1] == pytest.approx(value, abs=1e-8 if length > 0.1 else 1e-11)
    np.testing.assert_allclose(values[:2], 1, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("name", OTHERS)
def test_zero_step_and_nan(name):
    point, _ = draw((2, 8, 5))
    step = np.zeros((2, 8, 5))
    step[1, 0, 0] = np.nan
    point, step = jnp.asarray(point, jnp.float32), jnp.asarray(step, jnp.float32)
    found = retract(Stiefel(retraction=name), point, step)
    # The point itself, to some eps of float32 (seen: 3e-7).
    np.testing.assert_allclose(found[0], point[0], rtol=0, atol=2e-6)
    assert np.isnan(found[1]).any()


def test_the_q_factor_for_large_and_deficient_steps():
    # The diagonal of R is positive, so the sign does not jump between steps.
    point, _ = draw(TALL)
    step = -3 * point
    found = retract(Stiefel(retraction="qr"), jnp.asarray(point), jnp.asarray(step))
    np.testing.assert_allclose(found, -point, rtol=0, atol=2e-6)
    lost = retract(Stiefel(retraction="qr"), jnp.asarray(point), jnp.asarray(-point))
    # Whatever the direction is, it is a point (rounding of float32).
    assert Stiefel().residual(lost) <= 2e-6


def test_the_q_factor_needs_whole_matrices():
    step = lambda p: Stiefel(retraction="qr").retract(p, p, axis_name="x")
    with pytest.raises(ValueError, match=r"'qr' needs whole matrices.*'x'"):
        jax.vmap(step, axis_name="x")(jnp.ones((2, 4, 5)))


@functools.partial(jax.jit, static_argnames=("name", "steps"))
def walk(name, learning_rate, slope, *, steps):
    """Residuals of a walk by random tangent isometries, as manifold Muon steps.

    The learning rate falls by the factor `slope` of itself until the end.
    """
    manifold = Stiefel(retraction=name)

    def off(point, x):
        return x - point @ (point.T @ x)

    def advance(point, step):
        key = jax.random.fold_in(jax.random.key(1), step)
        normal = jnp.linalg.qr(off(point, jax.random.normal(key, point.shape)))[0]
        # The point is off the manifold by some 1e-3, and so is this from the tangent
        # space; what is left after the second time is the square.
        normal = off(point, normal)
        rate = learning_rate * (1 - slope * step / steps)
        point = manifold.retract(point, -rate * normal)
        return point, jnp.max(jnp.abs(point.T @ point - jnp.eye(5)))

    return jax.lax.scan(advance, jnp.eye(12, 5), jnp.arange(steps))[1]


# With s² = v² + η² and v = (3s − s³)/2 the residual 1 − v² stays where it is from the
# second step on (seen: 5.2e-3 and 7.4e-5; in the first steps 5.9e-3 and 7.5e-5).
LARGEST = {0.3: 6e-3, 0.1: 7.6e-5}


@pytest.mark.parametrize("learning_rate", LARGEST)
def test_the_cubic_step_does_not_drift(learning_rate):
    found = walk("cubic", learning_rate, 0.0, steps=300)
    assert found.max() <= LARGEST[learning_rate]


@pytest.mark.promise(
    "Manifolds",
    "10,000 steps of the cheap retraction do not drift",
    on="Stiefel, cubic retraction, float32",
)
@pytest.mark.slow
@pytest.mark.parametrize("learning_rate", LARGEST)
@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_no_drift_in_ten_thousand_steps(learning_rate, slope, measured):
    found = walk("cubic", learning_rate, slope, steps=10_000)
    measured(found.max(), at_most=LARGEST[learning_rate])
    # With the learning rate the residual falls to rounding (seen: 2e-7).
    assert found[-1] <= (2e-6 if slope else LARGEST[learning_rate])


def test_the_closed_form_stays_where_directions_trust_the_point():
    """Directions computed as if the point were exact once made its error grow.

    Without the renewal of the point: 6e-3 after 6,000 steps, 8.9 after 10,000.
    """
    manifold = Stiefel(retraction="isometry")
    direction = steepest_direction(manifold, Spectral())

    def advance(point, step):
        key = jax.random.fold_in(jax.random.key(1), step)
        gradient = jax.random.normal(key, point.shape)
        point = manifold.retract(point, -0.1 * direction(point, gradient))
        return point, manifold.residual(point)

    walk = jax.jit(lambda p: jax.lax.scan(advance, p, jnp.arange(10_000))[1])
    # Rounding of one step (seen: 3.7e-7).
    assert walk(jnp.eye(8)).max() <= 2e-6


@pytest.mark.slow
def test_the_closed_form_stays_for_steps_that_are_not_tangent():
    manifold = Stiefel(retraction="isometry")
    tx = spel(0.1, manifold=manifold)

    def advance(carry, step):
        point, state = carry
        key = jax.random.fold_in(jax.random.key(2), step)
        update, state = tx.update(jax.random.normal(key, point.shape), state, point)
        point = point + update
        return (point, state), manifold.residual(point.T)

    start = manifold.random_point(jax.random.key(0), (12, 8))
    walk = jax.jit(lambda p: jax.lax.scan(advance, (p, tx.init(p)), jnp.arange(300))[1])
    # The square of the normal part of a step of length 0.1 (seen: 7.7e-3); without the
    # renewal 1 after 100 steps and 17 after 300.
    assert walk(start).max() <= 2e-2


@pytest.mark.parametrize("radius", [1.0, 2.5, "kept"])
@pytest.mark.parametrize("length", [0.0, 1e-3, 1.0, 2.0])
def test_geodesic_of_the_sphere(x64, radius, length):
    rng = np.random.default_rng(0)
    x, u = rng.standard_normal((2, 3, 4))
    size = np.linalg.norm(x) if radius == "kept" else radius
    point = size * x / np.linalg.norm(x)
    tangent = u - point * np.sum(point * u) / size**2
    tangent = length * tangent / np.linalg.norm(tangent)
    # The radial part does not count.
    manifold = Sphere(radius, retraction="geodesic")
    found = retract(manifold, jnp.asarray(point), jnp.asarray(tangent - 0.3 * point))
    unit = tangent / max(length, 1e-300)
    expected = np.cos(length / size) * point + size * np.sin(length / size) * unit
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING)


def test_geodesic_in_float32_does_not_drift_and_splits():
    manifold = Sphere(retraction="geodesic")
    x = np.random.default_rng(0).standard_normal((2, 8, 5)).astype(np.float32)
    point, step = jnp.asarray(x[0] / np.linalg.norm(x[0])), jnp.asarray(x[1])

    def advance(point, _):
        return manifold.retract(point, step), None

    end, _ = jax.jit(lambda p: jax.lax.scan(advance, p, None, length=300))(point)
    # The radius is restored at each step (seen: 1 eps).
    assert np.linalg.norm(np.asarray(end, np.float64)) == pytest.approx(1, abs=1e-6)
    parts = jax.vmap(lambda p, u: manifold.retract(p, u, axis_name="x"), axis_name="x")
    split = jax.jit(parts)(point.reshape(2, 4, 5), step.reshape(2, 4, 5))
    whole = retract(manifold, point, step)
    np.testing.assert_allclose(split.reshape(8, 5), whole, rtol=0, atol=2e-6)
    assert np.isnan(retract(manifold, point, step.at[0, 0].set(np.nan))).any()


@pytest.mark.parametrize("kind", [Stiefel, Sphere])
def test_the_field(kind):
    other = {Stiefel: "qr", Sphere: "geodesic"}[kind]
    manifold = kind(2.0, retraction=other)
    assert manifold.unit() == kind(1.0, retraction=other)
    assert manifold.unit() != kind()
    assert hash(manifold) == hash(kind(2.0, retraction=other))
    size = {Stiefel: "scale", Sphere: "radius"}[kind]
    assert repr(kind()) == f"{kind.__name__}({size}=1.0)"
    assert repr(manifold) == f"{kind.__name__}({size}=2.0, retraction={other!r})"
    with pytest.raises(
        ValueError, match=rf"retraction must be one of .*'{other}'.*'ortho'"
    ):
        kind(retraction="ortho")
