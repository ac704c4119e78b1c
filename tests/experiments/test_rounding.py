import doctest

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import manifold_optax as mo
from manifold_optax.experiments import rounding
from manifold_optax.experiments.rounding import (
    FORMAT_NAMES,
    FORMATS,
    round_array,
    round_params,
)

# Scales have 17 significant bits, so that they differ from the exact ones by 2^-17 at
# most, and half a scale is exceeded by at most that part of the largest entry.
SCALE_ERROR = 2.0**-17


def weights(rng: np.random.Generator) -> jax.Array:
    """Columns of very different sizes."""
    sizes = np.array([1.0, 1e-3, 37.0, 0.2])
    return jnp.asarray(rng.standard_normal((9, 4)) * sizes, jnp.float32)


@pytest.mark.parametrize("shared", [None, (0,)])
@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_no_entry_moves_by_more_than_half_a_spacing(name, shared, rng):
    given = weights(rng)
    exact = np.asarray(given, np.float64)
    rounded = np.asarray(round_array(given, name, shared=shared), np.float64)
    largest = np.abs(exact).max(axis=shared, keepdims=True)
    scale = largest / FORMATS[name].largest
    if name == "fp8":
        # Three bits behind the leading one, or multiples of 2^-9 below 2^-6.
        allowed = np.maximum(np.abs(exact) / 16, scale * 2.0**-10)
    else:
        allowed = scale / 2
    assert (np.abs(rounded - exact) <= allowed + SCALE_ERROR * largest).all()
    if name != "fp8":
        assert np.abs(rounded - exact).max() > 0.1 * scale.min()


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_rounding_twice_is_rounding_once(name, rng):
    given = weights(rng)
    for shared in (None, (0,)):
        once = round_array(given, name, shared=shared)
        np.testing.assert_array_equal(round_array(once, name, shared=shared), once)
    compiled = jax.jit(lambda x: round_array(x, name))
    np.testing.assert_array_equal(compiled(once), round_array(once, name))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("int8", 255), ("int4", 15), ("int3", 7)])
def test_an_integer_format_has_so_many_numbers(name, count):
    ramp = jnp.linspace(-2.5, 2.5, 4001)
    assert len(np.unique(round_array(ramp, name))) == count


@pytest.mark.slow
def test_the_8_bit_float_is_that_of_ml_dtypes():
    # The scale is 1, so that the numbers themselves are rounded.
    numbers = jnp.concatenate(
        [jnp.linspace(-448, 448, 9001), 2.0 ** jnp.arange(-12, 9)]
    )
    expected = np.asarray(numbers).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(round_array(numbers, "fp8"), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_zeros_and_what_is_not_finite_stay(name):
    assert not round_array(jnp.zeros((2, 3)), name).any()
    assert round_array(jnp.zeros((0, 3)), name, shared=(0,)).shape == (0, 3)
    odd = jnp.array([jnp.nan, 1.0, -jnp.inf, 0.5])
    rounded = round_array(odd, name)
    assert jnp.isnan(rounded[0])
    assert rounded[2] == -jnp.inf
    np.testing.assert_array_equal(rounded[1::2], round_array(odd[1::2], name))
    least = jnp.array([1e-44, 1e-40])
    np.testing.assert_array_equal(round_array(least, name), least)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_dtype_is_kept(dtype):
    rounded = round_array(jnp.array([3.0, 1.2, -0.6], dtype), "int3")
    assert rounded.dtype == dtype
    np.testing.assert_array_equal(rounded, jnp.array([3.0, 1.0, -1.0], dtype))


@pytest.mark.slow
def test_roles_decide_which_leaves_are_rounded():
    shapes = {
        "embed/embedding": (5, 4),
        "query/kernel": (4, 2, 3),
        "output/kernel": (2, 3, 4),
        "norm/scale": (4,),
        "up/kernel": (4, 6),
    }
    generator = np.random.default_rng(1)
    params = {
        path: jnp.asarray(generator.standard_normal(shape), jnp.float32)
        for path, shape in shapes.items()
    }
    known = mo.roles({"query/kernel": mo.HEADS, "output/kernel": mo.HEADS_OUT})
    rounded = round_params(params, "int4", per="channel", roles=known)
    inputs = {
        "embed/embedding": (1,),
        "query/kernel": (0,),
        "output/kernel": (0, 1),
        "up/kernel": (0,),
    }
    for path, axes in inputs.items():
        expected = round_array(params[path], "int4", shared=axes)
        np.testing.assert_array_equal(rounded[path], expected)
        whole = round_params(params, "int4", roles=known)[path]
        np.testing.assert_array_equal(whole, round_array(params[path], "int4"))
    np.testing.assert_array_equal(rounded["norm/scale"], params["norm/scale"])


@pytest.mark.slow
def test_example():
    outcome = doctest.testmod(rounding)
    assert outcome.attempted
    assert not outcome.failed
