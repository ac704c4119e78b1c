"""polar and polar_svd against the float64 SVD."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import oracles
from manifold_optax import linalg

EPS = float(np.finfo(np.float32).eps)
SHAPES = ((24, 8), (8, 24), (16, 16), (9, 1), (1, 9))
BOTH = {"polar": jax.jit(linalg.polar), "polar_svd": jax.jit(linalg.polar_svd)}
polar = BOTH["polar"]

law = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)


def gaussian(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def with_values(m, n, values, seed=0):
    rng = np.random.default_rng(seed)
    left = oracles.stiefel_point(rng, m, n)
    return (left * values) @ oracles.stiefel_point(rng, n, n).T


def condition(x):
    return np.linalg.cond(np.asarray(x, np.float64))


def tolerance(x):
    # First-order perturbation: eps times the condition number, plus the rounding of the
    # last products (seen: 3.3 eps at condition 1, 2.3 eps times the condition at 10).
    return EPS * (8 + 4 * condition(x))


@pytest.mark.promise(
    "Numbers",
    "The polar factor is that of an SVD in float64",
    on="float32",
)
@law
@given(seed=seeds, shape=st.sampled_from(SHAPES))
def test_identities(seed, shape):
    x = jnp.asarray(gaussian(shape, seed))
    q, bound = polar(x), tolerance(x)
    np.testing.assert_allclose(q, oracles.polar(x), atol=bound)
    np.testing.assert_allclose(polar(-3 * x), -q, atol=bound)
    np.testing.assert_allclose(polar(x.mT), q.mT, atol=bound)
    # It attains the nuclear norm; a sum of at most 256 terms in float32.
    nuclear = np.linalg.svd(np.asarray(x, np.float64), compute_uv=False).sum()
    np.testing.assert_allclose(jnp.sum(x * q), nuclear, rtol=32 * EPS)


@pytest.mark.promise(
    "Numbers", "Rotating a matrix rotates its polar factor", on="float32"
)
@law
@given(seed=seeds, shape=st.sampled_from(SHAPES))
def test_equivariance(seed, shape):
    x = gaussian(shape, seed).astype(np.float64)
    rng = np.random.default_rng(seed)
    left, right = (oracles.stiefel_point(rng, size, size) for size in shape)
    moved = polar(jnp.asarray(left @ x @ right, jnp.float32))
    np.testing.assert_allclose(
        moved, left @ oracles.polar(x) @ right, atol=tolerance(x)
    )


@law
@given(seed=seeds)
def test_skew_stays_skew(seed):
    # Even size: an odd one is singular.
    x = np.triu(gaussian((16, 16), seed), 1)
    q = polar(jnp.asarray(x - x.T))
    np.testing.assert_allclose(q, -q.mT, atol=tolerance(x - x.T))


def test_is_the_gradient_of_the_nuclear_norm():
    x = jnp.asarray(gaussian((24, 8)))
    slope = jax.grad(linalg.nuclear_norm)(x)
    # The derivative goes through an SVD of float32 (seen: 3e-7).
    np.testing.assert_allclose(polar(x), slope, atol=tolerance(x))


@pytest.mark.parametrize("name", BOTH)
def test_diagonal_gives_signs_and_a_column_its_direction(name):
    values = jnp.array([3.0, -2.0, 0.5, -1.0])
    # A few eps of entries below 1 (seen: 3e-8).
    signs = BOTH[name](jnp.diag(values))
    np.testing.assert_allclose(signs, np.diag([1, -1, 1, -1]), atol=8 * EPS)
    column = gaussian((9, 1))
    unit = column / np.linalg.norm(column)
    np.testing.assert_allclose(BOTH[name](jnp.asarray(column)), unit, atol=8 * EPS)


@pytest.mark.parametrize("shape", [(128, 32), (200, 3)])
def test_the_reference_drops_no_more_than_polar_does(shape):
    x = with_values(*shape, values=np.geomspace(1, 1e-4, shape[1])).astype(np.float32)
    # The condition times the rounding of an SVD in float32 (seen: 2.3e-4); 1 is a
    # singular value that is dropped.
    error = np.linalg.norm(BOTH["polar_svd"](x) - oracles.polar(x), 2)
    assert error <= 2e-3


@pytest.mark.promise(
    "Faults",
    "Ill-conditioned matrices become orthonormal",
    on="polar factor; float32, condition up to 1e4",
)
@pytest.mark.parametrize("cond", [1.0, 10.0, 1e2, 1e3, 1e4])
@pytest.mark.parametrize("shape", [(24, 8), (16, 16), (64, 64)])
def test_ill_conditioned_matrices_become_orthonormal(shape, cond, measured):
    values = np.geomspace(1, 1 / cond, shape[1])
    x = with_values(*shape, values=values).astype(np.float32)
    q = np.asarray(polar(jnp.asarray(x)), np.float64)
    # The promised rounding of the last product, whatever the condition (seen: 6.8e-7
    # at 64 x 64).
    measured(np.linalg.norm(q.T @ q - np.eye(shape[1]), 2), at_most=1e-6)
    assert np.linalg.norm(q - oracles.polar(x), 2) <= tolerance(x)


@pytest.mark.parametrize("distance", [0.0, 1e-6, 1e-3, 0.05, 0.2])
def test_near_the_manifold(distance):
    rng = np.random.default_rng(0)
    w = oracles.stiefel_point(rng, 24, 8)
    noise = rng.standard_normal((24, 8))
    x = w + distance * noise / np.linalg.norm(noise)
    q = np.asarray(polar(jnp.asarray(x, jnp.float32)), np.float64)
    # Condition near 1: a few eps of unit columns (seen: 1.5e-7).
    np.testing.assert_allclose(q, oracles.polar(x), atol=8 * EPS)


@pytest.mark.promise(
    "Faults",
    "Low rank gives a partial isometry",
    on="polar factor, spectral norm; float32",
)
@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("rank", [1, 2, 4, 7])
@pytest.mark.parametrize("shape", [(24, 8), (16, 16)])
def test_low_rank_gives_a_partial_isometry(shape, rank, name):
    m, n = shape
    x = gaussian((m, rank)) @ gaussian((rank, n), seed=1)
    q = np.asarray(BOTH[name](jnp.asarray(x)), np.float64)
    # The kept part is as accurate as a full-rank one of its condition (below 30 here),
    # the dropped part vanishes quadratically (seen: 8.5e-7).
    np.testing.assert_allclose(q, oracles.polar(x, 1e-5), atol=128 * EPS)
    values = np.linalg.svd(q, compute_uv=False)
    expected = np.repeat([1.0, 0.0], [rank, n - rank])
    # Orthonormal to some eps (seen: 6e-7).
    np.testing.assert_allclose(values, expected, atol=8 * EPS)


@pytest.mark.parametrize(
    ("smallest", "image"), [(1e-4, 1.0), (3e-5, 1.0), (1e-6, 0.0), (1e-8, 0.0)]
)
def test_the_border_of_rank(smallest, image):
    # Documented: about 100 eps = 1.2e-5, unsharp within a factor of two.
    x = with_values(24, 8, np.array([1.0] * 7 + [smallest]))
    values = np.linalg.svd(np.asarray(polar(jnp.asarray(x, jnp.float32))))[1]
    # Rounding (seen: 2.5e-7); a value that ended in between would be far from both.
    assert values[-1] == pytest.approx(image, abs=1e-6)


@pytest.mark.promise(
    "Faults", "A zero matrix gives zero", on="Newton–Schulz, polar factor"
)
@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("shape", SHAPES)
def test_zero_stays_zero(shape, name):
    assert not np.any(BOTH[name](jnp.zeros(shape)))


@pytest.mark.promise(
    "Faults",
    "The scale of a gradient does not change its direction",
    on="norms, Newton–Schulz, polar factor; float32, 1e-30 to 1e30",
)
@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_scale_changes_nothing(scale, name, measured):
    x = gaussian((24, 8))
    found = BOTH[name](jnp.asarray(x * np.float32(scale)))
    # Rounding of the scaled input, plus that of the method (seen: 3e-7).
    measured(np.abs(found - oracles.polar(x)).max(), at_most=2 * tolerance(x))


@pytest.mark.promise(
    "Numbers", "A power of two as a factor changes no bit of a direction", on="float32"
)
@pytest.mark.parametrize("exponent", [-99, 99])
def test_powers_of_two_change_no_bit(exponent):
    x = jnp.asarray(gaussian((24, 8)))
    np.testing.assert_array_equal(polar(x * 2.0**exponent), polar(x))


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("shape", [(24, 8), (8, 24)])
def test_a_bad_entry_spoils_its_matrix_and_no_other(shape, bad, name):
    x = np.stack([gaussian(shape), gaussian(shape, seed=1)])
    x[1, 2, 3] = bad
    found = np.asarray(BOTH[name](jnp.asarray(x)))
    assert np.isnan(found[1]).all()
    np.testing.assert_allclose(found[0], oracles.polar(x[0]), atol=tolerance(x[0]))


@pytest.mark.parametrize("name", BOTH)
def test_a_batch_is_its_slices(name):
    # Slices of every kind, so that they leave the loop at different steps.
    x = gaussian((2, 3, 24, 8)) * np.geomspace(1e-3, 1e3, 6).reshape(2, 3, 1, 1)
    x[0, 0] = oracles.polar(x[0, 0])
    x[0, 1] = 0
    x[1, 2, :, 0] = x[1, 2, :, 1]
    x = jnp.asarray(x, jnp.float32)
    slices = [[BOTH[name](matrix) for matrix in row] for row in x]
    # On a CPU a batched product sums in another order than a single one, so that equal
    # bits are not to be had (seen: 4e-7; condition below 10).
    np.testing.assert_allclose(BOTH[name](x), jnp.asarray(slices), atol=48 * EPS)


@pytest.mark.parametrize("name", BOTH)
def test_bfloat16_in_is_bfloat16_out(name):
    x = jnp.asarray(gaussian((24, 8)), jnp.bfloat16)
    q = BOTH[name](x)
    assert q.dtype == jnp.bfloat16
    # Only the last rounding: half of 2^-7 of entries below 1.
    expected = oracles.polar(np.asarray(x, np.float64))
    np.testing.assert_allclose(q.astype(jnp.float32), expected, atol=2**-8)


@pytest.mark.parametrize("cond", [1.0, 1e4, 1e8, 1e11])
def test_float64(x64, cond):
    x = with_values(24, 8, np.geomspace(1, 1 / cond, 8))
    q = np.asarray(polar(jnp.asarray(x)))
    assert q.dtype == np.float64
    # Twenty roundings (seen: 3 eps), and the condition in the forward error.
    assert np.linalg.norm(q.T @ q - np.eye(8), 2) <= 20 * oracles.EPS
    bound = oracles.EPS * (20 + 4 * cond)
    assert np.linalg.norm(q - oracles.polar(x), 2) <= bound


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 3, 3)])
def test_empty_passes_through(shape, name):
    assert BOTH[name](jnp.zeros(shape)).shape == shape


def test_products_are_of_full_precision_whatever_the_default():
    x = jnp.asarray(gaussian((24, 8)))
    expected = polar(x)
    with jax.default_matmul_precision("bfloat16"):
        lowered = jax.jit(linalg.polar).lower(x).as_text()
        np.testing.assert_array_equal(jax.jit(linalg.polar)(x), expected)
    products = re.findall(r"dot_general.*?precision = \[(\w+), (\w+)\]", lowered)
    assert len(products) == lowered.count("stablehlo.dot_general") > 0
    assert set(products) == {("HIGHEST", "HIGHEST")}


@pytest.mark.parametrize("shape", SHAPES)
def test_svd_agrees_with_the_oracle(shape):
    x = gaussian(shape)
    found = BOTH["polar_svd"](jnp.asarray(x))
    # LAPACK in float32; as sensitive to the condition as any polar factor (seen: 3e-7).
    np.testing.assert_allclose(found, oracles.polar(x), atol=tolerance(x))
