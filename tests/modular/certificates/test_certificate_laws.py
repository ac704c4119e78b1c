"""Laws of the bounds of a plain network, and parameters at the ends of float32."""

import functools
import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax import numpy as jnp

from manifold_optax import modular
from modular.certificates.ascent import attacked_ratios
from modular.certificates.domains import Ball, EntryBox, Everything

# Every certificate compiles for a second or more.
pytestmark = pytest.mark.slow

WIDTHS = (5, 8, 6, 4)
LIKE = jax.ShapeDtypeStruct((2, WIDTHS[0]), np.float32)
ALL = Everything(LIKE)

# Two float32 computations of one bound, of some tens of rounded products each, differ
# by 1e-6 of it at most; ten times that.
ROUNDING = 1e-5

# A bound of a norm allows for its own rounding, by an amount that depends on how large
# the entries are next to a power of two: up to 9.4e-5 of the bound, observed.
SCALING = 3e-4


def network(params, x):
    for weights in params[:-1]:
        x = jax.nn.relu(x @ weights)
    return x @ params[-1]


def drawn(seed=0, widths=WIDTHS):
    rng = np.random.default_rng(seed)
    pairs = itertools.pairwise(widths)
    return [jnp.float32(rng.normal(size=pair) / np.sqrt(pair[0])) for pair in pairs]


def shapes(params):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)


@functools.cache
def certificate(depth=3, inputs=ALL):
    params = shapes(drawn(widths=WIDTHS[: depth + 1]))
    return modular.certificate(network, params, inputs.declared())


@functools.cache
def compiled(depth=3):
    return jax.jit(certificate(depth).lipschitz)


def bound(params):
    return float(compiled(len(params))(params))


@settings(deadline=None, max_examples=30)
@given(
    factor=st.floats(1e-3, 1e3) | st.floats(-1e3, -1e-3),
    layer=st.integers(0, 2),
    seed=st.integers(0, 1000),
)
def test_the_bound_scales_with_every_layer(factor, layer, seed):
    params = drawn(seed)
    before = bound(params)
    params[layer] = jnp.float32(factor) * params[layer]
    assert bound(params) == pytest.approx(abs(factor) * before, rel=SCALING)


@settings(deadline=None, max_examples=30)
@given(order=st.permutations(range(WIDTHS[1])), seed=st.integers(0, 1000))
def test_the_order_of_neurons_does_not_count(order, seed):
    first, second, third = drawn(seed)
    order = jnp.asarray(order)
    permuted = [first[:, order], second[order], third]
    assert bound(permuted) == pytest.approx(bound([first, second, third]), rel=ROUNDING)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000))
def test_another_layer_multiplies(seed):
    params = drawn(seed)
    like = jax.ShapeDtypeStruct((2, WIDTHS[2]), np.float32)
    own = modular.lipschitz_bound(network, params[2:], like)
    assert bound(params) == pytest.approx(bound(params[:2]) * float(own), rel=ROUNDING)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), spread=st.floats(0, 3))
def test_the_bound_of_one_matrix_is_its_norm(seed, spread):
    (weights,) = drawn(seed, WIDTHS[:2])
    left, values, right = np.linalg.svd(np.float64(weights), full_matrices=False)
    weights = np.float32((left * np.exp(-spread * np.arange(len(values)))) @ right)
    norm = np.linalg.norm(np.float64(weights), 2)
    found = bound([weights])
    assert norm <= found
    # Strict bounds of norms are at most 1 % high on random matrices, 5 % on others.
    assert found <= 1.06 * norm


def test_eager_compiled_and_both_functions_agree():
    params = drawn()
    expected = certificate().lipschitz(params)
    assert bound(params) == pytest.approx(float(expected), rel=ROUNDING)
    once = jax.jit(lambda params: modular.lipschitz_bound(network, params, LIKE))
    assert float(once(params)) == pytest.approx(float(expected), rel=ROUNDING)


def test_a_stack_of_networks_has_the_bounds_of_each():
    networks = [drawn(seed) for seed in range(4)]
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *networks)
    found = jax.vmap(certificate().lipschitz)(stack)
    expected = [bound(params) for params in networks]
    np.testing.assert_allclose(found, expected, rtol=ROUNDING)


def test_zero_weights_have_the_bound_0():
    for layer in range(3):
        params = drawn()
        params[layer] = jnp.zeros_like(params[layer])
        assert bound(params) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_have_no_bound(bad):
    for layer in range(3):
        params = drawn()
        params[layer] = params[layer].at[1, 2].set(bad)
        assert bound(params) == np.inf
        # A layer of zeros does not hide it: 0 × inf is not 0.
        params[layer - 1] = jnp.zeros_like(params[layer - 1])
        assert bound(params) == np.inf
        box = certificate(inputs=EntryBox(LIKE))
        assert (box.change(params, drawn(1)) == np.inf).all()
        assert box.change(drawn(1), params) == np.inf
        found = np.asarray(certificate().pairs(params))
        assert not np.isnan(found).any()
        assert (found[~np.eye(len(found), dtype=bool)] == np.inf).all()


@pytest.mark.parametrize("size", [1e30, 1e-30])
def test_large_and_small_weights(size):
    (weights,) = drawn(widths=WIDTHS[:2])
    weights = np.float32(size) * np.asarray(weights)
    norm = np.linalg.norm(np.float64(weights), 2)
    found = bound([jnp.asarray(weights)])
    assert found >= norm
    assert found <= 1.06 * norm


@pytest.mark.parametrize("size", [1e15, 1e30])
def test_large_and_small_layers_may_cancel(size):
    params = drawn()
    true = bound(params)
    params[0], params[1] = size * params[0], params[1] / size
    found = bound(params)
    assert found >= true * (1 - SCALING)
    if size == 1e15:
        assert found <= true * (1 + SCALING)


def test_a_product_beyond_float32_has_the_bound_inf():
    assert bound([1e20 * weights for weights in drawn()]) == np.inf


def test_bfloat16_parameters():
    params = [weights.astype(jnp.bfloat16) for weights in drawn()]
    like = jax.ShapeDtypeStruct(LIKE.shape, jnp.bfloat16)
    found = float(modular.lipschitz_bound(network, params, like))
    same = [weights.astype(jnp.float32) for weights in params]
    (ratio,) = attacked_ratios(network, same, ALL)
    assert ratio <= found
    assert found == pytest.approx(bound(same), rel=ROUNDING)


def test_pairs_are_at_most_the_whole():
    params = drawn()
    pairs = np.asarray(certificate().pairs(params))
    np.testing.assert_allclose(pairs, pairs.T)
    # ‖e_i − e_j‖ is √2.
    assert pairs.max() <= np.sqrt(2) * bound(params) * (1 + ROUNDING)


def test_changes_grow_with_the_step_and_with_the_set():
    params, direction = drawn(), drawn(1)
    sets = (EntryBox(LIKE, 0.25, 0.75), EntryBox(LIKE), EntryBox(LIKE, -1.0, 1.0))
    table = []
    for inputs in sets:
        change = jax.jit(certificate(inputs=inputs).change)
        sizes = (0.0, 1e-4, 1e-2, 1.0)
        steps = [jax.tree.map(lambda x, s=s: s * x, direction) for s in sizes]
        table.append([float(change(params, step)) for step in steps])
    assert (np.diff(table, axis=1) > 0).all()
    assert (np.diff(table, axis=0) >= 0).all()
    np.testing.assert_array_equal(np.asarray(table)[:, 0], 0)


def test_a_change_is_at_most_first_order_for_small_steps():
    """The bound of a small step is linear in it: no constant remains."""
    params, direction = drawn(), drawn(1)
    change = certificate(inputs=Ball(LIKE, 1.0)).change
    tiny, small = (
        float(change(params, jax.tree.map(lambda x, s=s: s * x, direction)))
        for s in (1e-6, 1e-4)
    )
    # The second order adds 3 × 1e-4 of the larger one.
    assert small / tiny == pytest.approx(100, rel=1e-3)
