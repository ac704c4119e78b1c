from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manifold_optax as mo
from manifold_optax.geometry import Ball, ColumnRms, L1, RmsToRms, RowRms
from transforms.draws import apply, draw

SHAPES = ((6, 3), (3, 6), (4, 4), (2, 5, 3))
NORMS = (mo.Frobenius(), mo.Spectral(), RmsToRms(), RowRms(), ColumnRms(), mo.Max())
RATE = 0.25


def rank_one(leaf):
    """`σ₁ u₁ v₁ᵀ` in float64."""
    left, values, right = np.linalg.svd(np.asarray(leaf, np.float64))
    outer = left[..., :, :1] * right[..., :1, :]
    return values[..., :1, None] * outer


def decayed(point, *, weight_decay=1.0, **options):
    zero = jnp.zeros_like(point)
    return apply(
        mo.add_spectral_weight_decay, weight_decay, point=point, update=zero, **options
    )


def shrunk(point, norm, rate=RATE, **options):
    """`Π(W)`: the parameter after a zero update."""
    zero = jnp.zeros_like(point)
    return point + apply(
        mo.shrink_norm, norm, rate, point=point, update=zero, **options
    )


def singular_values(leaf):
    return np.linalg.svd(np.asarray(leaf, np.float64), compute_uv=False)


def clipped(norm, kernel, rate):
    """The nearest kernel `[fan_in, fan_out]` of `1 − rate` times the norm."""
    x = np.asarray(kernel, np.float64)
    match norm:
        case mo.Frobenius():
            return (1 - rate) * x
        case mo.Spectral() | RmsToRms():
            left, values, right = np.linalg.svd(x, full_matrices=False)
            bound = (1 - rate) * values[..., :1]
            return (left * np.minimum(values, bound)[..., None, :]) @ right
        case mo.Max():
            bound = (1 - rate) * np.abs(x).max(axis=(-2, -1), keepdims=True)
            return np.clip(x, -bound, bound)
        case _:
            # A row of the map is a column of the array.
            axis = -2 if norm == RowRms() else -1
            lengths = np.linalg.norm(x, axis=axis, keepdims=True)
            bound = (1 - rate) * lengths.max(axis=(-2, -1), keepdims=True)
            return x * np.minimum(1, bound / lengths)


def test_only_the_largest_singular_value_decays():
    params = {"w": jnp.diag(jnp.array([3.0, 2.0, 1.0]))}
    zero = jax.tree.map(jnp.zeros_like, params)
    for decay, expected in (
        (mo.add_spectral_weight_decay(0.5, steps=10), [2.85, 2.0, 1.0]),
        (optax.add_decayed_weights(0.5), [2.85, 1.9, 0.95]),
    ):
        tx: Any = optax.chain(decay, optax.sgd(0.1))
        updates, _ = jax.jit(tx.update)(zero, tx.init(params), params)
        moved: Any = optax.apply_updates(params, updates)
        # Ten steps at the ratio 2/3 leave (2/3)^20 = 3e-4 of the angle, times 0.05·3.
        np.testing.assert_allclose(moved["w"], np.diag(expected), rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_decay_is_the_leading_part_of_the_parameter(rng, shape):
    point = draw(rng, *shape)
    found = decayed(point, steps=64)
    # Ratios of the first two singular values are below 0.9 here: 0.9^128 = 1e-6.
    np.testing.assert_allclose(found, rank_one(point), rtol=0, atol=2e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_decay_takes_any_scale(rng, scale):
    point = draw(rng, 6, 3)
    found = decayed(scale * point, steps=64)
    np.testing.assert_allclose(found / scale, rank_one(point), rtol=0, atol=2e-5)


def test_a_warm_start_needs_one_step_per_update(rng):
    params = {"tall": draw(rng, 6, 3), "wide": draw(rng, 2, 3, 6)}
    tx: Any = mo.add_spectral_weight_decay(0.5, steps=1, axes=mo.STACKED)
    state = tx.init(params)
    assert {name: leaf.shape for name, leaf in state.right.items()} == {
        "tall": (3,),
        "wide": (2, 3),
    }
    update, zero = jax.jit(tx.update), jax.tree.map(jnp.zeros_like, params)
    updates = zero
    for _ in range(64):
        updates, state = update(zero, state, params)
    for name, point in params.items():
        expected = 0.5 * rank_one(point)
        # As after 64 steps at once.
        np.testing.assert_allclose(updates[name], expected, rtol=0, atol=2e-5)


def test_blocks_of_unequal_sizes_have_their_own_vectors(rng):
    params = {"w": draw(rng, 2, 4, 8)}
    tx: Any = mo.add_spectral_weight_decay(1.0, steps=64, axes=mo.Split((5, 1, 2)))
    state = tx.init(params)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, new = jax.jit(tx.update)(zero, state, params)
    assert new.right["w"].shape == state.right["w"].shape == (2, 3, 4)
    for block, part in zip(
        np.split(np.asarray(params["w"]), [5, 6], axis=-1),
        np.split(np.asarray(updates["w"]), [5, 6], axis=-1),
        strict=True,
    ):
        np.testing.assert_allclose(part, rank_one(block), rtol=0, atol=2e-5)


def test_a_persistent_update_of_rank_r_balances_at_r_over_the_decay(rng):
    left = np.linalg.qr(rng.standard_normal((6, 3)))[0]
    right = np.linalg.qr(rng.standard_normal((4, 3)))[0]
    pull = {"w": jnp.asarray(-left @ right.T, jnp.float32)}
    decay, rate = 0.5, 0.1
    tx = optax.chain(mo.add_spectral_weight_decay(decay), optax.sgd(rate))

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(pull, state, params)
        return (optax.apply_updates(params, updates), state), params["w"]

    start = {"w": jnp.zeros((6, 4))}
    # The balance is approached as exp(−rate·decay·t/r): e⁻¹⁷ after 1000 steps.
    _, history = jax.lax.scan(step, (start, tx.init(start)), length=1000)
    values = singular_values(history[-30:])[:, :3]
    # Once in r steps each direction loses `rate·decay` of itself, and regains it.
    np.testing.assert_allclose(values.mean(), 3 / decay, rtol=rate * decay)


def test_a_zero_matrix_does_not_decay_and_a_nan_does_not_stay():
    tx = mo.add_spectral_weight_decay(1.0, steps=16)
    zero = {"w": jnp.zeros((3, 2))}
    update = jax.jit(tx.update)
    updates, state = update(zero, tx.init(zero), zero)
    np.testing.assert_array_equal(updates["w"], 0)
    bad = {"w": jnp.full((3, 2), jnp.nan)}
    updates, state = update(zero, state, bad)
    assert np.isnan(updates["w"]).all()
    good = {"w": jnp.asarray([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]])}
    updates, _ = update(zero, state, good)
    # 0.5^32 of the angle is left.
    np.testing.assert_allclose(updates["w"], rank_one(good["w"]), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"weight_decay": -0.1}, ValueError, r"weight_decay must be in \[0, inf\)"),
        ({"weight_decay": 0.1, "steps": 0}, ValueError, "steps must be .* at least 1"),
        ({"weight_decay": 0.1, "steps": 1.5}, TypeError, "steps must be a Python int"),
    ],
)
def test_wrong_arguments_of_the_decay(unhooked, arguments, error, message):
    with pytest.raises(error, match=message):
        mo.add_spectral_weight_decay(**arguments)


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: type(norm).__name__)
@pytest.mark.parametrize("shape", [(6, 3), (2, 3, 6)])
def test_the_parameter_goes_to_the_nearest_one_of_smaller_norm(rng, norm, shape):
    point = draw(rng, *shape)
    found = shrunk(point, norm)
    # Some products of entries of order 1 in float32, in a polar iteration.
    np.testing.assert_allclose(found, clipped(norm, point, RATE), rtol=0, atol=5e-6)


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: type(norm).__name__)
def test_the_soft_bound_is_the_projection_of_the_hard_one(rng, norm):
    point = draw(rng, 6, 3)
    bound = (1 - RATE) * float(norm.value(point.T))
    hard = jax.jit(lambda leaf: mo.project(leaf, Ball(norm, bound)))(point)
    np.testing.assert_allclose(shrunk(point, norm), hard, rtol=0, atol=5e-6)


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: type(norm).__name__)
def test_shrinking_takes_any_scale_zero_and_nan(rng, norm):
    point = draw(rng, 6, 3)
    expected = clipped(norm, point, RATE)
    for scale in (1e-30, 1e30):
        found = shrunk(scale * point, norm) / scale
        np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6)
    np.testing.assert_array_equal(shrunk(jnp.zeros((6, 3)), norm), 0)
    bad = shrunk(point.at[1, 1].set(jnp.nan), norm)
    assert np.isnan(bad[1, 1])


def test_a_rate_of_zero_changes_nothing(rng):
    point, update = draw(rng, 6, 3), draw(rng, 6, 3)
    found = apply(mo.shrink_norm, mo.Spectral(), 0.0, point=point, update=update)
    np.testing.assert_array_equal(found, update)


def test_a_scheduled_and_a_traced_rate(rng):
    params = {"w": draw(rng, 6, 3)}
    zero = jax.tree.map(jnp.zeros_like, params)
    tx: Any = mo.shrink_norm(mo.Frobenius(), optax.linear_schedule(0.2, 0.0, 2))
    state, update = tx.init(params), jax.jit(tx.update)
    assert mo.shrink_norm(mo.Frobenius(), 0.1).init(params) == optax.EmptyState()
    for rate in (0.2, 0.1, 0.0):
        updates, state = update(zero, state, params)
        expected = -rate * np.asarray(params["w"], np.float64)
        # `Π(W) − W` of entries below 4.
        np.testing.assert_allclose(updates["w"], expected, rtol=0, atol=1e-6)
    assert int(state.count) == 3

    @jax.jit
    def at(rate):
        tx: Any = mo.shrink_norm(mo.Frobenius(), rate)
        return tx.update(zero, tx.init(params), params)[0]["w"]

    np.testing.assert_allclose(at(0.1), -0.1 * params["w"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_a_rate_out_of_range_is_an_error(rate):
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\)"):
        mo.shrink_norm(mo.Frobenius(), rate)


def test_a_norm_is_needed(unhooked):
    with pytest.raises(TypeError, match=r"norm .* must be a BallNorm, got 2"):
        mo.shrink_norm(2, 0.1)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="must be a BallNorm, got L1"):
        mo.shrink_norm(L1(), 0.1)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    "factory",
    [
        lambda: mo.add_spectral_weight_decay(0.5, steps=32),
        lambda: mo.shrink_norm(mo.Spectral(), 0.5),
    ],
    ids=["add_spectral_weight_decay", "shrink_norm"],
)
def test_low_precision_in_and_out(rng, factory, dtype):
    params = {"w": draw(rng, 6, 3).astype(dtype)}
    update = {"w": draw(rng, 6, 3).astype(dtype)}
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (update, params))
    tx = factory()
    found, _ = jax.jit(tx.update)(update, tx.init(params), params)
    assert found["w"].dtype == dtype
    expected, _ = jax.jit(tx.update)(wide[0], tx.init(wide[1]), wide[1])
    # Two roundings of entries below 4, by half a unit each.
    atol = 8 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(found["w"].astype("float32"), expected["w"], atol=atol)


@pytest.mark.parametrize("norm", [mo.Frobenius(), mo.Spectral()], ids=str)
@pytest.mark.parametrize("rate", [1e-6, 1e-5, 1e-3])
def test_small_rates_are_not_lost_in_rounding(norm, rate):
    point = jnp.diag(jnp.array([3.0, 2.0, 1.0]))
    zero = jnp.zeros_like(point)
    change = apply(mo.shrink_norm, norm, rate, point=point, update=zero)
    shares = [1, 0, 0] if norm == mo.Spectral() else [1, 1, 1]
    # A closed form, whose factors are rounded once each; not a difference.
    expected = np.diag(-rate * np.array([3.0, 2.0, 1.0]) * shares)
    np.testing.assert_allclose(change, expected, rtol=1e-5)
