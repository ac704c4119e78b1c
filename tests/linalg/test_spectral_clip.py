"""spectral_clip and soft_cap against the float64 SVD."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import oracles
from manifold_optax import linalg, programs
from manifold_optax.linalg._contraction import contraction
from manifold_optax.linalg._spectral_clip import SOFT_CAP as COEFFICIENT

EPS = float(np.finfo(np.float32).eps)
SHAPES = ((24, 8), (8, 24), (8, 8))
clip = jax.jit(linalg.spectral_clip)
clip_above = jax.jit(linalg.spectral_clip, static_argnames=("high", "low"))
cap = jax.jit(linalg.soft_cap)


def with_values(shape, values, seed=0):
    rng = np.random.default_rng(seed)
    left, right = (oracles.stiefel_point(rng, size, len(values)) for size in shape)
    return ((left * values) @ right.T).astype(np.float32)


def by_svd(x, function):
    u, s, vt = np.linalg.svd(np.asarray(x, np.float64), full_matrices=False)
    return (u * function(s)) @ vt


def check_clip(found, x, high, low=0.0):
    expected = by_svd(x, lambda s: np.clip(s, low, high))
    # The rounding of the polar factors and of the sum, relative to the largest number
    # in it (seen: 8 eps).
    scale = max(float(np.linalg.norm(np.asarray(x, np.float64), 2)), high)
    np.testing.assert_allclose(found, expected, rtol=0, atol=64 * EPS * scale)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from(SHAPES),
    bounds=st.sampled_from([(1.0, 0.0), (1.0, 0.5), (0.7, 0.7), (10.0, 0.01)]),
)
def test_clips_the_singular_values(seed, shape, bounds):
    high, low = bounds
    values = np.random.default_rng(seed).uniform(0.05, 3, 8)
    x = with_values(shape, values, seed)
    found = clip(jnp.asarray(x), jnp.float32(high), jnp.float32(low))
    check_clip(found, x, high, low)


def test_of_equal_bounds_it_is_a_multiple_of_the_polar_factor():
    # Values in closed form, and the limit of a large matrix.
    x = with_values((24, 8), np.linspace(1, 3, 8))
    found = clip(jnp.asarray(x), jnp.float32(0.5), jnp.float32(0.5))
    np.testing.assert_allclose(found, 0.5 * oracles.polar(x), atol=32 * EPS)
    far = clip(jnp.asarray(1e3 * x), jnp.float32(1), jnp.float32(0))
    # Eigenvalues of 3000 err by some eps of it (seen: 1.4e-4).
    np.testing.assert_allclose(far, oracles.polar(x), atol=3000 * 16 * EPS)


def test_the_number_zero_as_lower_bound_costs_a_polar_factor_less():
    x = with_values((24, 8), np.linspace(0.2, 3, 8))
    check_clip(clip_above(jnp.asarray(x), high=1.0), x, 1.0)
    arguments = (jnp.asarray(x), 1.0)
    short = clip_above.lower(*arguments, 0.0).as_text().count("stablehlo.while")
    full = clip_above.lower(*arguments, 0.1).as_text().count("stablehlo.while")
    assert short < full


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_any_scale(scale):
    values = np.linspace(0.2, 3, 8)
    x = with_values((24, 8), values) * np.float32(scale)
    found = clip(jnp.asarray(x), jnp.float32(scale), jnp.float32(0.5 * scale))
    check_clip(found, x, scale, 0.5 * scale)
    small = x / 3
    bent = cap(jnp.asarray(small), jnp.float32(scale))
    expected = by_svd(small, lambda s: scale * two_cubics(s / scale))
    np.testing.assert_allclose(bent, expected, rtol=0, atol=16 * EPS * scale)


def test_values_at_the_bound_and_zero():
    # Equal to the bound: the matrix whose modulus is taken is zero there.
    x = with_values((24, 8), np.array([2.0, 2, 1, 1, 1, 1, 0.5, 0]))
    check_clip(clip(jnp.asarray(x), jnp.float32(1), jnp.float32(0)), x, 1.0)
    # With a lower bound zero stays zero: it has no direction.
    lifted = clip(jnp.asarray(x), jnp.float32(1), jnp.float32(0.7))
    expected = by_svd(x, lambda s: np.where(s > 1e-3, np.clip(s, 0.7, 1.0), 0))
    np.testing.assert_allclose(lifted, expected, atol=64 * EPS)


def test_batches_with_their_own_bounds_zero_and_nan():
    x = with_values((24, 8), np.linspace(0.2, 3, 8))
    stack = jnp.asarray(np.stack([x, x, 0 * x, np.where(x == x[0, 0], np.nan, x)]))
    high = jnp.array([1.0, 2.0, 1.0, 1.0])
    found = clip(stack, high, 0.5 * high)
    check_clip(found[0], x, 1.0, 0.5)
    check_clip(found[1], x, 2.0, 1.0)
    np.testing.assert_array_equal(found[2], 0)
    assert np.isnan(found[3]).all()
    assert clip.eval_shape(stack.astype(jnp.bfloat16), high).dtype == jnp.bfloat16


def two_cubics(s):
    once = s - COEFFICIENT * s**3
    return once + COEFFICIENT * once**3


def test_the_coefficient_of_the_cap_is_the_smallest_root():
    k = 1.2
    roots = np.roots([-(k**9), 3 * k**7, -3 * k**5, 0, k - 1])
    real = roots[np.abs(roots.imag) < 1e-9].real
    # Rounding of a root-finder in float64.
    assert pytest.approx(real[real >= 0].min(), abs=1e-12) == COEFFICIENT
    s = np.linspace(0, k, 10001)
    image = two_cubics(s)
    assert np.all(np.diff(image) > 0)
    assert image[-1] == pytest.approx(1, abs=1e-12)
    # What the docstring says of the bound itself, and of small values.
    assert two_cubics(1.0) == pytest.approx(0.912, abs=5e-4)
    assert two_cubics(0.1) == pytest.approx(0.1 - 3 * COEFFICIENT**2 * 1e-5, abs=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
def test_cap_bends_the_singular_values(shape):
    bound = 2.5
    x = with_values(shape, np.linspace(0.1, 1.2 * bound, 8))
    found = cap(jnp.asarray(x), jnp.float32(bound))
    expected = by_svd(x, lambda s: bound * two_cubics(s / bound))
    # Two products of numbers of 3 (seen: 4 eps).
    np.testing.assert_allclose(found, expected, rtol=0, atol=32 * EPS)
    assert np.linalg.norm(np.asarray(found, np.float64), 2) <= bound * (1 + 8 * EPS)


def test_cap_of_batches_zero_and_nan():
    x = with_values((24, 8), np.linspace(0.2, 1.1, 8))
    stack = jnp.asarray(np.stack([x, 0 * x, np.full_like(x, np.nan)]))
    found = cap(stack, jnp.array([1.0, 2.0, 1.0]))
    np.testing.assert_allclose(found[0], by_svd(x, two_cubics), atol=16 * EPS)
    np.testing.assert_array_equal(found[1], 0)
    assert np.isnan(found[2]).all()


def test_bounds_that_are_none_are_refused():
    x = jnp.ones((4, 2))
    for low, high in (
        (2.0, 1.0),
        (-1.0, 1.0),
        (0.0, float("inf")),
        (0.0, float("nan")),
    ):
        with pytest.raises(ValueError, match="0 ≤ low ≤ high < ∞, got low="):
            linalg.spectral_clip(x, high, low)
    for bound in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="bound must be above 0 and finite, got"):
            linalg.soft_cap(x, bound)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (3, 5, 5)], ids=str)
def test_contraction_is_the_clip_from_above(rng, shape):
    x = rng.standard_normal(shape)
    left, values, right = np.linalg.svd(x, full_matrices=False)
    expected = (left * np.minimum(values, 1.5)[..., None, :]) @ right
    found = contraction(jnp.asarray(x, jnp.float32), 1.5)
    # A Gram matrix in float32 (seen: 1e-6).
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("largest", [3.0, 4e5, 1e9])
@pytest.mark.parametrize("spread", [3e-5, 0.5])
def test_the_bound_holds_to_rounding_however_large_the_matrix(largest, spread):
    # Values so near to the bound that their distance to it has no sign in a polar
    # factor (their excess was up to 2e-5), and one far above (3 to 14 % at 4e5).
    values = np.array([largest, *(1 + np.linspace(-spread, spread, 7))])
    found = np.asarray(clip_above(with_values((24, 8), values), high=1.0, low=0.0))
    # Rounding (seen: 7e-7).
    assert np.linalg.norm(found.astype(np.float64), 2) <= 1 + 24 * EPS


@pytest.mark.parametrize(
    "function",
    [pytest.param(linalg.spectral_clip, marks=pytest.mark.slow), linalg.soft_cap],
)
def test_wide_matrices_cost_what_tall_ones_do(function):
    def flops(*shape):
        x = jax.ShapeDtypeStruct(shape, jnp.float32)
        compiled = jax.jit(lambda x: function(x, 1.0)).lower(x).compile()
        return programs.dot_flops(compiled, unknown_trips=1)

    assert flops(8, 24) == flops(24, 8)
