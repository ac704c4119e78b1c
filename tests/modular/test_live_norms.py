"""Bounds of norms of traced arrays against float64 norms and singular values."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from manifold_optax.modular._bounds._mixed_norm import mixed_norm, natural_norm
from manifold_optax.modular._certificates._live_norms import live_norm, live_norms
from modular.measured_norms import measured, norm_of

EPS = float(np.finfo(np.float32).eps)
TINY = float(np.finfo(np.float32).tiny)

bound_of = jax.jit(live_norm, static_argnames="norm")

# Every mark alone, and every kind of neighbours; heads, stacked layers, and blocks.
NORMS = (
    ((24,), "b"),
    ((24,), "o"),
    ((24,), "i"),
    ((4, 6), "s b"),
    ((4, 6), "s o"),
    ((4, 6), "i b"),
    ((3, 4, 6), "b i o"),
    ((1, 6), "i o"),
    ((), ""),
)
MORE_NORMS = (
    ((24,), "s"),
    ((4, 6), "b o"),
    ((4, 6), "i o"),
    ((4, 6), "o i"),
    ((4, 6), "i s"),
    ((3, 4, 6), "i s o"),
    ((4, 6), "i 2b3o"),
    ((4, 6), "2i2b 3o2b"),
    ((4, 6), "2b2i 3s2o"),
)


def arrays(shape, rng):
    """Random, constant, sparse and uneven arrays."""
    some = rng.standard_normal(shape)
    yield from (some, np.ones(shape), np.full(shape, -0.37), some * (some > 1))
    yield some * 10.0 ** rng.uniform(-3, 3, shape)


@pytest.mark.parametrize(
    ("shape", "text"),
    [*NORMS, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE_NORMS)],
)
def test_a_bound_holds_and_is_near(shape, text, rng):
    norm = norm_of(shape, text)
    for array in arrays(shape, rng):
        x = np.asarray(array, np.float32)
        true = measured(norm, x)
        found = float(bound_of(jnp.asarray(x), norm))
        # Not a tolerance: at or above. An operator of rank 4 is at most 4^(1/64) high
        # with 4 doublings; a sum of 24 terms 2·√24 + 8 eps, and its own rounding.
        assert true <= found
        looseness = 4 ** (1 / 64) if norm.count("i") > 1 else 1.0
        assert found <= true * looseness * (1 + 32 * EPS)


def test_maxima_are_exact(rng):
    x = rng.standard_normal((4, 6)).astype(np.float32)
    assert float(live_norm(jnp.asarray(x), mixed_norm((4, 6), "bb"))) == np.abs(x).max()


@pytest.mark.parametrize("text", ["b b", "b o", "s b", "i o"])
@pytest.mark.parametrize("exponent", [-30, 30])
def test_scales(text, exponent, rng):
    norm = norm_of((4, 6), text)
    x = (rng.standard_normal((4, 6)) * 10.0**exponent).astype(np.float32)
    true = measured(norm, x)
    # As above: 4^(1/64) is 1.022.
    assert true <= float(bound_of(jnp.asarray(x), norm)) <= 1.023 * true


@pytest.mark.parametrize("text", ["b b", "b o", "s b", "i o"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_subnormal_numbers_do_not_vanish(text, dtype):
    norm = norm_of((4, 6), text)
    small = np.full((4, 6), 1e-39, np.float32).astype(dtype)
    # Each entry counts as the smallest normal number, about 12 times itself.
    true = measured(norm, small.astype(np.float64))
    assert true <= float(bound_of(small, norm)) <= 12 * true
    # Beside a normal number nothing is lost, and little is gained.
    small[1, 1] = 1.0
    # The bound of a spectral norm has 32 eps for roundings of numbers, and half of the
    # allowance 2·√6·eps.
    assert 1 <= float(bound_of(small, norm)) <= 1 + 64 * EPS


@pytest.mark.parametrize("text", ["b b", "b o", "s b", "i o"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_no_bound_where_an_entry_is_not_finite(text, bad):
    x = np.ones((4, 6), np.float32)
    x[2, 3] = bad
    assert bound_of(jnp.asarray(x), norm_of((4, 6), text)) == np.inf


@pytest.mark.parametrize("text", ["b b", "b o", "s b", "i o"])
def test_zero_and_beyond_float32(text):
    norm = norm_of((4, 6), text)
    assert bound_of(jnp.zeros((4, 6)), norm) == 0
    found = float(bound_of(jnp.full((4, 6), 3e38), norm))
    assert found == (np.inf if text != "b b" else np.float32(3e38))


@pytest.mark.parametrize("marks", ["bo", "io", "so"])
def test_empty_arrays(marks):
    assert live_norm(jnp.zeros((0, 3)), mixed_norm((0, 3), marks)) == 0


@pytest.mark.parametrize(
    "dtype", ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"]
)
def test_short_floats_are_measured_as_they_are(dtype, rng):
    x = jnp.asarray(rng.standard_normal((4, 6)), dtype)
    norm = mixed_norm((4, 6), "io")
    found = live_norm(x, norm)
    true = measured(norm, np.asarray(x, np.float64))
    assert found.dtype == jnp.float32
    # 4^(1/64).
    assert true <= float(found) <= 1.023 * true


@pytest.mark.slow
def test_float64_is_rounded_up(x64):
    norm = mixed_norm((2, 2), "bb")
    for value in (1 + 1e-9, 1e-300, 1e300, 1 - 1e-9):
        found = live_norm(jnp.full((2, 2), value), norm)
        assert found.dtype == jnp.float32
        assert float(found) >= value


@pytest.mark.slow
def test_a_batch_is_its_slices(rng):
    x = jnp.asarray(rng.standard_normal((3, 4, 6)), jnp.float32)
    norm = mixed_norm((4, 6), "io")
    found = jax.vmap(lambda x: live_norm(x, norm))(x)
    # Sums in another order.
    np.testing.assert_allclose(found, [bound_of(y, norm) for y in x], rtol=16 * EPS)


@pytest.mark.slow
def test_many_are_each(rng):
    def some(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    queries = [
        (some(4, 6), mixed_norm((4, 6), "io")),
        (some(24), natural_norm((24,))),
        (some(4, 6), mixed_norm((4, 6), "bo")),
        (some(4, 6), mixed_norm((4, 6), "io")),
        (some(4, 6).astype(jnp.bfloat16), mixed_norm((4, 6), "io")),
    ]
    found = jax.jit(
        lambda arrays: live_norms(
            [(x, norm) for x, (_, norm) in zip(arrays, queries, strict=True)]
        )
    )([x for x, _ in queries])
    expected = [bound_of(x, norm) for x, norm in queries]
    # Sums in another order.
    np.testing.assert_allclose(found, expected, rtol=16 * EPS)
    assert live_norms([]) == []


def test_errors():
    with pytest.raises(ValueError, match=r"shape \(3, 2\), got one of shape \(2, 3\)"):
        live_norm(jnp.ones((2, 3)), mixed_norm((3, 2), "io"))
    with pytest.raises(TypeError, match="int32"):
        live_norm(jnp.ones((2, 3), jnp.int32), mixed_norm((2, 3), "io"))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(256, 256), (1024, 128), (64, 512)])
def test_larger_operators(shape, rng):
    left, values, right = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
    short, long = min(shape), max(shape)
    norm = mixed_norm(shape, "io")
    # For equal singular values: half the allowance for the Gram matrix, as much for
    # the squarings, and 100 eps. For others the bound is below 1 % (seen: 0.6 %).
    flat = math.sqrt(long) * EPS * 2 * short + 100 * EPS
    for spectrum, looseness in (
        (values, 0.01),
        (np.ones(short), flat),
        (1 / np.arange(1, short + 1), flat),
    ):
        x = ((left * spectrum) @ right).astype(np.float32)
        true = np.linalg.norm(np.asarray(x, np.float64), 2)
        found = float(bound_of(jnp.asarray(x), norm))
        assert true <= found <= true * (1 + looseness)


@pytest.mark.slow
def test_long_sums():
    n = 2_400_000
    for value in np.random.default_rng(0).uniform(0.5, 2, 5).astype(np.float32):
        x = np.full(n, value)
        x[0] = 3  # So that the others are no powers of 2 once divided by the largest.
        for marks in "os":
            true = measured(mixed_norm((n,), marks), x)
            found = float(bound_of(jnp.asarray(x), mixed_norm((n,), marks)))
            # The documented 4·√n·eps.
            assert true <= found <= true * (1 + 4 * math.sqrt(n) * EPS)
