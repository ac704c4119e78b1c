import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import manifold_optax as mo
from manifold_optax.transforms import SHAPE_RULES

# Rule, factor at fan-in 2 and fan-out 8, factor at fan-in 8 and fan-out 2.
FACTORS = [
    ("none", 1.0, 1.0),
    ("width", 2.0, 1.0),
    ("spectral", 2.0, 0.5),
    ("rms", 0.2 * math.sqrt(8), 0.2 * math.sqrt(8)),
]


def scaled(rule, leaf, axes: Any = mo.STACKED):
    tx: Any = mo.scale_by_shape(rule, axes=axes)
    updates, _ = tx.update({"w": leaf}, tx.init({"w": leaf}))
    return updates["w"]


@pytest.mark.parametrize(("rule", "widening", "narrowing"), FACTORS)
def test_factors_depend_on_fan_in_and_fan_out(rule, widening, narrowing):
    ones = jnp.ones((2, 8))
    # One product of float32 numbers.
    np.testing.assert_allclose(scaled(rule, ones), widening, rtol=1e-7)
    np.testing.assert_allclose(scaled(rule, ones.T), narrowing, rtol=1e-7)
    np.testing.assert_allclose(scaled(rule, ones, mo.OUT_IN), narrowing, rtol=1e-7)
    np.testing.assert_allclose(scaled(rule, ones.T, mo.OUT_IN), widening, rtol=1e-7)


def test_every_rule_is_tested():
    assert {rule for rule, _, _ in FACTORS} == set(SHAPE_RULES)


def test_batch_axes_do_not_count():
    np.testing.assert_array_equal(scaled("spectral", jnp.ones((3, 2, 8))), 2)


def test_several_output_axes_are_one_side():
    np.testing.assert_array_equal(scaled("spectral", jnp.ones((2, 2, 4)), mo.HEADS), 2)


@pytest.mark.parametrize(
    ("shape", "axis", "factors"),
    # Kernels [fan_in 4, fan_out 16 + 4 + 1], and [fan_in 16 + 4 + 1, fan_out 4].
    [
        ((4, 21), -1, (2, 1, 0.5)),
        ((21, 4), 0, (0.5, 1, 2)),
        ((3, 4, 21), 2, (2, 1, 0.5)),
    ],
)
def test_blocks_of_a_split_have_their_own_factors(shape, axis, factors):
    found = scaled("spectral", jnp.ones(shape), mo.Split((16, 4, 1), axis=axis))
    expected = np.repeat(factors, (16, 4, 1))
    expected = expected if shape[axis % len(shape) :] == (21,) else expected[:, None]
    np.testing.assert_array_equal(found, np.broadcast_to(expected, shape))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("axes", [mo.STACKED, mo.Split((4, 4))])
def test_the_dtype_is_kept(dtype, axes):
    assert scaled("rms", jnp.ones((2, 8), dtype), axes).dtype == dtype


def test_an_unknown_rule_is_an_error_that_lists_the_known(unhooked):
    with pytest.raises(ValueError, match=r"'none', 'width', 'spectral', 'rms'; got 'w"):
        mo.scale_by_shape("wide")  # pyright: ignore[reportArgumentType]


def test_a_split_that_does_not_add_up_names_the_leaf(unhooked):
    with pytest.raises(ValueError, match=r"sums to 7, but the leaf 'w' of shape"):
        scaled("rms", jnp.ones((2, 8)), mo.Split((4, 3)))
