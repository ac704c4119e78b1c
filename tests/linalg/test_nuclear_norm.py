"""The nuclear norm and its upper bound by products alone, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from manifold_optax.linalg import nuclear_norm
from manifold_optax.linalg._nuclear_norm import (
    nuclear_norm_bound,
    nuclear_norm_by_products,
)

EPS = float(np.finfo(np.float32).eps)
BORDER = 90 * EPS


def stack(m, n):
    rng = np.random.default_rng(2)
    cases = [oracles.gradient(kind, rng, m, n) for kind in oracles.GRADIENT_KINDS]
    # Eight decades, and what `polar` drops: singular values below 100 rounding units.
    for values in (10.0 ** -np.linspace(0, 8, n), np.r_[1, np.full(n - 1, BORDER)]):
        left = oracles.stiefel_point(rng, m, n) * values
        cases.append(left @ oracles.stiefel_point(rng, n, n))
    scales = np.geomspace(1e-30, 1e30, len(cases))
    return np.stack([s * x for s, x in zip(scales, cases, strict=True)]).astype("f4")


SHAPES = (
    (40, 24),
    pytest.param((24, 24), marks=pytest.mark.slow),
    pytest.param((9, 30), marks=pytest.mark.slow),
)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_bound_is_above_and_near(shape):
    x = stack(*shape) if shape[0] >= shape[1] else stack(*shape[::-1]).mT
    exact = np.linalg.norm(x.astype(np.float64), "nuc", axis=(-2, -1))
    found = np.asarray(jax.jit(nuclear_norm_bound)(jnp.asarray(x)), np.float64)
    excess = found[:, 0, 0] / exact - 1
    assert excess.min() >= 0
    # 24 rounding units, what the factors leave, and the ridge of the root near the
    # border (seen: 2e-5 of eight decades, 6e-5 at the border).
    assert excess.max() <= 1e-4
    plain = jax.jit(nuclear_norm_by_products)(jnp.asarray(x))[:, 0, 0]
    # What is dropped: up to 23 singular values of 90 rounding units (seen: 2e-4).
    np.testing.assert_allclose(plain, exact, rtol=24 * BORDER)


def test_zero_gives_zero_and_nan_stays_alone():
    x = np.stack([np.zeros((4, 3)), np.full((4, 3), np.nan), np.eye(4, 3)])
    found = jax.jit(nuclear_norm_bound)(jnp.asarray(x, jnp.float32))[:, 0, 0]
    assert found[0] == 0
    assert np.isnan(found[1])
    assert float(found[2]) == pytest.approx(3, abs=64 * EPS)


def test_the_public_norm_takes_products_where_they_are_fast(on_accelerators):
    norm = jax.jit(lambda x: nuclear_norm(x))
    x = jnp.asarray(oracles.gradient("gaussian", np.random.default_rng(0), 9, 30), "f4")
    exact = np.linalg.norm(np.asarray(x, np.float64), "nuc")
    assert float(norm(x)) == pytest.approx(exact, rel=8 * EPS)
    assert "custom_call" not in norm.lower(x).as_text()
