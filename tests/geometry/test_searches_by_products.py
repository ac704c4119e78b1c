"""Searches by matrix products alone find what eigendecompositions find."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manifold_optax as mo
import oracles
from manifold_optax.geometry import (
    Ball,
    Band,
    DiagonalGram,
    Oblique,
    Spectral,
    SpectralSphere,
    steepest_direction,
)
from manifold_optax.geometry._spectral_interval import (
    distance_by_eigh,
    distance_by_products,
)
from manifold_optax.geometry._spectral_shrinkage import (
    excess_by_eigh,
    excess_by_products,
)
from manifold_optax.geometry._steepest import certified_direction
from manifold_optax.geometry._stiefel_spectral_certificate import (
    BY_PRODUCTS,
)
from operations import EPS

SHAPE = (20, 12)
MANIFOLDS = (
    Oblique(),
    Oblique(of="columns"),
    DiagonalGram(),
    SpectralSphere(),
    mo.Sphere(),
    Ball(Spectral()),
    Ball(mo.RmsToRms()),
    Band(0.5, 1.0),
)


def on_cpu_and_elsewhere(function, *arrays):
    """The results of both platforms' programs, both run on the CPU."""
    arrays = [jnp.asarray(x, jnp.float32) for x in arrays]
    # A new function for each: before JAX 0.8 a platform is chosen at the first trace.
    plain = jax.jit(lambda *xs: function(*xs))(*arrays)
    with mo.programs.arithmetic_for("tpu"):
        other = jax.jit(lambda *xs: function(*xs))(*arrays)
    return plain, other


compiled = functools.cache(jax.jit)


def all_bounds(point, rotation, normal_free, shift):
    return (
        BY_PRODUCTS.tangent(point, rotation, normal_free, shift, None),
        BY_PRODUCTS.square(rotation),
        BY_PRODUCTS.length(normal_free, None),
    )


def with_values(values, shape=SHAPE, seed=0):
    rng = np.random.default_rng(seed)
    left = oracles.stiefel_point(rng, shape[0], len(values)) * values
    return left @ oracles.stiefel_point(rng, shape[1], len(values)).T


def at_both_ends(low, high):
    """Singular values at both ends of an interval, near them, and between."""
    middle = np.linspace(0.3, 0.7, 4) * (high - low) + low
    near = [high - 1e-3 * high, low + 1e-3 * high]
    return np.r_[np.full(4, high), near, middle, np.full(2, max(low, 1e-2))]


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_programs_for_accelerators_call_no_decomposition(manifold, on_accelerators):
    x = jnp.ones(SHAPE)

    def everything(point, vector):
        search = steepest_direction(manifold, Spectral())
        return (
            search(point, vector),
            manifold.to_tangent(point, vector),
            manifold.retract(point, vector),
            manifold.residual(point),
        )

    assert "custom_call" not in jax.jit(everything).lower(x, x).as_text()


def test_norms_and_decay_for_accelerators_call_no_decomposition(on_accelerators):
    x = jnp.ones(SHAPE)

    def everything(x):
        norm = Spectral()
        return (
            norm.value(x),
            norm.dual_value(x),
            norm.excess(x),
            norm.shrinkage(x, jnp.float32(0.1)),
            mo.Stiefel().residual(x),
        )

    assert "custom_call" not in jax.jit(everything).lower(x).as_text()


@pytest.mark.slow
@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_directions_are_as_good(manifold):
    rng = np.random.default_rng(3)
    gradients = [oracles.gradient(kind, rng, *SHAPE) for kind in oracles.GRADIENT_KINDS]
    gradients = np.stack([*gradients, 0 * gradients[0], np.full(SHAPE, np.nan)])
    if isinstance(manifold, Ball | Band):
        unit = np.sqrt(20 / 12) if manifold == Ball(mo.RmsToRms()) else 1.0
        points = unit * with_values(at_both_ends(0.5, 1.0))
        points = np.broadcast_to(points, gradients.shape)
    else:
        points = rng.standard_normal(gradients.shape)
        points = manifold.unit().project(jnp.asarray(points, jnp.float32))
    plain, other = on_cpu_and_elsewhere(
        certified_direction(manifold, Spectral()), points, gradients
    )
    values, found = (
        np.sum(np.asarray(x.direction, np.float64) * gradients, axis=(1, 2))[:-2]
        for x in (plain, other)
    )
    # The iterations are the same; what they are fed differs by rounding (seen: 4e-6).
    np.testing.assert_allclose(found, values, rtol=1e-4)
    np.testing.assert_allclose(other.gap[:-2], plain.gap[:-2], atol=1e-4)
    norms = np.linalg.norm(np.asarray(other.direction[:-2], np.float64), 2, axis=(1, 2))
    # From above by ln 12 rounding units at most, and rounding (seen: 2 of them).
    assert abs(norms - 1).max() <= 8 * EPS
    assert not other.direction[-2].any()
    assert np.isnan(other.direction[-1]).all()


@pytest.mark.slow
@pytest.mark.parametrize("low", [0.0, 1e-3, 0.5])
def test_cones_are_the_same(low):
    values = at_both_ends(low, 1.0)
    points = np.stack([with_values(values), with_values(0.7 * np.ones(12))])
    vectors = np.random.default_rng(4).standard_normal(points.shape)
    plain, other = on_cpu_and_elsewhere(Band(low, 1.0).to_tangent, points, vectors)
    # Rounding turns the singular vectors at an end, in both, by a few units over the
    # distance 1e-3 of their neighbours (seen: 3e-5); at the lowest end over 1e-6.
    np.testing.assert_allclose(other, plain, atol=1e-3 if 0 < low < 0.1 else 2e-4)
    # Inside nothing changes, to the last digit.
    np.testing.assert_array_equal(other[1], np.float32(vectors[1]))


@pytest.mark.parametrize("rate", [1e-6, 1e-3, 0.3])
@pytest.mark.parametrize(
    "way",
    [
        pytest.param(excess_by_eigh, marks=pytest.mark.slow),
        excess_by_products,
    ],
)
def test_excess_is_that_of_the_singular_values(way, rate):
    spectra = (np.linspace(1, 0, 12), np.ones(12), np.r_[1, np.zeros(11)])
    x = np.stack([with_values(s) for s in spectra]).astype(np.float32)
    u, s, vt = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    above = np.maximum(s - (1 - rate) * s[:, :1], 0)
    found = compiled(way)(jnp.asarray(x), jnp.float32(rate))
    # Rounding of the largest singular value (seen: 4 units).
    np.testing.assert_allclose(found, (u * above[:, None]) @ vt, rtol=0, atol=16 * EPS)


@pytest.mark.parametrize("low", [0.0, 0.5])
def test_distance_from_an_interval(low):
    spectra = (np.linspace(0.6, 0.9, 12), np.linspace(0.1, 0.9, 12), np.full(12, 1.5))
    x = np.stack([with_values(s) for s in spectra])
    expected = [max(s.max() - 1, low - s.min(), 0) for s in spectra]
    for way in (distance_by_eigh, distance_by_products):
        run = jax.jit(way, static_argnums=(1, 2))
        found = run(jnp.asarray(x, jnp.float32), low, 1.0)
        np.testing.assert_allclose(found, expected, atol=16 * EPS)


@pytest.mark.parametrize("kind", oracles.GRADIENT_KINDS)
def test_bounds_of_the_certificate_stay_bounds(kind):
    """Against the exact nuclear norm of the dual matrix of any dual point."""
    rng = np.random.default_rng(5)
    w = oracles.stiefel_point(rng, *SHAPE)
    g = oracles.gradient(kind, rng, *SHAPE)
    g /= np.linalg.norm(g)
    rotation = oracles.skew(w.T @ g)
    free = g - w @ (w.T @ g)
    shift = 0.1 * oracles.sym(rng.standard_normal((12, 12))) * np.linalg.norm(rotation)
    arrays = [jnp.asarray(x, jnp.float32) for x in (w, rotation, free, shift)]
    found = compiled(all_bounds)(*arrays)
    w, rotation, free, shift = (np.asarray(x, np.float64) for x in arrays)
    exact = (
        np.linalg.norm(w @ (rotation + shift) + free, "nuc"),
        np.linalg.norm(rotation, "nuc"),
        np.linalg.norm(free, 2),
    )
    for bound, value in zip(found, exact, strict=True):
        # Not below (a length by its rounding), nor far above (seen: 5e-6).
        assert -4 * EPS * value <= float(bound) - value <= 5e-5 * value


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(20, 12), (12, 12), (20, 1)], ids=str)
def test_the_certificate_by_products(shape):
    rng = np.random.default_rng(6)
    w = jnp.asarray(oracles.stiefel_point(rng, *shape), jnp.float32)
    g = jnp.asarray(oracles.gradient("gaussian", rng, *shape), jnp.float32)
    found = mo.geometry.stiefel_spectral_direction(
        w, g, backend="products", certify=True
    )
    assert found.gap is not None
    assert 0 <= float(found.gap) <= 1e-2
