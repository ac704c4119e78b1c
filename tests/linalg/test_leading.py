"""The largest singular value and its vectors, by both ways, against float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from manifold_optax.linalg._leading import (
    largest_eigenvalue_by_products,
    leading_triple,
    leading_vector_by_products,
)
from manifold_optax.programs import dot_flops

EPS = float(np.finfo(np.float32).eps)
SIZE = 24
# Singular values: spread, all equal, two that nearly agree, a cluster whose members no
# power can tell apart and one that just can, one alone.
SPECTRA = (
    np.linspace(1, 0, SIZE),
    np.ones(SIZE),
    np.r_[1, 1 - 1e-4, np.linspace(0.9, 0, SIZE - 2)],
    np.r_[1 - 1e-7 * np.arange(8), np.linspace(0.9, 0, SIZE - 8)],
    1 - 1e-5 * np.arange(SIZE),
    np.r_[1.0, np.zeros(SIZE - 1)],
)


def stack(rows=SIZE):
    rng = np.random.default_rng(1)
    left = [oracles.stiefel_point(rng, rows, SIZE) for _ in SPECTRA]
    right = [oracles.stiefel_point(rng, SIZE, SIZE) for _ in SPECTRA]
    found = [(u * s) @ v.T for u, s, v in zip(left, SPECTRA, right, strict=True)]
    return np.stack(found).astype(np.float32)


def test_products_find_the_norm_whatever_the_gap(on_accelerators):
    x = stack(2 * SIZE)
    x = np.concatenate([x, 1e-30 * x[:1], 1e30 * x[:1]])
    found = jax.jit(lambda x: leading_triple(x))(jnp.asarray(x))
    exact = np.linalg.norm(x.astype(np.float64), 2, axis=(-2, -1))
    norm, left, right = (np.asarray(part, np.float64) for part in found)
    relative = norm[:, 0, 0] / exact - 1
    # From below by ln n rounding units, and the rounding of an image (seen: 2 below,
    # 1 above).
    assert relative.min() >= -(math.log(SIZE) + 4) * EPS
    assert relative.max() <= 8 * EPS
    lengths = [np.linalg.norm(vector, axis=1) for vector in (left, right)]
    np.testing.assert_allclose(lengths, 1, atol=8 * EPS)
    values = (left.mT @ x.astype(np.float64) @ right)[:, 0, 0]
    np.testing.assert_allclose(values, exact, rtol=16 * EPS)


def test_vectors_are_those_of_the_matrix_where_the_gap_is_wide(on_accelerators):
    x = stack()[[0, 5]]
    found = jax.jit(lambda x: leading_triple(x))(jnp.asarray(x))
    for matrix, left, right in zip(x, found.left, found.right, strict=True):
        u, _, vt = np.linalg.svd(matrix.astype(np.float64))
        # Rounding of the Gram matrix over the gap, 1/23 (seen: 1e-6).
        np.testing.assert_allclose(
            left * right.T, np.outer(u[:, 0], vt[0]), atol=128 * EPS
        )


def test_zero_has_a_unit_vector_and_nan_stays_alone(on_accelerators):
    x = np.stack([0 * stack()[0], np.full((SIZE, SIZE), np.nan), stack()[0]])
    found = jax.jit(lambda x: leading_triple(x))(jnp.asarray(x))
    assert not found.norm[0].any()
    assert not found.left[0].any()
    assert np.linalg.norm(found.right[0]) == 1
    assert all(np.isnan(part[1]).all() for part in found)
    assert float(found.norm[2, 0, 0]) == pytest.approx(1, abs=8 * EPS)


@pytest.mark.slow
def test_float64_is_as_exact(x64):
    x = stack().astype(np.float64)
    found = jax.jit(largest_eigenvalue_by_products)(jnp.asarray(x.mT @ x))
    exact = np.linalg.norm(x, 2, axis=(-2, -1)) ** 2
    np.testing.assert_allclose(found[:, 0, 0], exact, rtol=1e-14)


def test_costs_what_it_says():
    lowered = jax.jit(leading_vector_by_products).lower(jnp.ones((SIZE, SIZE)))
    # And one product with a unit vector, which XLA may write as a sum.
    spare = dot_flops(lowered.compile()) - 22 * 2 * SIZE**3
    assert spare in (0, 2 * SIZE**2)
