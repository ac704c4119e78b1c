"""Norms and quotients of float32 without float64 are as near as rounding allows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from manifold_optax.linalg._compensated import compensated_norm, compensated_normalize
from manifold_optax.linalg._exact_norms import exact_norm, exactly_normalized

# Half a unit in the last place is a correct rounding; the docstring promises this.
CORRECT = 0.51

norm = functools.partial(jax.jit(compensated_norm, static_argnums=1), axes=(-2, -1))
normalized = functools.partial(
    jax.jit(compensated_normalize, static_argnums=1), axis_name=None
)


def matrices(shape=(60, 40)):
    """Dense, of six decades, mostly zero, all equal, of one row; at three scales."""
    rng = np.random.default_rng(0)
    dense = rng.standard_normal(shape)
    sparse = np.where(rng.random(shape) < 0.95, 0, dense)
    kinds = (
        dense,
        dense * 10.0 ** rng.uniform(-6, 0, shape),
        sparse,
        np.ones(shape),
        dense * (np.arange(shape[0]) == 3)[:, None],
    )
    return np.stack([s * x for x in kinds for s in (1e-25, 1, 1e30)]).astype("f4")


def units_off(found, exact):
    """Largest distance in units in the last place; of zero: none."""
    spacing = np.spacing(np.abs(exact).astype("f4")).astype("f8")
    return np.max(np.abs(np.asarray(found, "f8") - exact) / spacing)


def exact_norms(x):
    return np.linalg.norm(x.astype("f8"), axis=(-2, -1), keepdims=True)


@pytest.mark.promise(
    "Numbers",
    "Without float64 a norm is rounded as with it: no compiler simplifies the sums",
    on="float32, the arithmetic of accelerators",
)
def test_the_norm_is_rounded_once(measured):
    x = matrices()
    measured(units_off(norm(jnp.asarray(x)), exact_norms(x)), at_most=CORRECT)


def test_a_plain_norm_is_not():
    # Otherwise the test above would show nothing of what the compensation does.
    x = matrices()[1::3]
    plain = jax.jit(lambda x: jnp.linalg.norm(x, axis=(-2, -1), keepdims=True))
    assert units_off(plain(jnp.asarray(x)), exact_norms(x)) > 1.5 * CORRECT


def test_every_entry_is_divided_and_rounded_once():
    x = matrices()
    exact = x.astype("f8") / exact_norms(x)
    found = np.asarray(normalized(jnp.asarray(x)))
    assert units_off(found, exact) <= CORRECT
    # 2400 independent roundings of entries, of which 95 % or more may be zero.
    lengths = np.linalg.norm(found.astype("f8"), axis=(-2, -1))
    np.testing.assert_allclose(lengths, 1, atol=float(np.finfo("f4").eps) / 4)


def test_zero_stays_zero_and_nan_stays_alone():
    x = jnp.asarray(np.stack([np.zeros((3, 2)), np.full((3, 2), np.inf), np.eye(3, 2)]))
    x = x.astype(jnp.float32).at[1, 0, 0].set(1)
    lengths, units = norm(x), normalized(x)
    np.testing.assert_array_equal(lengths[0], 0)
    np.testing.assert_array_equal(units[0], 0)
    assert np.isnan(lengths[1]).all()
    assert np.isnan(units[1]).all()
    assert np.isfinite(units[2]).all()


@pytest.mark.parametrize("mapped", [norm, normalized], ids=["norm", "unit"])
def test_a_batch_gives_the_same_digits(mapped):
    x = jnp.asarray(matrices((9, 5)))
    np.testing.assert_array_equal(jax.vmap(mapped)(x), mapped(x))


@pytest.mark.parametrize(
    ("exact", "compensated"),
    [
        (lambda x: jnp.linalg.norm(x, keepdims=True), norm),
        (lambda x: x / jnp.linalg.norm(x), normalized),
    ],
    ids=["norm", "unit"],
)
def test_derivatives_are_those_of_the_formula(exact, compensated):
    rng = np.random.default_rng(1)
    x, change, weight = jnp.asarray(rng.standard_normal((3, 6, 4)), jnp.float32)

    def along(f):
        return jax.jvp(f, (x,), (change,))[1]

    def total(f):
        return jax.grad(lambda x: jnp.sum(f(x) * weight))(x)

    # A few roundings of numbers of order 1.
    np.testing.assert_allclose(along(compensated), along(exact), atol=2e-6)
    np.testing.assert_allclose(total(compensated), total(exact), atol=2e-6)


def test_both_platforms_agree_to_a_rounding(on_accelerators):
    x = matrices((9, 5))
    length = jax.jit(lambda x: exact_norm(x, (-2, -1)))
    unit = jax.jit(lambda x: exactly_normalized(x))
    assert "f64" not in length.lower(x).as_text() + unit.lower(x).as_text()
    assert units_off(length(x), exact_norms(x)) <= CORRECT
    assert units_off(unit(x), x.astype("f8") / exact_norms(x)) <= CORRECT
