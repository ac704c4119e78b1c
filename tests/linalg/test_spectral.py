"""spectral_norm, its bound, and nuclear_norm against NumPy's SVD."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import oracles
from manifold_optax import linalg, programs

EPS = float(np.finfo(np.float32).eps)
SHAPES = ((24, 8), (8, 24), (9, 1))

spectral_norm = jax.jit(linalg.spectral_norm, static_argnames="steps")
nuclear_norm = jax.jit(linalg.nuclear_norm)
bound_of = jax.jit(linalg.spectral_norm_bound, static_argnames="doublings")


def gaussian(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def values_of(x):
    return np.linalg.svd(np.asarray(x, np.float64), compute_uv=False)


def decaying(m, n, ratio, seed=0):
    """Matrix [m, n] with singular values 1, ratio, ratio^2, ..., and its factors."""
    rng = np.random.default_rng(seed)
    left, right = oracles.stiefel_point(rng, m, n), oracles.stiefel_point(rng, n, n)
    return (left * ratio ** np.arange(n)) @ right.T, left, right


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), shape=st.sampled_from(SHAPES))
def test_is_a_lower_bound_with_unit_vectors(seed, shape):
    x = gaussian(shape, seed)
    norm, left, right = spectral_norm(jnp.asarray(x))
    # Rounding of sums of at most 24 squares.
    assert float(norm) <= values_of(x)[0] * (1 + 8 * EPS)
    for vector in (left, right):
        assert float(jnp.linalg.norm(vector)) == pytest.approx(1, abs=8 * EPS)
    # The norm is the length of x right, which points along left.
    expected = np.asarray(x, np.float64) @ np.asarray(right, np.float64)
    np.testing.assert_allclose(norm * left, expected, atol=32 * EPS * float(norm))


@pytest.mark.parametrize("steps", [4, 16])
def test_converges_at_the_documented_rate(steps):
    ratio = 0.8
    x, _, factor = decaying(24, 8, ratio)
    start = jax.random.normal(jax.random.key(0), (8,))
    cosine = factor[:, 0] @ np.asarray(start) / np.linalg.norm(start)
    # The docstring: (s2/s1)^(4 steps) times the squared tangent; seen below it.
    bound = ratio ** (4 * steps) * (1 / cosine**2 - 1) + 8 * EPS
    found = spectral_norm(jnp.asarray(x, jnp.float32), steps=steps)
    assert 1 - float(found.norm) <= bound


def test_finds_the_singular_vectors():
    x, left, right = decaying(24, 8, 0.5)
    found = spectral_norm(jnp.asarray(x, jnp.float32))
    # The vectors converge like (s2/s1)^(2 steps) = 2e-10: rounding remains.
    sign = np.sign(right[:, 0] @ np.asarray(found.right))
    np.testing.assert_allclose(found.right, sign * right[:, 0], atol=16 * EPS)
    np.testing.assert_allclose(found.left, sign * left[:, 0], atol=16 * EPS)


def test_rows_that_sum_to_zero():
    # Small integers and a start of length 2: the products are exact, and exactly zero.
    half = np.random.default_rng(0).integers(-8, 9, (24, 2)).astype(np.float32)
    half[0, 0] = 8
    x = jnp.asarray(np.hstack([half, -half]))
    assert float(spectral_norm(x, jnp.ones(4)).norm) == 0
    # The second singular value is 0.90 of the first, and 0.9^64 = 1e-3 (seen: 8e-6).
    found = float(spectral_norm(x).norm)
    assert found == pytest.approx(values_of(x)[0], rel=1e-4)


def test_one_warm_step_beats_four_cold_ones():
    x, _, _ = decaying(24, 8, 0.9)
    first = spectral_norm(jnp.asarray(x, jnp.float32), steps=16)
    x = x + 1e-3 * gaussian((24, 8), seed=1)
    exact = values_of(x)[0]
    cold = spectral_norm(jnp.asarray(x, jnp.float32), steps=4)
    warm = spectral_norm(jnp.asarray(x, jnp.float32), first.right, steps=1)
    # The vector is off by 0.9^32 = 3e-2 and moved by 1e-2; the norm errs by the square,
    # shrunk by 0.9^4 (seen: 1.4e-5, and 8e-3 from the default start).
    assert abs(float(warm.norm) / exact - 1) <= 1e-4
    assert abs(float(cold.norm) / exact - 1) >= 4e-3


def test_start_vectors_of_any_length_and_zero():
    x = jnp.asarray(gaussian((24, 8)))
    start = jnp.asarray(gaussian((8,), seed=1))
    plain = spectral_norm(x, start)
    for scale in (1e-30, 1e30):
        scaled = spectral_norm(x, start * scale)
        # Rounding of the scaled start alone, which the iteration forgets.
        np.testing.assert_allclose(scaled.norm, plain.norm, rtol=8 * EPS)
    # A zero vector asks for the default start.
    default = spectral_norm(x, jnp.zeros(8))
    expected = spectral_norm(x).right
    # One compiled constant more: a rounding.
    np.testing.assert_allclose(default.right, expected, atol=4 * EPS)


def test_zero_matrix():
    start = jnp.zeros(8).at[:2].set(jnp.array([3.0, 4.0]))
    norm, left, right = spectral_norm(jnp.zeros((24, 8)), start)
    assert float(norm) == 0
    assert not np.any(left)
    # Two divisions.
    np.testing.assert_allclose(right, start / 5, rtol=4 * EPS)


@pytest.mark.parametrize("exponent", [-99, 99])
def test_powers_of_two_only_move_the_exponent(exponent):
    x = jnp.asarray(gaussian((24, 8)))
    plain, scaled = spectral_norm(x), spectral_norm(x * 2.0**exponent)
    np.testing.assert_array_equal(scaled.norm, plain.norm * 2.0**exponent)
    np.testing.assert_array_equal(scaled.right, plain.right)


def test_a_batch_is_its_slices():
    x = jnp.asarray(gaussian((2, 3, 24, 8)))
    right = jnp.asarray(gaussian((2, 3, 8), seed=1))
    found = spectral_norm(x, right)
    assert found.norm.shape == (2, 3)
    assert found.left.shape == (2, 3, 24)
    for index in np.ndindex(2, 3):
        single = spectral_norm(x[index], right[index])
        # Products summed in another order.
        np.testing.assert_allclose(found.norm[index], single.norm, rtol=16 * EPS)


def test_bfloat16_and_nan():
    found = spectral_norm(jnp.asarray(gaussian((24, 8)), jnp.bfloat16))
    assert found.norm.dtype == found.right.dtype == jnp.float32
    x = jnp.asarray(gaussian((24, 8))).at[2, 3].set(jnp.nan)
    assert jnp.isnan(spectral_norm(x).norm)


def test_steps_must_be_positive():
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        linalg.spectral_norm(jnp.eye(2), steps=0)


@pytest.mark.parametrize("shape", [*SHAPES, (3, 12, 8)])
def test_nuclear_norm(shape):
    x = gaussian(shape)
    found = nuclear_norm(jnp.asarray(x))
    # LAPACK's singular values in float32 err by some eps of the largest (seen: 1 eps).
    np.testing.assert_allclose(found, values_of(x).sum(axis=-1), rtol=16 * EPS)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_nuclear_norm_of_any_scale(scale):
    x = gaussian((24, 8)) * np.float32(scale)
    found = float(nuclear_norm(jnp.asarray(x)))
    assert found == pytest.approx(values_of(x).sum(), rel=16 * EPS)


def test_nuclear_norm_of_nothing_zero_and_nan():
    assert float(nuclear_norm(jnp.zeros((0, 3)))) == 0
    assert float(nuclear_norm(jnp.zeros((5, 3)))) == 0
    assert jnp.isnan(nuclear_norm(jnp.full((5, 3), jnp.nan)))
    assert nuclear_norm(jnp.ones((5, 3), jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.promise(
    "Numbers", "`spectral_norm_bound` is never below the spectral norm", on="float32"
)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from(SHAPES),
    ratio=st.sampled_from([0.1, 0.9, 0.999, 1.0]),
    exponent=st.integers(-29, 29),
)
def test_the_bound_is_never_below_the_norm(seed, shape, ratio, exponent):
    long, short = max(shape), min(shape)
    x = decaying(long, short, ratio, seed)[0].reshape(shape)
    for matrix in (x, gaussian(shape, seed), np.ones(shape), np.abs(x)):
        scaled = (matrix * 10.0**exponent).astype(np.float32)
        norm = values_of(scaled)[0]
        found = float(bound_of(jnp.asarray(scaled)))
        # Not a tolerance: at or above (seen: at least 4e-6 above).
        assert found >= norm
        # The documented looseness at the exponent p = 128, and 1e-3 for rounding.
        assert found <= norm * (short ** (1 / 128) + 1e-3)


def test_the_bound_tightens_with_every_doubling():
    x = gaussian((64, 64))
    found = [float(bound_of(jnp.asarray(x), doublings=k)) for k in (0, 1, 3)]
    assert found == sorted(found, reverse=True)
    for doublings, bound in zip((0, 1, 3), found, strict=True):
        # The documented looseness (seen: a quarter of the excess, or less).
        assert bound <= values_of(x)[0] * 64 ** (1 / 2 ** (doublings + 2))


@pytest.mark.promise(
    "Numbers",
    "`spectral_norm_bound` is near for equal singular values",
    on="orthogonal matrices",
)
@pytest.mark.parametrize(
    "shape", [(24, 8), pytest.param((128, 64), marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("part", [1, 2, 4])
def test_the_bound_of_equal_singular_values(shape, part):
    left, _, right = np.linalg.svd(gaussian(shape), full_matrices=False)
    kept = min(shape) // part
    x = (left[:, :kept] @ right[:kept]).astype(np.float32)
    norm = values_of(x)[0]
    # The allowance for a Gram matrix of trace `kept` is 2·√m·eps·kept, and the root
    # halves it. As much for the squarings, whatever the rank is, and 40 eps.
    # (Seen: 0.5 to 0.9 of it.)
    short, long = sorted(shape)
    allowed = math.sqrt(long) * EPS * (kept + short) + 40 * EPS
    assert norm <= float(bound_of(jnp.asarray(x))) <= norm * (1 + allowed)


@pytest.mark.parametrize("shape", [(64, 64), (512, 32)])
def test_the_bound_holds_for_larger_sums(shape):
    for x in (gaussian(shape), np.ones(shape, np.float32), np.eye(*shape, dtype="f4")):
        assert float(bound_of(jnp.asarray(x), doublings=8)) >= values_of(x)[0]


def test_the_bound_of_batches_zero_nan_and_split_rows():
    x = np.stack([gaussian((24, 8)), np.zeros((24, 8)), np.full((24, 8), np.nan)])
    found = bound_of(jnp.asarray(x, jnp.float32))
    assert found.shape == (3,)
    assert found[1] == 0
    assert np.isnan(found[2])
    assert bound_of.eval_shape(jnp.ones((3, 2), jnp.bfloat16)).dtype == jnp.float32
    split = jax.jit(
        jax.vmap(
            lambda part: linalg.spectral_norm_bound(part, axis_name="x"), axis_name="x"
        )
    )(jnp.asarray(x[0].reshape(4, 6, 8), jnp.float32))
    # The same sums in another order.
    np.testing.assert_allclose(split, np.full(4, found[0]), rtol=32 * EPS)
    with pytest.raises(ValueError, match="doublings must be at least 0, got -1"):
        linalg.spectral_norm_bound(jnp.ones((3, 2)), doublings=-1)


def test_steps_multiply_by_the_matrix_where_rows_are_whole():
    m, n, steps = 64, 32, 3
    found = jax.jit(lambda x: linalg.spectral_norm(x, steps=steps).norm)
    x = jax.ShapeDtypeStruct((m, n), jnp.float32)
    # Two products by a vector in each step and one at the end: no Gram matrix.
    flops = programs.dot_flops(found.lower(x).compile())
    assert flops <= 2 * m * n * (2 * steps + 1) + 2 * m
