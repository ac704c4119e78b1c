"""The sphere of a p-norm, against SciPy."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

import oracles
from manifold_optax.geometry import (
    p_norm_direction,
    PNorm,
    PNormSphere,
    Sphere,
    steepest_direction,
)
from operations import assert_no_scale, EPS, scale_cases

SHAPE = (6, 4)
EXPONENTS = (1.3, 2.0, 3.0, 8.0)
exponents = pytest.mark.parametrize("p", EXPONENTS)


def p_norm(x, p):
    return np.sum(np.abs(x) ** p) ** (1 / p)


def shifted_norm(g, normal, q, shift):
    return p_norm(g + shift * normal, q)


def power(x, exponent):
    return np.sign(x) * np.abs(x) ** exponent


def compute(p, x, g):
    manifold = PNormSphere(p)
    point = manifold.project(x)
    return (
        point,
        manifold.residual(2 * point),
        manifold.to_tangent(point, g),
        manifold.retract(point, g),
        steepest_direction(manifold, PNorm(p))(point, g),
    )


compiled = jax.jit(compute, static_argnums=0)


def run(p, x, g):
    found = compiled(p, jnp.asarray(x, jnp.float32), jnp.asarray(g, jnp.float32))
    return [np.asarray(part, np.float64) for part in found]


@exponents
def test_manifold(p):
    x, g = np.random.default_rng(0).standard_normal((2, 3, *SHAPE))
    found = run(p, x, g)
    for w, v, point, residual, tangent, moved in zip(x, g, *found[:4], strict=True):
        # Powers in float32 (seen: 3 eps).
        np.testing.assert_allclose(point, w / p_norm(w, p), atol=16 * EPS)
        assert residual == pytest.approx(1, abs=16 * EPS)
        normal = power(w / p_norm(w, p), p - 1)
        expected = v - normal * np.sum(normal * v) / np.sum(normal**2)
        np.testing.assert_allclose(tangent, expected, atol=32 * EPS)
        expected = (point + v) / p_norm(point + v, p)
        np.testing.assert_allclose(moved, expected, atol=16 * EPS)


@exponents
def test_direction_attains_the_dual_bound(p):
    x, g = np.random.default_rng(1).standard_normal((2, 3, *SHAPE))
    q = p / (p - 1)
    found = run(p, x, g)
    for point, v, a in zip(found[0], g, found[4], strict=True):
        normal = power(point, p - 1)
        # min over lambda of the q-norm of g + lambda n bounds every feasible direction.
        along = functools.partial(shifted_norm, v, normal, q)
        least: Any = optimize.minimize_scalar(along)
        bound = least.fun
        assert p_norm(a, p) == pytest.approx(1, abs=32 * EPS)
        assert abs(np.sum(a * normal)) <= 32 * EPS
        value = np.sum(a * v)
        # Rounding: the value is stationary at the solution (seen: 2e-7).
        assert bound * (1 - 64 * EPS) <= value <= bound * (1 + 16 * EPS)


@exponents
def test_scale_zero_normal_and_nan(p):
    w, g = np.random.default_rng(2).standard_normal((2, *SHAPE))
    w /= p_norm(w, p)
    cases = scale_cases(g, 3 * power(w, p - 1))
    # Of three matrices each, as in the tests above: one compilation for all.
    halves = [run(p, np.stack([w, w, w]), half)[4] for half in np.split(cases, 2)]
    # Rounding through powers: large p has |x|^(q-1) with an infinite slope at 0.
    assert_no_scale(np.concatenate(halves), atol=1e-4)


def test_at_two_it_is_the_sphere():
    w, g = np.random.default_rng(3).standard_normal((2, 3, *SHAPE))
    found = run(2.0, w, g)[4]
    for point, v, a in zip(w, g, found, strict=True):
        np.testing.assert_allclose(a, oracles.sphere_direction(point, v), atol=16 * EPS)
    direction = jax.jit(steepest_direction(Sphere(), PNorm(2.0)))
    point = jnp.asarray(w[0] / np.linalg.norm(w[0]), jnp.float32)
    found = direction(point, jnp.asarray(g[0], jnp.float32))
    expected = oracles.sphere_direction(w[0], g[0])
    np.testing.assert_allclose(found, expected, atol=16 * EPS)


def test_without_a_normal_it_is_the_direction_of_the_norm():
    g = jnp.asarray(np.random.default_rng(4).standard_normal(SHAPE), jnp.float32)
    found = jax.jit(p_norm_direction, static_argnums=2)(jnp.zeros(SHAPE), g, 3.0)
    np.testing.assert_allclose(found, PNorm(3.0).steepest(g), atol=16 * EPS)


def test_what_is_refused(unhooked):
    for p in (1.0, 0.5, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"p must satisfy 1 < p < inf.*L1"):
            PNormSphere(p)
    with pytest.raises(ValueError, match="radius must be > 0"):
        PNormSphere(3.0, -1.0)
    assert PNormSphere(3.0, 2.0).unit() == PNormSphere(3.0)
