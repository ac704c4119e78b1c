"""newton_schulz against the polynomial of its singular values, in float64."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec as P

import manifold_optax as mo
import oracles
from manifold_optax import linalg

EPS = float(np.finfo(np.float32).eps)
SCHEDULES = {
    "jordan": linalg.JORDAN,
    "you": linalg.YOU,
    "polar_express": linalg.POLAR_EXPRESS,
}
SHAPES = ((16, 16), (24, 8), (8, 24), (3, 12, 8), (1, 9), (9, 1))
# Rounding of at most eight steps that are steep at 0 (seen: 1.1e-6 = 9 eps).
ROUNDING = 40 * EPS

run = jax.jit(
    linalg.newton_schulz, static_argnames=("schedule", "form", "compute_dtype")
)


def reference(x, schedule):
    slices = np.reshape(x, (-1, *x.shape[-2:]))
    found = [oracles.newton_schulz(matrix, schedule) for matrix in slices]
    return np.reshape(found, x.shape)


def gaussian(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def slope(schedule):
    return np.prod([a for a, _, _ in schedule])


@pytest.mark.promise(
    "Numbers",
    "Newton–Schulz applies its polynomial to each singular value",
    on="against an SVD in float64",
)
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *(("jordan", shape) for shape in SHAPES),
        ("you", (24, 8)),
        ("polar_express", (24, 8)),
        ("polar_express", (3, 12, 8)),
    ],
)
def test_applies_the_polynomial_to_the_singular_values(name, shape, measured):
    x = gaussian(shape)
    found = run(jnp.asarray(x), SCHEDULES[name])
    assert found.dtype == jnp.float32
    error = np.abs(found - reference(x, SCHEDULES[name])).max()
    measured(error, at_most=ROUNDING)


@pytest.mark.parametrize("name", ["jordan", "polar_express"])
def test_float64_reaches_its_own_rounding(x64, name):
    x = np.random.default_rng(0).standard_normal((24, 8))
    found = run(jnp.asarray(x), SCHEDULES[name])
    assert found.dtype == jnp.float64
    # The tolerance of float32 with the eps of float64 (seen: 1.1e-15 =
    # 5 eps).
    expected = reference(x, SCHEDULES[name])
    np.testing.assert_allclose(found, expected, rtol=0, atol=40 * oracles.EPS)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("jordan", (24, 8)), ("jordan", (1, 9)), ("polar_express", (24, 8))],
)
def test_bfloat16_products_stay_near(name, shape):
    x = gaussian(shape)
    found = run(jnp.asarray(x), SCHEDULES[name], compute_dtype=jnp.bfloat16)
    assert found.dtype == jnp.float32
    expected = reference(x, SCHEDULES[name])
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    # One rounding of bfloat16 is 4e-3, and Jordan's row multiplies an error at s = 1 by
    # up to 3.5 at each step (seen: 6.4e-2 for one row, 3.1e-2 else).
    assert error <= 0.13
    # The wide accumulator alone would give the float32 result.
    assert error >= 100 * EPS


def test_bfloat16_rounds_the_gram_matrix_once():
    # Both terms of a row see the same rounding (seen: 1.4e-2, 2.5e-2 if they do not).
    x = gaussian((64, 256))
    found = run(jnp.asarray(x), form="direct", compute_dtype=jnp.bfloat16)
    expected = reference(x, linalg.JORDAN)
    assert np.linalg.norm(found - expected) <= 1.8e-2 * np.linalg.norm(expected)


def test_bfloat16_products_accumulate_in_float32():
    lowered = run.lower(
        jnp.ones((12, 4)), form="direct", compute_dtype=jnp.bfloat16
    ).as_text()
    products = [line for line in lowered.splitlines() if "dot_general" in line]
    assert len(products) == 3 * len(linalg.JORDAN)
    for line in products:
        operands, result = line.split("->")
        assert operands.count("xbf16>") == 2
        assert "xf32>" in result


def test_bfloat16_input_is_computed_in_float32():
    x = jnp.asarray(gaussian((24, 8)), jnp.bfloat16)
    found = run(x, linalg.YOU)
    assert found.dtype == jnp.bfloat16
    expected = reference(np.asarray(x, np.float64), linalg.YOU)
    # The last rounding alone: half of 2^-7 of entries below 1.
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=2**-8)


@pytest.mark.promise(
    "Numbers", "A power of two as a factor changes no bit of a direction", on="float32"
)
@pytest.mark.parametrize("exponent", [-99, 99])
def test_powers_of_two_change_no_bit(exponent):
    x = jnp.asarray(gaussian((24, 8)))
    np.testing.assert_array_equal(run(x * 2.0**exponent), run(x))


@pytest.mark.promise(
    "Faults",
    "The scale of a gradient does not change its direction",
    on="norms, Newton–Schulz, polar factor; float32, 1e-30 to 1e30",
)
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_scale_changes_nothing(scale):
    x = gaussian((24, 8))
    found = run(jnp.asarray(x * np.float32(scale)))
    np.testing.assert_allclose(found, reference(x, linalg.JORDAN), atol=ROUNDING)


@pytest.mark.promise(
    "Faults", "A zero matrix gives zero", on="Newton–Schulz, polar factor"
)
@pytest.mark.parametrize("shape", SHAPES)
def test_zero_stays_zero(shape):
    assert not np.any(run(jnp.zeros(shape)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(24, 8), (1, 9)])
def test_a_bad_entry_spoils_its_matrix_and_no_other(shape, bad):
    x = np.stack([gaussian(shape), gaussian(shape, seed=1)])
    x[1, 0, 3] = bad
    found = np.asarray(run(jnp.asarray(x)))
    assert np.isnan(found[1]).all()
    expected = reference(x[0], linalg.JORDAN)
    np.testing.assert_allclose(found[0], expected, atol=ROUNDING)


@pytest.mark.parametrize("name", SCHEDULES)
def test_rank_one_keeps_its_rank(name):
    schedule = SCHEDULES[name]
    x = gaussian((24, 1)) @ gaussian((1, 8), seed=1)
    values = np.linalg.svd(np.asarray(run(jnp.asarray(x), schedule)))[1]
    assert values[0] == pytest.approx(
        float(oracles.schedule_image(schedule, 1.0)), abs=ROUNDING
    )
    # Rounding of the input grows by the slope at 0 (seen: 0.2 eps times the slope).
    assert values[1] <= EPS * slope(schedule)


@pytest.mark.parametrize("shape", [(16, 16), (24, 8), (9, 1)])
def test_commutes_with_transposition(shape):
    x = jnp.asarray(gaussian(shape))
    # Products of the same numbers, summed in another order (seen: 9e-7).
    np.testing.assert_allclose(run(x.mT).mT, run(x), atol=ROUNDING)


def test_a_batch_is_its_slices():
    x = jnp.asarray(gaussian((3, 12, 8)) * np.array([1e-9, 1, 1e9])[:, None, None])
    slices = jnp.stack([run(matrix) for matrix in x.astype(jnp.float32)])
    # Batched products may sum in another order (seen: none).
    found = run(x.astype(jnp.float32))
    np.testing.assert_allclose(found, slices, atol=ROUNDING)


@pytest.mark.parametrize("schedule", [(), ((1.0, 2.0),), ((1.0, 2.0, float("nan")),)])
def test_what_is_no_schedule_is_refused(schedule, unhooked):
    with pytest.raises(ValueError, match=r"tuple of rows \(a, b, c\)"):
        mo.orthogonalize_via_newton_schulz(schedule)
    with pytest.raises(ValueError, match=r"tuple of rows \(a, b, c\)"):
        linalg.newton_schulz(jnp.ones((4, 2)), schedule)


@pytest.mark.parametrize(("dtype", "exact"), [(None, True), (jnp.bfloat16, False)])
def test_the_gram_matrix_of_split_rows_is_exact_where_operands_are_wide(dtype, exact):
    # On a CPU the setting changes nothing; elsewhere products of float32 would be cut
    # to TF32 or bfloat16 without it, and nothing restarts from the rounded matrix.
    mesh = jax.make_mesh((1,), ("r",), axis_types=(AxisType.Auto,))
    split = functools.partial(
        linalg.newton_schulz, form="gram", compute_dtype=dtype, axis_name="r"
    )
    sharded = jax.shard_map(split, mesh=mesh, in_specs=P("r"), out_specs=P("r"))
    text = str(jax.make_jaxpr(sharded)(jnp.ones((24, 8), jnp.float32)))
    # Row times row, or column times column.
    products = re.findall(r"dot_general\[(.*?)\n *\] ", text, re.DOTALL)
    (gram,) = [each for each in products if re.search(r"\(\[(\d)\], \[\1\]\)", each)]
    assert ("HIGHEST" in gram) is exact
