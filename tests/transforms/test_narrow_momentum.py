"""Momentum in one, two and three bytes, against float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manifold_optax as mo
import oracles
from manifold_optax.states import state_digest
from manifold_optax.transforms import _narrow as narrow

DTYPES = ("bfloat16", "bfloat16+int8", "int8")
RANDOM = ("bfloat16", "int8")

COUNTS = 2048
"""Roundings of each entry. Their mean is off by five standard deviations in one of two
million entries; the tests take 128, with fixed bits."""

ULP = {"bfloat16": 2.0**-7, "bfloat16+int8": 2.0**-15}
"""Spacing of the numbers from 1 to 2."""


def gaussian(rng: Any, shape: tuple[int, ...] = (2, 64)) -> Any:
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def spacing(x: Any, dtype: str) -> Any:
    """Distance of the neighbours of each entry, in float64."""
    x = np.asarray(x, np.float64)
    if dtype == "int8":
        blocks = np.abs(x).reshape(*x.shape[:-1], -1, 64)
        step = blocks.max(-1, keepdims=True) / 127
        return np.broadcast_to(step, blocks.shape).reshape(x.shape)
    return ULP[dtype] * 2.0 ** np.floor(np.log2(np.abs(x)))


def state_of(dtype: str, average: Any, count: Any = None) -> Any:
    state: Any = mo.momentum(0.9, dtype=dtype).init(average)
    return state.written(average, count)


def as_read(dtype: str, average: Any, count: Any = None) -> Any:
    return state_of(dtype, average, count).read()


@pytest.mark.parametrize("dtype", RANDOM)
def test_rounding_up_or_down_is_right_on_average(rng, dtype, measured):
    x = gaussian(rng)
    rounded = jax.jit(jax.vmap(lambda count: as_read(dtype, x, count)))
    found = np.asarray(rounded(jnp.arange(COUNTS)), np.float64)
    exact, step = np.asarray(x, np.float64), spacing(x, dtype)
    # One float32 rounding of a code on the way back.
    assert (np.abs(found - exact) <= step * (1 + 1e-5)).all()
    off = np.abs(found.mean(0) - exact) / step
    # The deviation of a variable that is 0 or 1 is at most 1/2.
    measured(off.max(), at_most=5 * 0.5 / COUNTS**0.5)
    # To nearest, the same entries would be off by a quarter of a step on average.
    nearest = np.asarray(as_read(dtype, x), np.float64)
    assert (np.abs(nearest - exact) / step).mean() > 0.2


def test_random_bits_depend_on_path_count_and_position(rng):
    draw = lambda path, count: narrow.random_bits(jnp.zeros((64, 64)), path, count)
    bits = [draw("w", jnp.int32(1)), draw("w", jnp.int32(2)), draw("v", jnp.int32(1))]
    again = draw("w", jnp.int32(1))
    np.testing.assert_array_equal(again, bits[0])
    parts = [np.asarray(b >> 16, np.float64).ravel() / 2**16 - 0.5 for b in bits]
    low = np.asarray(bits[0] & 0xFFFF, np.float64).ravel() / 2**16 - 0.5
    first, size = parts[0], parts[0].size
    others = [*parts[1:], low, np.roll(first, 1), np.roll(first, 64)]
    # Products of two uniform variables have a deviation of 1/12: five of them.
    assert all(abs(np.mean(first * other)) < 5 / 12 / size**0.5 for other in others)
    # One uniform variable has a deviation of √(1/12).
    assert all(abs(part.mean()) < 5 * 12**-0.5 / size**0.5 for part in (*parts, low))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("dtype", DTYPES)
def test_to_nearest_is_off_by_half_a_step_at_most(rng, dtype, scale):
    x = gaussian(rng) * np.float32(scale)
    off = np.abs(np.asarray(as_read(dtype, x), np.float64) - np.asarray(x, np.float64))
    # Some float32 roundings (6e-8) of codes up to 127, and as many on the way back.
    assert (off <= (0.5 + 1e-4) * spacing(x, dtype)).all()


def test_three_bytes_are_a_bfloat16_and_its_correction(rng):
    x = gaussian(rng)
    state = state_of("bfloat16+int8", x)
    ahead = np.asarray(state.average, np.float64) - np.asarray(x, np.float64)
    # Rounded twice: to 24 bits, then to 16.
    assert (np.abs(ahead) <= (0.5 + 2**-8) * spacing(x, "bfloat16")).all()
    again = state.written(state.read())
    assert state_digest(again) == state_digest(state)


EDGES = (0.0, -0.0, 1e-45, -1e-41, 1.17e-38, 1.0, -1.9999999, 3.4e38, -3.3e38)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "bfloat16+int8"])
def test_edges_of_float32_keep_sign_and_size(dtype):
    x = jnp.asarray(EDGES, jnp.float32)
    for count in (None, jnp.int32(3)):
        found = np.asarray(as_read(dtype, x, count), np.float64)
        exact = np.asarray(x, np.float64)
        np.testing.assert_array_equal(np.signbit(found), np.signbit(exact))
        if dtype == "bfloat16" and count is None:
            continue  # To nearest, the largest numbers become infinite.
        # The least numbers are 1e-45 apart in float32, and 2¹⁶ times that in bfloat16.
        np.testing.assert_allclose(found, exact, rtol=2**-7, atol=1e-40)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param("bfloat16", marks=pytest.mark.slow),
        pytest.param("bfloat16+int8", marks=pytest.mark.slow),
        "int8",
    ],
)
def test_what_is_not_finite_stays_visible(rng, dtype, bad):
    gradient = gaussian(rng, (2, 128)).at[1, 70].set(bad)
    tx: Any = mo.momentum(0.9, nesterov=False, dtype=dtype)
    _, state = tx.update(gradient, tx.init(gradient))
    updates, state = tx.update(jnp.zeros_like(gradient), state)
    for found in (updates, state.read()):
        wrong = ~np.isfinite(np.asarray(found))
        assert wrong[1, 70]
        block = np.zeros_like(wrong)
        block[1, 64:] = dtype == "int8"
        block[1, 70] = True
        np.testing.assert_array_equal(wrong, block)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_and_subnormal_gradients(dtype):
    tx: Any = mo.momentum(0.9, dtype=dtype)
    for gradient in (jnp.zeros((2, 64)), jnp.full((2, 64), 1e-41)):
        updates, state = tx.update(gradient, tx.init(gradient))
        assert np.isfinite(updates).all()
        # What is below the normal numbers may count as zero.
        assert (np.abs(state.read()) <= 2e-41).all()
        assert np.abs(state.read()).max() == 0 or gradient.max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_power_of_two_changes_nothing_but_the_scale(rng, dtype):
    tx: Any = mo.momentum(0.9, dtype=dtype)
    gradient = gaussian(rng)
    # Far from the subnormal numbers and from the largest.
    for scale in (2.0**-90, 2.0**90):
        _, one = tx.update(gradient, tx.init(gradient))
        _, other = tx.update(gradient * scale, tx.init(gradient))
        np.testing.assert_array_equal(other.read(), one.read() * np.float32(scale))


@pytest.mark.parametrize(("length", "size"), [(0, 1), (1, 1), (24, 24), (64, 64)])
def test_short_axes_are_one_block(length, size):
    assert narrow.block_length(length) == size


@pytest.mark.parametrize(
    ("length", "size"),
    [
        (96, 48),
        (768, 64),
        (4096, 64),
        (11008, 64),
        (509, 509),
        (50257, 29),
        (1733 * 2, 1733),
    ],
)
def test_a_block_divides_the_axis(length, size):
    assert narrow.block_length(length) == size
    assert length % size == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_constant_gradient_is_reached(dtype):
    """The short form of the test below: rounding to nearest stops half-way."""
    gradient = jnp.ones((1, 64))

    def average(tx: Any) -> Any:
        step = lambda state, _: (tx.update(gradient, state)[1], None)
        return jax.jit(lambda: jax.lax.scan(step, tx.init(gradient), length=500)[0])()

    found: Any = average(mo.momentum(0.99, dtype=dtype)).read()
    # Each of 500 roundings of up to 2⁻⁸ is forgotten by 0.99 a step: a deviation of
    # 2⁻⁹ · √50 = 0.014, of the mean of 64 entries 0.0017.
    assert abs(float(found.mean()) - (1 - 0.99**500)) < 0.01
    plain: Any = average(optax.ema(0.99, debias=False, accumulator_dtype=jnp.bfloat16))
    # There 1 % of what is missing is half of 2⁻⁸, the spacing from 1/2 to 1.
    assert float(plain.ema.mean()) < 0.8


@pytest.mark.slow
@pytest.mark.parametrize("nearest", [False, True])
def test_small_entries_of_a_block_are_forgotten_unless_to_nearest(nearest):
    gradient = jnp.zeros((1, 64)).at[0, 0].set(1.0)
    # Five codes: 1 % of them is less than half a code.
    state = state_of("int8", jnp.full((1, 64), 5 / 127).at[0, 0].set(1.0))

    def step(state: Any, count: Any) -> Any:
        moved = 0.99 * state.read() + 0.01 * gradient
        return state.written(moved, None if nearest else count), None

    end: Any = jax.jit(lambda: jax.lax.scan(step, state, jnp.arange(1000))[0])()
    left = float(end.read()[0, 1:].mean()) * 127
    # On average 5 · 0.99¹⁰⁰⁰ = 2e-4 codes are left; an entry deviates by a few codes
    # while it falls, and stays where it is once it is zero.
    assert left == pytest.approx(5) if nearest else left < 0.5


def final_fall(tx: Any, steps: int) -> float:
    """Largest gradient at the end, over that of the start, on a quadratic.

    Its curvatures are 1 to 100; a step is short enough for the average of 0.9965, which
    makes every gradient fall as exp(−0.00175 · steps), under oscillations.
    """
    curvature = jnp.geomspace(1.0, 100.0, 64)

    def step(carry: Any, _: Any) -> Any:
        point, state = carry
        updates, state = tx.update(curvature * point, state, point)
        return (point - 1e-3 * updates, state), None

    start = jnp.ones(64)
    carry = start, tx.init(start)
    (end, _), _ = jax.jit(lambda: jax.lax.scan(step, carry, length=steps))()
    return float(jnp.abs(curvature * end).max() / curvature.max())


@pytest.mark.slow
@pytest.mark.promise(
    "Numbers",
    "Momentum in few bytes does not stall: gradients of a quadratic fall to 1e-6 of "
    "their start in 10,000 steps, at most 3 times as far as in float32",
    on='`momentum(dtype=…)`: "bfloat16", "bfloat16+int8", "int8"',
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_ten_thousand_steps_do_not_stall(dtype, measured):
    tx, wide = (mo.momentum(0.9965, nesterov=False, dtype=d) for d in (dtype, None))
    reached = final_fall(wide, 10_000)
    assert reached < 1e-6
    measured(final_fall(tx, 10_000) / reached, at_most=3)


@pytest.mark.slow
def test_plain_bfloat16_is_slower():
    wide = mo.momentum(0.9965, nesterov=False)
    plain = optax.ema(0.9965, debias=False, accumulator_dtype=jnp.bfloat16)
    assert final_fall(plain, 10_000) > 3 * final_fall(wide, 10_000)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_update_is_made_before_the_rounding(rng, dtype):
    gradient = gaussian(rng)
    first = lambda tx: tx.update(gradient, tx.init(gradient))[0]
    choices: Any = ({}, {"debias": True}, {"nesterov": False})
    for options in choices:
        found = first(mo.momentum(0.9, dtype=dtype, **options))
        np.testing.assert_array_equal(found, first(mo.momentum(0.9, **options)))


@pytest.mark.slow
@pytest.mark.parametrize("debias", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_average_is_the_documented_formula(rng, dtype, nesterov, debias):
    taken = [np.asarray(gaussian(rng)) for _ in range(6)]
    expected = oracles.muon_momentum(taken, 0.9, nesterov, debias)
    tx: Any = mo.momentum(0.9, nesterov=nesterov, debias=debias, dtype=dtype)
    state, update = tx.init(jnp.asarray(taken[0])), jax.jit(tx.update)
    for gradient, wanted in zip(taken, expected, strict=True):
        found, state = update(jnp.asarray(gradient), state)
        # Five roundings of an average below 2, times up to 1/(1 − 0.9) by the debias.
        step = 2 / 127 if dtype == "int8" else ULP[dtype]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=5 * step)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_transport_projects_what_was_kept(rng, dtype):
    point = jnp.asarray(oracles.stiefel_point(rng, 6, 3), jnp.float32)
    normal = point @ jnp.asarray([[1.0, 0, 0], [0, 2.0, 0], [0, 0, 3.0]])
    tx: Any = mo.momentum(0.9, transport=mo.Stiefel(), dtype=dtype)
    state = tx.init({"w": point}).written({"w": normal})
    updates, state = jax.jit(tx.update)({"w": jnp.zeros((6, 3))}, state, {"w": point})
    # A symmetric matrix times the point is normal to the manifold: what is left is the
    # rounding of entries up to 3.
    step = 3 / 127 if dtype == "int8" else 2 * ULP[dtype]
    assert np.abs(updates["w"]).max() < step
    assert np.abs(state.read()["w"]).max() < step


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_leaves_without_update_and_without_parameter(dtype):
    params = {"a": jnp.ones(3), "b": jnp.ones(()), "c": None, "d": optax.MaskedNode()}
    tx: Any = mo.momentum(0.5, dtype=dtype)
    _, state = tx.update(params, tx.init(params))
    updates, new = tx.update(params | {"a": None}, state)
    assert updates["a"] is None
    assert updates["d"] == new[1]["d"] == optax.MaskedNode()
    for old_field, field in zip(state[1:], new[1:], strict=True):
        np.testing.assert_array_equal(field["a"], old_field["a"])
    assert (new.read()["b"] != state.read()["b"]).all()
    assert jax.tree.structure(new) == jax.tree.structure(state)


@pytest.mark.slow
def test_gradients_in_double_precision(x64):
    params = {"w": jnp.full((2, 64), 1 / 3, jnp.float64)}
    for dtype in DTYPES:
        tx: Any = mo.momentum(0.5, dtype=dtype)
        updates, state = tx.update(params, tx.init(params))
        assert updates["w"].dtype == jnp.float64
        assert state.read()["w"].dtype == jnp.float32


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_members_of_a_population_are_those_alone(rng, dtype):
    tx: Any = mo.momentum(0.9, dtype=dtype)
    members = gaussian(rng, (3, 2, 64))
    together = jax.jit(jax.vmap(lambda g: tx.update(g, tx.init(g))))(members)
    for index, member in enumerate(members):
        alone = jax.jit(lambda g: tx.update(g, tx.init(g)))(member)
        mine = jax.tree.map(lambda leaf, index=index: leaf[index], together)
        assert state_digest(mine) == state_digest(alone)
