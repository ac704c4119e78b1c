"""Both roots of a semidefinite matrix against an eigendecomposition in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from manifold_optax.linalg._square_root import eigh_root, product_root

N = 12


def problem(smallest):
    """A matrix whose root has singular values from `smallest` to 3, and the root."""
    vectors = oracles.stiefel_point(np.random.default_rng(0), N, N)
    values = np.geomspace(smallest, 3.0, N)
    return (vectors * values**2) @ vectors.T, (vectors * values) @ vectors.T


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


ROOTS = {
    # Bounds: the ridge, ε²·3²/2σ on a root σ (seen: 2e-5), and the rows' error, 2.4e-2.
    "eigh": (lambda x: eigh_root(x, epsilon=2e-3), 5e-5),
    "products": (lambda x: product_root(x, epsilon=2e-3, rows=6), 1e-4),
    "rough": (lambda x: product_root(x, epsilon=2e-3, rows=5), 2.5e-2),
}


@pytest.mark.parametrize("name", ROOTS)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_root_and_inverse(name, scale):
    square, root = problem(0.3)
    take, bound = ROOTS[name]
    found = take(jnp.asarray(scale**2 * square, jnp.float32))
    assert relative(found.matrix / scale, root) <= bound
    # The ridge adds ε²(3/0.3)²/2 to the smallest root, relatively.
    assert relative(found.inverse * scale, np.linalg.inv(root)) <= bound + 2e-4
    assert float(found.trace) / scale == pytest.approx(np.trace(root), rel=bound)


@pytest.mark.parametrize("name", ROOTS)
def test_symmetrize_solves_its_equation(name):
    square, root = problem(0.3)
    h = np.random.default_rng(1).standard_normal((N, N))
    found = ROOTS[name][0](jnp.asarray(square, jnp.float32))
    r = found.symmetrize(jnp.asarray(h, jnp.float32))
    expected = oracles.lyapunov(root, root @ h + h.T @ root)
    # Twice the root's own error enters.
    assert relative(r, expected) <= 3 * ROOTS[name][1]


@pytest.mark.parametrize("name", ROOTS)
def test_singular_matrices_get_a_bounded_inverse(name):
    square, _ = problem(0.3)
    flat = square - 0.3**2 * np.outer(*2 * [np.linalg.eigh(square)[1][:, 0]])
    for x in (flat, np.zeros((N, N))):
        found = ROOTS[name][0](jnp.asarray(x, jnp.float32))
        assert np.isfinite(found.matrix).all()
        assert np.isfinite(found.inverse).all()
    assert np.linalg.norm(found.matrix, 2) <= 1e-12


def test_nan_stays_visible():
    for take, _ in ROOTS.values():
        assert np.isnan(take(jnp.full((N, N), jnp.nan)).matrix).any()
