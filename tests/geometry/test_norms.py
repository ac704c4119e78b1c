"""Norms, their duals and their linear minimization oracles, against NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax.sharding import AxisType, PartitionSpec as P

import oracles
from manifold_optax.geometry import (
    ColumnRms,
    Frobenius,
    L1,
    Max,
    PNorm,
    RmsToRms,
    RowRms,
    Spectral,
)

EPS = float(np.finfo(np.float32).eps)
NORMS = (
    Frobenius(),
    Max(),
    L1(),
    PNorm(1.5),
    PNorm(4.0),
    Spectral(),
    RmsToRms(),
    RowRms(),
    ColumnRms(),
)
SHAPES = ((8, 5), (2, 5, 8))

law = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
everywhere = pytest.mark.parametrize(
    ("norm", "shape"), [(norm, shape) for norm in NORMS for shape in SHAPES], ids=str
)


def compute(norm, x, g):
    return norm.value(x), norm.dual_value(g), norm.steepest(g)


compiled = jax.jit(compute, static_argnums=0)


def lines(x, axis):
    """Largest root mean square of a line, and the sum of the lengths times √size."""
    lengths = np.sqrt((x**2).sum(axis=axis))
    root = np.sqrt(x.shape[axis])
    return lengths.max(axis=-1) / root, lengths.sum(axis=-1) * root


def definition(norm, x):
    """Norm and dual norm of each matrix, by NumPy."""
    values = np.linalg.svd(x, compute_uv=False)
    sizes = np.abs(x).reshape(*x.shape[:-2], -1)
    ratio = np.sqrt(x.shape[-2] / x.shape[-1])
    match norm:
        case Spectral():
            return values.max(axis=-1), values.sum(axis=-1)
        case RmsToRms():
            return values.max(axis=-1) / ratio, values.sum(axis=-1) * ratio
        case Max():
            return sizes.max(axis=-1), sizes.sum(axis=-1)
        case L1():
            return sizes.sum(axis=-1), sizes.max(axis=-1)
        case RowRms():
            return lines(x, -1)
        case ColumnRms():
            return lines(x, -2)
        case _:
            p = norm.p if isinstance(norm, PNorm) else 2
            q = p / (p - 1)
            norms = [(sizes**r).sum(axis=-1) ** (1 / r) for r in (p, q)]
            return norms[0], norms[1]


def inner(x, y):
    return (x * y).sum(axis=(-2, -1))


@pytest.mark.promise(
    "Numbers", "A direction has unit norm and attains the dual norm", on="every norm"
)
@everywhere
@law
@given(seed=seeds)
def test_laws(norm, shape, seed):
    x, g = np.random.default_rng(seed).standard_normal((2, *shape))
    arguments = [jnp.asarray(array, jnp.float32) for array in (x, g)]
    value, dual_value, steepest = map(np.asarray, compiled(norm, *arguments))
    # Sums of at most 40 terms, and singular values (seen: 4 eps).
    np.testing.assert_allclose(value, definition(norm, x)[0], rtol=16 * EPS)
    np.testing.assert_allclose(dual_value, definition(norm, g)[1], rtol=16 * EPS)
    # The linear minimization oracle: of length 1, and it attains the dual norm. A polar
    # factor adds the rounding of a convergent iteration (seen: 5 eps).
    length = definition(norm, steepest.astype(np.float64))[0]
    np.testing.assert_allclose(length, np.ones_like(length), rtol=32 * EPS)
    np.testing.assert_allclose(inner(steepest, g), dual_value, rtol=32 * EPS)
    # Duality, which the oracle turns into an equality.
    assert np.all(inner(x, g) <= value * dual_value * (1 + 32 * EPS))


@pytest.mark.promise(
    "Faults",
    "The scale of a gradient does not change its direction",
    on="norms, Newton–Schulz, polar factor; float32, 1e-30 to 1e30",
)
@everywhere
def test_any_scale(norm, shape):
    x = np.random.default_rng(0).standard_normal(shape)
    for scale in (1e-30, 1e30):
        scaled = jnp.asarray(x * scale, jnp.float32)
        value, dual_value, steepest = compiled(norm, scaled, scaled)
        exact = definition(norm, x * scale)
        np.testing.assert_allclose(value, exact[0], rtol=16 * EPS)
        np.testing.assert_allclose(dual_value, exact[1], rtol=16 * EPS)
        plain = compiled(norm, *2 * [jnp.asarray(x, jnp.float32)])[2]
        # The input is rounded anew; a polar factor magnifies that by the condition of
        # the matrix, below 30 here.
        np.testing.assert_allclose(steepest, plain, atol=128 * EPS)


@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_rows_may_be_split(norm):
    x = jnp.asarray(np.random.default_rng(1).standard_normal((8, 5)), jnp.float32)

    # A batching rule of its own (float64) sees no axis of `vmap`, but those of a mesh.
    spectral = isinstance(norm, Spectral | RmsToRms)

    methods = (norm.value,) if spectral else (norm.value, norm.dual_value)

    def parts(x):
        return [method(x, axis_name="r") for method in methods]

    @jax.jit
    def compute(x):
        mesh = jax.make_mesh((1,), ("r",), axis_types=(AxisType.Auto,))
        dual_value = functools.partial(norm.dual_value, axis_name="r")
        whole = jax.shard_map(dual_value, mesh=mesh, in_specs=P("r"), out_specs=P())(x)
        return whole, jax.vmap(parts, axis_name="r")(x.reshape(4, 2, 5))

    on_mesh, split = compute(x)
    expected = compiled(norm, x, x)[:2]
    # Sums in another order, and Gram matrices in place of an SVD (seen: 4 eps).
    np.testing.assert_allclose(on_mesh, expected[1], rtol=16 * EPS)
    for found, number in zip(split, expected, strict=False):
        np.testing.assert_allclose(found, np.full(4, number), rtol=16 * EPS)


@everywhere
def test_zero_has_norm_zero_and_no_direction(norm, shape):
    zero = jnp.zeros(shape)
    assert not any(np.any(found) for found in compiled(norm, zero, zero))


@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_nan_stays_visible(norm):
    bad = jnp.ones((8, 5)).at[2, 3].set(jnp.nan)
    assert all(np.any(np.isnan(found)) for found in compiled(norm, bad, bad))


@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_bfloat16(norm):
    g = jnp.asarray(np.random.default_rng(0).standard_normal((8, 5)), jnp.bfloat16)
    value, dual_value, steepest = compiled(norm, g, g)
    assert value.dtype == dual_value.dtype == jnp.float32
    assert steepest.dtype == jnp.bfloat16
    exact = definition(norm, np.asarray(g, np.float64))
    # Computed in float32 from the stored numbers.
    np.testing.assert_allclose(value, exact[0], rtol=16 * EPS)
    np.testing.assert_allclose(dual_value, exact[1], rtol=16 * EPS)


@pytest.mark.promise(
    "Faults",
    "Low rank gives a partial isometry",
    on="polar factor, spectral norm; float32",
)
@pytest.mark.parametrize("rank", [1, 3])
def test_spectral_direction_of_low_rank_is_a_partial_isometry(rank):
    rng = np.random.default_rng(rank)
    g = rng.standard_normal((8, rank)) @ rng.standard_normal((rank, 5))
    found = compiled(Spectral(), *2 * [jnp.asarray(g, jnp.float32)])[2]
    # Condition below 10 on the range (seen: 4e-7).
    np.testing.assert_allclose(found, oracles.polar(g), atol=48 * EPS)


@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_empty(norm):
    value, dual_value, steepest = compiled(norm, jnp.zeros((0, 5)), jnp.zeros((0, 5)))
    assert float(value) == float(dual_value) == 0
    assert steepest.shape == (0, 5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_bad_entry_is_seen(bad):
    gradient = jnp.full((4, 3), 100.0).at[1, 2].set(bad)
    assert np.isnan(Frobenius().steepest(gradient)).all()
    assert np.isnan(RowRms().steepest(gradient)[1]).all()
    assert np.isnan(ColumnRms().steepest(gradient)[:, 2]).all()
    assert np.isnan(Max().steepest(gradient)[1, 2])


def test_split_rows_of_low_rank_have_a_nuclear_norm():
    # The Gram matrix has eigenvalues that come out below zero by rounding.
    x = np.outer(np.arange(1, 9), np.arange(1, 7)).astype(np.float32)
    mesh = jax.make_mesh((1,), ("r",), axis_types=(AxisType.Auto,))
    dual_value = functools.partial(Spectral().dual_value, axis_name="r")
    split = jax.shard_map(dual_value, mesh=mesh, in_specs=P("r"), out_specs=P())
    found = split(jnp.asarray(x))
    # Roots of rounding units of float64, 1e-8 of the norm for each of five zeros.
    np.testing.assert_allclose(found, np.linalg.norm(x), rtol=1e-6)
