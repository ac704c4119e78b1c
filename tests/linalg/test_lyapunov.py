"""solve_lyapunov against SciPy's Bartels-Stewart, and against the pseudo-inverse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import oracles
from manifold_optax import linalg
from manifold_optax.linalg._lyapunov import (
    lyapunov_by_products,
    solve_lyapunov_in_basis,
)

EPS = float(np.finfo(np.float32).eps)
SIZES = (1, 2, 5, 8)

solve = jax.jit(linalg.solve_lyapunov)


def definite(n, seed=0):
    """Symmetric, with eigenvalues from 1 to 10."""
    rng = np.random.default_rng(seed)
    vectors = oracles.stiefel_point(rng, n, n)
    return (vectors * rng.uniform(1, 10, n)) @ vectors.T


def gaussian(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def minimum_norm(a, b):
    """Minimum-norm solution of a x + x a = b, by the matrix of the equation."""
    n = len(a)
    equation = np.kron(a, np.eye(n)) + np.kron(np.eye(n), a.T)
    return (np.linalg.pinv(equation, rcond=1e-9) @ b.ravel()).reshape(n, n)


def float32(*arrays):
    return [jnp.asarray(array, jnp.float32) for array in arrays]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), n=st.sampled_from(SIZES))
def test_definite(seed, n):
    a, b = definite(n, seed), gaussian((n, n), seed)
    # eps times the condition 10, some products and an eigendecomposition (seen: 2 eps).
    tolerance = 40 * EPS * max(1, np.abs(b).max())
    found = solve(*float32(a, b))
    np.testing.assert_allclose(found, oracles.lyapunov(a, b), atol=tolerance)


def test_eigenvalues_of_any_size_count():
    # All sums of two of them are below 1.
    a, b = 1e-3 * definite(8), gaussian((8, 8))
    found = solve(*float32(a, b))
    # As above, times the size of the solution.
    expected = oracles.lyapunov(a, b)
    np.testing.assert_allclose(found, expected, atol=40 * EPS * 500 * np.abs(b).max())


@pytest.mark.parametrize("part", [oracles.sym, oracles.skew])
def test_symmetry_of_the_right_hand_side_is_kept(part):
    a, b = float32(definite(8), part(gaussian((8, 8))))
    found = solve(a, b)
    assert float(jnp.abs(found).max()) > 0.05
    # Rounding of the products (seen: 2e-8).
    np.testing.assert_allclose(found, part(np.asarray(found)), atol=4 * EPS)


def test_float64(x64):
    a, b = definite(8), gaussian((8, 8))
    found = solve(jnp.asarray(a), jnp.asarray(b))
    # The tolerance of float32 with the eps of float64 (seen: 4 eps).
    expected = oracles.lyapunov(a, b)
    np.testing.assert_allclose(found, expected, rtol=0, atol=80 * oracles.EPS)


def test_a_batch_is_its_slices():
    a = jnp.stack(float32(*(definite(8, seed) for seed in range(3))))
    (b,) = float32(gaussian((3, 8, 8)))
    slices = jnp.stack([solve(*pair) for pair in zip(a, b, strict=True)])
    # Products summed in another order.
    np.testing.assert_allclose(solve(a, b), slices, atol=8 * EPS)


def test_in_basis_is_the_same_equation():
    a, b = float32(definite(8), gaussian((8, 8)))
    values, vectors = jnp.linalg.eigh(a)
    found = solve_lyapunov_in_basis(values, vectors, b)
    # The same operations, jitted or not.
    np.testing.assert_allclose(found, solve(a, b), atol=8 * EPS)


def test_zero_coefficient_gives_zero():
    assert not np.any(solve(jnp.zeros((4, 4)), jnp.ones((4, 4))))


def test_singular_diagonal_gives_the_minimum_norm():
    a = np.diag([2.0, 1.0, 0.0, 0.0])
    b = gaussian((4, 4))
    # A division and the sums: some eps of entries below 3.
    found = solve(*float32(a, b))
    np.testing.assert_allclose(found, minimum_norm(a, b), atol=16 * EPS)
    # What the equation does not determine is exactly zero.
    assert not np.any(found[2:, 2:])


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_singular_gives_the_minimum_norm(rank, seed):
    # Generic vectors: the zero eigenvalues come out as rounding, of either sign.
    vectors = oracles.stiefel_point(np.random.default_rng(seed), 8, rank)
    a = (vectors * np.linspace(1, 2, rank)) @ vectors.T
    b = a @ gaussian((8, 8), seed) + gaussian((8, 8), seed) @ a
    found = solve(*float32(a, b))
    # Eigenvalues 1 to 2 on the range: as for a definite matrix.
    np.testing.assert_allclose(found, minimum_norm(a, b), atol=80 * EPS)


@pytest.mark.parametrize(("rough", "error"), [(False, 1e-4), (True, 1e-2)])
def test_by_products_is_the_quadrature(rough, error):
    a = definite(8) / 10
    b = oracles.sym(gaussian((8, 8)))
    found = jax.jit(lyapunov_by_products, static_argnames="rough")(
        jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32), rough=rough
    )
    expected = oracles.lyapunov(a, b)
    # The rule's error, 1e-5 for the ratio 2 and 4e-3 for 4, and the first node's, 6e-5.
    off = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert off <= error
    np.testing.assert_array_equal(found, found.T)


def test_what_is_noise_does_not_depend_on_the_number_of_matrices():
    # Eigenvalues of a ratio of 1e-4 are no noise of 2 × 2 matrices, however many.
    a = np.broadcast_to(np.diag([1.0, 1e-4]), (4096, 2, 2)).astype(np.float32)
    b = np.ones_like(a)
    expected = 1 / (np.diag(a[0])[:, None] + np.diag(a[0])[None])
    # Rounding of 1e-4, its root and a division, relative (seen: 2 eps).
    found = solve(a, b)
    np.testing.assert_allclose(found, np.broadcast_to(expected, a.shape), rtol=2e-6)
