"""The spectral sphere, and spectral directions orthogonal to one matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from manifold_optax.geometry import (
    normal_spectral_direction,
    RmsToRms,
    SpectralSphere,
    steepest_direction,
)
from operations import assert_no_scale, EPS, operate, scale_cases, SHAPE
from oracles_steepest import optimum_orthogonal_to

KINDS = oracles.GRADIENT_KINDS

solve = jax.jit(normal_spectral_direction)


def run(normals, gradients):
    found = solve(
        jnp.asarray(normals, jnp.float32), jnp.asarray(gradients, jnp.float32)
    )
    return np.asarray(found.direction, np.float64), np.asarray(found.gap)


def leading(w):
    u, _, vt = np.linalg.svd(w)
    return np.outer(u[:, 0], vt[0])


@pytest.mark.parametrize("shape", [(2, *SHAPE), (2, 5, 8)])
def test_manifold(shape):
    manifold = SpectralSphere("rms")
    x, v = np.random.default_rng(0).standard_normal((2, *shape))
    radius = np.sqrt(shape[1] / shape[2])
    found = operate(manifold, x, v)
    for w, u, point, residual, tangent, moved in zip(x, v, *found, strict=True):
        # Rounding, and for the singular vectors that over the gap, above 0.1 here.
        np.testing.assert_allclose(
            point, radius * w / np.linalg.norm(w, 2), atol=8 * EPS
        )
        expected = abs(np.linalg.norm(w, 2) / radius - 1)
        assert residual == pytest.approx(expected, rel=16 * EPS)
        normal = leading(w)
        expected = u - normal * np.sum(normal * u)
        np.testing.assert_allclose(tangent, expected, atol=128 * EPS)
        expected = radius * (point + u) / np.linalg.norm(point + u, 2)
        np.testing.assert_allclose(moved, expected, atol=16 * EPS)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_any_scale_and_nearly_equal_values(scale):
    # A power iteration would need thousands of steps here.
    w = oracles.polar(np.random.default_rng(1).standard_normal((2, *SHAPE))[0])
    w = np.stack([w, w * [1, 1 - 1e-4, 1 - 2e-4, 1, 0.5]])
    point = operate(SpectralSphere(), scale * w, np.ones((2, *SHAPE))).point
    norms = np.linalg.norm(point, 2, axis=(-2, -1))
    np.testing.assert_allclose(norms, 1, atol=4 * EPS)


def test_zero_nan_and_random_point():
    zero = np.zeros((2, *SHAPE))
    assert not operate(SpectralSphere(), zero, zero).point.any()
    bad = operate(SpectralSphere(), np.full((2, *SHAPE), np.nan), zero)
    assert np.isnan(bad.point).all()
    assert np.isnan(bad.residual).all()
    point = SpectralSphere(3.0).random_point(jax.random.key(0), SHAPE)
    assert np.linalg.norm(point, 2) == pytest.approx(3, rel=4 * EPS)
    assert SpectralSphere(3.0).unit() == SpectralSphere()


@pytest.mark.parametrize("kind_of_normal", ["sphere", "spectral sphere"])
def test_feasible_and_nearly_optimal_by_an_independent_bound(kind_of_normal):
    rng = np.random.default_rng(2)
    normals = rng.standard_normal((len(KINDS), *SHAPE))
    if kind_of_normal == "spectral sphere":
        normals = np.stack([leading(w) for w in normals])
    normals /= np.linalg.norm(normals, axis=(1, 2), keepdims=True)
    gradients = np.stack([oracles.gradient(kind, rng, *SHAPE) for kind in KINDS])
    for normal, g, a, gap in zip(
        normals, gradients, *run(normals, gradients), strict=True
    ):
        assert abs(np.sum(normal * a)) <= 4 * EPS
        assert np.linalg.norm(a, 2) == pytest.approx(1, abs=8 * EPS)
        best, value = optimum_orthogonal_to([normal], g), np.sum(a * g)
        # Measured: 4e-3 at most, at rank one.
        assert 0.99 * best <= value <= best * (1 + 8 * EPS)
        # The certificate never promises more than is there; the oracle errs by 1e-5.
        assert gap >= max(0, 1 - value / best - 1e-5)
        # The margin of its bound, and the end of the bracket (measured: 3e-3).
        assert gap <= 1 - value / best + 1e-2


def test_scale_zero_normal_jump_and_nan():
    rng = np.random.default_rng(3)
    w = rng.standard_normal(SHAPE)
    w /= np.linalg.norm(w)
    g = rng.standard_normal(SHAPE)
    # At rank one f jumps over 0 where the gradient meets the normal's own matrix.
    jump = leading(w)
    cases = scale_cases(g, 5 * w)
    found, gaps = run(np.broadcast_to(w, cases.shape), cases)
    # Rounding of the gradient times the condition of the dual matrix, about 10.
    assert_no_scale(found, atol=256 * EPS)
    assert not gaps[3:5].any()
    cases = np.stack([jump, 2 * jump + w, -jump, g - 9 * w, w.mean() * w + g, g])
    found, _ = run(np.broadcast_to(jump, cases.shape), cases)
    # The first and third gradients are normal; the second only after the projection.
    assert not found[0].any()
    assert not found[2].any()
    assert np.abs(np.sum(found * jump, axis=(1, 2))).max() <= 4 * EPS


def test_one_column_is_the_sphere():
    rng = np.random.default_rng(4)
    w, g = rng.standard_normal((2, 7, 1))
    for x, y in ((w, g), (w.T, g.T)):
        found = solve(
            jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
        ).direction
        np.testing.assert_allclose(found, oracles.sphere_direction(x, y), atol=16 * EPS)


def test_rms_norm_is_the_spectral_one_rescaled():
    manifold = SpectralSphere()
    rng = np.random.default_rng(5)
    w, g = (jnp.asarray(x, jnp.float32) for x in rng.standard_normal((2, 5, 8)))
    w = manifold.project(w)
    found = jax.jit(steepest_direction(manifold, RmsToRms()))(w, g)
    assert float(RmsToRms().value(found)) == pytest.approx(1, abs=16 * EPS)
    assert abs(float(jnp.sum(found * leading(np.asarray(w))))) <= 32 * EPS


def test_the_search_converges_faster_than_halving():
    rng = np.random.default_rng(4)
    normals, gradients = rng.standard_normal((2, 6, *SHAPE))
    few = jax.jit(normal_spectral_direction, static_argnames="steps")(
        jnp.asarray(normals, jnp.float32), jnp.asarray(gradients, jnp.float32), steps=10
    )
    # Secants and every third step a half (seen: 2e-5); ten halves of a bracket of 9
    # would leave 1e-2 of it.
    assert float(few.gap.max()) <= 2e-4
