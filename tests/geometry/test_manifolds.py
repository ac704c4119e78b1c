"""The laws of every manifold, in float64: nearest point, tangent space, retraction."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, HealthCheck, settings, strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import oracles
from manifold_optax import Euclidean, Sphere, Stiefel

TALL, SQUARE, WIDE_BATCH = (8, 5), (5, 5), (2, 3, 7)
# Rounding of float64, eps = 2e-16, in products of matrices of norm at most 10 and in an
# iteration as sensitive as the condition, which can be 1e3 (seen: 1.4e-14).
ROUNDING = 1e-12

law = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    # The fixture x64 is for the whole test, which is what we want.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
seeds = st.integers(0, 2**32 - 1)
everywhere = pytest.mark.parametrize(
    ("manifold", "shape"),
    [
        (Euclidean(), TALL),
        (Sphere(1.0), SQUARE),
        (Sphere(2.5), WIDE_BATCH),
        (Sphere("rms"), TALL),
        (Sphere("kept"), WIDE_BATCH),
        (Stiefel(1.0), TALL),
        (Stiefel(1.0), SQUARE),
        (Stiefel(1.0), WIDE_BATCH),
        (Stiefel(0.5), TALL),
        (Stiefel("rms"), WIDE_BATCH),
        (Stiefel("rms"), TALL),
    ],
    ids=str,
)


class Results(NamedTuple):
    """What the methods say, all of them in one compilation."""

    projected: jax.Array
    projected_again: jax.Array
    residual: jax.Array
    tangent: jax.Array
    tangent_again: jax.Array
    other_tangent: jax.Array
    retracted: jax.Array
    """By the steps 0, 1e-3, 1e-2 and 1 times the tangent vector."""


STEPS = (0.0, 1e-3, 1e-2, 1.0)


@jax.jit
def _euclidean(x):
    return x


def compute(manifold, x, y, z):
    point = manifold.project(x)
    tangent = manifold.to_tangent(point, y)
    steps = jnp.asarray(STEPS, x.dtype).reshape(-1, *(1,) * x.ndim)
    points = jnp.broadcast_to(point, (len(STEPS), *x.shape))
    return Results(
        projected=point,
        projected_again=manifold.project(point),
        residual=manifold.residual(x),
        tangent=tangent,
        tangent_again=manifold.to_tangent(point, tangent),
        other_tangent=manifold.to_tangent(point, z),
        retracted=manifold.retract(points, steps * tangent[None]),
    )


compiled = jax.jit(compute, static_argnums=0)


def draw(manifold, shape, seed):
    """Three Gaussian arrays, and the results for them as NumPy arrays."""
    x, y, z = np.random.default_rng(seed).standard_normal((3, *shape))
    results = compiled(manifold, jnp.asarray(x), jnp.asarray(y), jnp.asarray(z))
    return x, y, z, jax.tree.map(np.asarray, results)


def each(*arrays):
    """The matrices of arrays with batch axes, side by side."""
    return zip(*(a.reshape(-1, *a.shape[-2:]) for a in arrays), strict=True)


def size_of(manifold, x):
    """Radius or scale of the manifold at the matrix x [fan_out, fan_in]."""
    if manifold.size == "rms":
        return np.sqrt(x.shape[0] / x.shape[1])
    return np.linalg.norm(x) if manifold.size == "kept" else manifold.size


def distance(manifold, x, size):
    """The documented residual."""
    if isinstance(manifold, Sphere):
        return abs(np.linalg.norm(x) / size - 1)
    if isinstance(manifold, Stiefel):
        values = np.linalg.svd(x, compute_uv=False)
        return np.abs((values / size) ** 2 - 1).max()
    return 0.0


def nearest(manifold, x, size):
    if isinstance(manifold, Sphere):
        return x * size / np.linalg.norm(x)
    return size * oracles.polar(x) if isinstance(manifold, Stiefel) else x


def tangent_part(manifold, point, v, size):
    if isinstance(manifold, Sphere):
        return v - point * np.sum(point * v) / size**2
    if isinstance(manifold, Stiefel) and point.shape[0] < point.shape[1]:
        return oracles.stiefel_tangent(point.T / size, v.T).T
    if isinstance(manifold, Stiefel):
        return oracles.stiefel_tangent(point / size, v)
    return v


@pytest.mark.promise(
    "Manifolds",
    "A projection lands on the manifold and is the nearest point",
    on="every manifold",
)
@everywhere
@law
@given(seed=seeds)
def test_projection(x64, manifold, shape, seed):
    x, _, _, found = draw(manifold, shape, seed)
    residuals = found.residual.ravel()
    for matrix, point, again, residual in zip(
        *zip(*each(x, found.projected, found.projected_again), strict=True),
        residuals,
        strict=True,
    ):
        size = size_of(manifold, matrix)
        assert distance(manifold, point, size) <= ROUNDING
        expected = nearest(manifold, matrix, size)
        np.testing.assert_allclose(point, expected, rtol=0, atol=ROUNDING)
        np.testing.assert_allclose(again, point, rtol=0, atol=ROUNDING)
        expected = distance(manifold, matrix, size)
        np.testing.assert_allclose(residual, expected, rtol=ROUNDING, atol=ROUNDING)


@everywhere
@law
@given(seed=seeds)
def test_tangent_projection(x64, manifold, shape, seed):
    _, y, z, found = draw(manifold, shape, seed)
    tangents = (found.tangent, found.tangent_again, found.other_tangent)
    for u, v, point, tangent, again, other in each(y, z, found.projected, *tangents):
        size = size_of(manifold, point)
        expected = tangent_part(manifold, point, u, size)
        np.testing.assert_allclose(tangent, expected, rtol=0, atol=ROUNDING)
        np.testing.assert_allclose(again, tangent, rtol=0, atol=ROUNDING)
        # Self-adjoint: <P u, v> = <u, P v>.
        assert np.sum(tangent * v) == pytest.approx(np.sum(u * other), abs=ROUNDING)


@pytest.mark.promise(
    "Manifolds",
    "A retraction lands on the manifold and agrees with the step to first order",
    on="every manifold",
)
@everywhere
@law
@given(seed=seeds)
def test_retraction(x64, manifold, shape, seed):
    _, _, _, found = draw(manifold, shape, seed)
    still, small, larger, far = found.retracted
    points = (found.projected, found.tangent, still, small, larger, far)
    for point, tangent, unmoved, near, further, away in each(*points):
        size = size_of(manifold, point)
        np.testing.assert_allclose(unmoved, point, rtol=0, atol=ROUNDING)
        assert distance(manifold, away, size) <= ROUNDING
        # The projection of the sum, for steps of any length.
        expected = nearest(manifold, point + tangent, size)
        np.testing.assert_allclose(away, expected, rtol=0, atol=ROUNDING)
        errors = [
            np.linalg.norm(moved - point - step * tangent)
            for moved, step in zip((near, further), STEPS[1:3], strict=True)
        ]
        if isinstance(manifold, Euclidean):
            assert max(errors) <= ROUNDING
            continue
        # First order: the error falls with the square of the step, up to terms of
        # relative size (0.01 ||tangent|| / size)^2 (seen: a slope of 1.95 to 2).
        slope = np.log10(errors[1] / errors[0])
        assert abs(slope - 2) <= 0.1


@pytest.mark.parametrize(
    ("manifold", "shape"),
    [
        (Sphere("kept"), WIDE_BATCH),
        (Stiefel("rms"), WIDE_BATCH),
    ],
    ids=str,
)
def test_float32_reaches_its_rounding(manifold, shape):
    x = jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)
    found = compiled(manifold, x, x[..., ::-1], x[..., ::-1, :])
    moved = found.retracted[-1]
    for array in found:
        assert array.dtype == jnp.float32
    for start, point, end in each(*map(np.asarray, (x, found.projected, moved))):
        size = size_of(manifold, start.astype(np.float64))
        # Orthonormal columns to some eps (seen: 6e-7).
        assert distance(manifold, point.astype(np.float64), size) <= 1e-6
        assert distance(manifold, end.astype(np.float64), size) <= 1e-6


@pytest.mark.parametrize(
    ("manifold", "shape"),
    [
        (Euclidean(), TALL),
        (Sphere("kept"), TALL),
        (Sphere("rms"), WIDE_BATCH),
        (Stiefel(0.5), TALL),
    ],
    ids=str,
)
def test_random_point(manifold, shape):
    key, other = jax.random.split(jax.random.key(0))
    if manifold.size == "kept":
        with pytest.raises(ValueError, match="takes its radius from the incoming"):
            manifold.random_point(key, shape)
        return
    draw_point = jax.jit(manifold.random_point, static_argnums=(1, 2))
    point = draw_point(key, shape, jnp.float32)
    assert point.shape == shape
    assert point.dtype == jnp.float32
    np.testing.assert_array_equal(point, draw_point(key, shape, jnp.float32))
    another = draw_point(other, shape, jnp.float32)
    assert float(jnp.abs(point - another).max()) > 0.01
    for matrix in np.asarray(point, np.float64).reshape(-1, *shape[-2:]):
        # Rounding of float32, as after any projection (seen: 6e-7).
        assert distance(manifold, matrix, size_of(manifold, matrix)) <= 1e-6
    assert draw_point.eval_shape(key, shape, jnp.bfloat16).dtype == jnp.bfloat16


def test_random_points_are_as_accurate_as_their_dtype(x64):
    for manifold in (Stiefel(0.5), Sphere(2.5)):
        draw_point = jax.jit(manifold.random_point, static_argnums=(1, 2))
        point = draw_point(jax.random.key(0), TALL, jnp.float64)
        assert distance(manifold, np.asarray(point), manifold.size) <= ROUNDING
        # The same point in every dtype.
        narrow = draw_point(jax.random.key(0), TALL, jnp.float32)
        np.testing.assert_allclose(narrow, point, atol=1e-6)


@pytest.mark.parametrize("spec", [P("x"), P(None, "x")])
@pytest.mark.parametrize("manifold", [Stiefel(), Sphere()], ids=str)
@pytest.mark.slow
def test_residual_on_an_explicit_mesh(manifold, spec):
    mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Explicit,))
    point = manifold.random_point(jax.random.key(0), (2, *TALL))
    put = jax.device_put(point, NamedSharding(mesh, P(None, *spec)))
    assert jax.jit(manifold.residual)(put).max() <= 1e-6


def test_the_projection_onto_the_sphere_is_differentiable():
    x = jnp.array([[3.0, 4.0]])
    found = jax.jit(jax.jacrev(Sphere().project))(x)[0, :, 0, :]
    # (I − uuᵀ)/‖x‖ with u = (0.6, 0.8); one rounding.
    np.testing.assert_allclose(found, [[0.128, -0.096], [-0.096, 0.072]], atol=1e-7)


def test_batches_of_empty_matrices_have_residuals():
    assert np.array_equal(Stiefel().residual(jnp.zeros((3, 4, 0))), np.zeros(3))


def test_norms_below_one_do_not_underflow(x64):
    # 1e-200 has no square in float64.
    point = 1e-200 * jnp.eye(3, dtype=jnp.float64)
    found = Sphere().project(point)
    # One division by a rounded root.
    np.testing.assert_allclose(found, np.eye(3) / 3**0.5, rtol=1e-15)
    np.testing.assert_allclose(
        np.ravel(Sphere("kept").scale_of(point, 3, 3)), 3**0.5 * 1e-200, rtol=1e-15
    )
