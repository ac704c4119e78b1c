"""The positive part of a symmetric matrix, by both ways, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from manifold_optax.linalg._positive_part import (
    positive_part,
    positive_part_by_eigh,
    positive_part_by_products,
    positive_projector,
)
from manifold_optax.programs import dot_flops

EPS = float(np.finfo(np.float32).eps)
SIZE = 24
# Eigenvalues: dense, half of them 0, decades of both signs, one, none above 0, and some
# on both sides of 0 as near as a face of a band has them.
SPECTRA = (
    np.linspace(-2, 3, SIZE),
    np.r_[np.linspace(-1, 1, SIZE // 2), np.zeros(SIZE // 2)],
    10.0 ** -np.linspace(0, 9, SIZE) * (-1.0) ** np.arange(SIZE),
    np.r_[1.0, np.zeros(SIZE - 1)],
    -np.linspace(0, 1, SIZE),
    np.r_[-np.ones(SIZE - 3), 1e-4, -1e-4, 1e-3],
)

both_ways = pytest.mark.parametrize(
    "way", [positive_part_by_eigh, positive_part_by_products]
)


def stack():
    rng = np.random.default_rng(0)
    found = []
    for values in SPECTRA:
        basis = oracles.stiefel_point(rng, SIZE, SIZE)
        y = (basis * values) @ basis.T
        found.append((y + y.T) / 2)
    return np.stack(found).astype(np.float32)


def reference(y):
    values, vectors = np.linalg.eigh(np.asarray(y, np.float64))
    return (vectors * np.maximum(values, 0)[..., None, :]) @ vectors.mT


@both_ways
def test_is_the_nearest_positive_semidefinite_matrix(way):
    y = stack()
    cases = np.concatenate([y, 1e-30 * y[:1], 1e30 * y[:1]])
    found = np.asarray(jax.jit(way)(jnp.asarray(cases)), np.float64)
    scales = np.abs(np.linalg.eigvalsh(cases.astype(np.float64))).max(axis=-1)
    errors = np.linalg.norm(found - reference(cases), 2, axis=(-2, -1))
    # Some rounding units of the largest eigenvalue (seen: 8 by products, 1 else).
    assert (errors <= 32 * EPS * scales).all()


@both_ways
def test_zero_gives_zero_and_nan_stays_alone(way):
    y = np.stack([0 * stack()[0], np.full((SIZE, SIZE), np.nan), stack()[0]])
    found = np.asarray(jax.jit(way)(jnp.asarray(y)))
    assert not found[0].any()
    assert np.isnan(found[1]).all()
    np.testing.assert_allclose(found[2], reference(y[2]), atol=32 * EPS * 3)


def test_the_projector_is_clean_where_the_sign_is_known():
    y = stack()
    found = np.asarray(jax.jit(positive_projector)(jnp.asarray(y)), np.float64)
    for matrix, projector in zip(y.astype(np.float64), found, strict=True):
        values, vectors = np.linalg.eigh(matrix)
        images = np.linalg.norm(projector @ vectors, axis=0)
        # What rounding turns of the eigenvectors: EPS over the distance from 0.
        assert (images[values < -1e-5] <= 1e-2).all()
        assert (images[values > 1e-5] >= 1 - 1e-2).all()
        assert np.linalg.eigvalsh(projector)[-1] <= 1 + 16 * EPS
    # With nothing above 0 but rounding of one eigenvalue, the rest is left without a
    # trace: a vector keeps all its digits where this is taken from it.
    inside = np.asarray(jax.jit(positive_projector)(jnp.asarray(y[4] - np.eye(SIZE))))
    assert np.abs(inside).max() <= 1e-12


@pytest.mark.slow
def test_float64_is_as_exact(x64):
    y = stack().astype(np.float64)
    found = jax.jit(positive_part_by_products)(jnp.asarray(y))
    # Some ten rounding units of an eigenvalue of 3.
    np.testing.assert_allclose(found, reference(y), rtol=0, atol=1e-14)


def test_costs_what_it_says():
    lowered = jax.jit(positive_part_by_products).lower(jnp.ones((SIZE, SIZE)))
    assert dot_flops(lowered.compile()) == 42 * 2 * SIZE**3


def test_the_platform_decides(on_accelerators):
    text = jax.jit(lambda y: positive_part(y)).lower(jnp.ones((4, 4))).as_text()
    assert "custom_call" not in text
