"""Norms and normalisation over the rows: scale-safe and exact for zero."""

import jax.numpy as jnp
import numpy as np
import pytest

from manifold_optax.linalg._reductions import (
    frobenius_norm,
    gram,
    max_abs,
    normalize,
    row_count,
    skew,
    symmetric,
)

EPS = float(np.finfo(np.float32).eps)


def gaussian(shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("scale", [1e-35, 1e-30, 1.0, 1e30, 1e37])
def test_frobenius_norm_neither_underflows_nor_overflows(scale):
    x = gaussian((3, 5, 4)) * np.float32(scale)
    expected = np.linalg.norm(x.astype(np.float64), axis=(-2, -1), keepdims=True)
    # A sum of 20 squares (seen: 1 eps).
    np.testing.assert_allclose(frobenius_norm(jnp.asarray(x)), expected, rtol=8 * EPS)


@pytest.mark.parametrize("scale", [1e-35, 1.0, 1e37])
def test_normalize(scale):
    x = jnp.asarray(gaussian((3, 5, 4)) * np.float32(scale))
    norms = frobenius_norm(normalize(x))
    # A sum of 20 squares (seen: 1 eps).
    np.testing.assert_allclose(norms, np.ones((3, 1, 1)), rtol=8 * EPS)


def test_zero_and_nan():
    zero = jnp.zeros((5, 4))
    assert float(frobenius_norm(zero)[0, 0]) == 0
    assert not np.any(normalize(zero))
    bad = zero.at[0, 0].set(jnp.nan)
    assert jnp.isnan(frobenius_norm(bad)[0, 0])
    assert jnp.isnan(normalize(bad)[0, 0])
    assert jnp.isnan(normalize(zero.at[0, 0].set(jnp.inf))[0, 0])


def test_gram_is_exactly_symmetric_and_parts_add_up():
    square = gram(jnp.asarray(gaussian((3, 50, 7))))
    np.testing.assert_array_equal(square, square.mT)
    x = jnp.asarray(gaussian((3, 7, 7)))
    whole = symmetric(x) + skew(x)
    # Two halves, each rounded once.
    np.testing.assert_allclose(whole, x, atol=4 * EPS)


def test_row_count_and_empty_maximum():
    assert row_count(jnp.ones((3, 5, 4))) == 5
    assert float(max_abs(jnp.zeros((0, 4)))[0, 0]) == 0
