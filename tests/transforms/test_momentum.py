from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manifold_optax as mo
import oracles

CELLS = [(nesterov, debias) for nesterov in (False, True) for debias in (False, True)]


def run(tx, taken):
    """All updates that a transformation makes of a list of leaves."""
    state = tx.init({"w": taken[0]})
    made = []
    for gradient in taken:
        updates, state = tx.update({"w": gradient}, state, {"w": gradient})
        made.append(updates["w"])
    return made, state


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
@pytest.mark.parametrize(("nesterov", "debias"), CELLS)
def test_the_average_is_the_documented_formula(rng, nesterov, debias, decay):
    taken = list(rng.standard_normal((4, 3, 2)).astype(np.float32))
    expected = oracles.muon_momentum(taken, decay, nesterov, debias)
    tx: Any = mo.momentum(decay, nesterov=nesterov, debias=debias)
    found, state = run(tx, [jnp.asarray(gradient) for gradient in taken])
    # 1 - β^t in float32 loses up to 1/(1 - β) of its digits: 100 · 6e-8 for β = 0.99.
    tolerance = 2e-5 if debias else 1e-6
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    assert int(state.count) == 4


def test_debias_with_nesterov_is_the_average_of_optax(rng):
    taken = [jnp.asarray(g, jnp.float32) for g in rng.standard_normal((3, 3, 2))]
    found, _ = run(mo.momentum(0.95, debias=True), taken)
    average = jnp.zeros((3, 2))
    for step, gradient in enumerate(taken, start=1):
        average = optax.tree.update_moment(gradient, average, 0.95, 1)
        ahead = optax.tree.bias_correction(average, 0.95, step + 1)
        now = optax.tree.bias_correction(gradient, 0.95, step)
        # Two implementations of one float32 formula; 1 − βᵗ costs a digit.
        np.testing.assert_allclose(
            found[step - 1], 0.95 * ahead + 0.05 * now, rtol=0, atol=1e-5
        )


@pytest.mark.parametrize(("nesterov", "debias"), CELLS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_updates_keep_their_dtype_and_the_average_is_float32(dtype, nesterov, debias):
    tx: Any = mo.momentum(0.9, nesterov=nesterov, debias=debias)
    params = {"w": jnp.ones(3, dtype)}
    start = tx.init(params)
    updates, state = tx.update(params, start)
    assert updates["w"].dtype == dtype
    assert start.average["w"].dtype == state.average["w"].dtype == jnp.float32
    assert state.count.dtype == jnp.int32


def test_double_precision_stays_double(x64):
    params = {"w": jnp.full(3, 1 / 3, jnp.float64)}
    tx: Any = mo.momentum(0.5, nesterov=False)
    updates, state = tx.update(params, tx.init(params))
    assert updates["w"].dtype == state.average["w"].dtype == jnp.float64
    assert float(updates["w"][0]) == (1 / 3) / 2


def test_bfloat16_gradients_do_not_stall_the_average():
    tx: Any = mo.momentum(0.99, nesterov=False)
    params = {"w": jnp.ones(1, jnp.bfloat16)}
    update = jax.jit(tx.update)
    state = tx.init(params)
    for _ in range(500):
        _, state = update(params, state)
    # In bfloat16 the average would stop near 0.5, where 1 % of it is half a unit; in
    # float32 500 roundings of 6e-8 add up to less than 1e-5.
    np.testing.assert_allclose(state.average["w"], 1 - 0.99**500, atol=1e-5)


def test_a_leaf_without_update_keeps_its_average():
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    tx: Any = mo.momentum(0.5)
    _, state = tx.update(params, tx.init(params))
    updates, new = tx.update({"a": params["a"], "b": None}, state)
    assert updates["b"] is None
    np.testing.assert_array_equal(new.average["b"], state.average["b"])
    assert (new.average["a"] != state.average["a"]).all()
    assert int(new.count) == 2


def test_masked_leaves_have_no_average():
    params = {"a": jnp.ones(2), "b": optax.MaskedNode()}
    tx: Any = mo.momentum(0.5)
    updates, state = tx.update(params, tx.init(params))
    assert updates["b"] == state.average["b"] == optax.MaskedNode()


def test_the_count_does_not_overflow():
    params = {"w": jnp.ones(2)}
    tx: Any = mo.momentum(0.5, debias=True)
    largest = jnp.asarray(np.iinfo(np.int32).max, jnp.int32)
    state = tx.init(params)._replace(count=largest)
    updates, state = tx.update(params, state)
    assert state.count == largest
    # All weights are used up, so the plain formula holds: β·(1−β) + (1−β).
    np.testing.assert_allclose(updates["w"], 0.75, rtol=1e-6)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, float("nan"), float("inf")])
def test_a_decay_out_of_range_is_an_error(decay):
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got"):
        mo.momentum(decay)


def test_the_decay_may_be_traced():
    params = {"w": jnp.ones(2)}

    def update(decay):
        tx = mo.momentum(decay, debias=True)
        return tx.update(params, tx.init(params))

    # The formula in one rounding more or less.
    chex.assert_trees_all_close(jax.jit(update)(0.5), update(0.5), rtol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_transport_projects_the_average_at_the_current_point(rng, nesterov):
    decay, taken = 0.9, rng.standard_normal((3, 6, 3))
    points = [oracles.stiefel_point(rng, 6, 3) for _ in taken]
    tx = mo.momentum(decay, nesterov=nesterov, transport=mo.Stiefel())
    state, update = tx.init({"w": jnp.eye(6, 3)}), jax.jit(tx.update)
    average = np.zeros((6, 3))
    for point, gradient in zip(points, taken, strict=True):
        average = decay * oracles.stiefel_tangent(point, average)
        average += (1 - decay) * gradient
        ahead = decay * average + (1 - decay) * gradient
        params = {"w": jnp.asarray(point, jnp.float32)}
        gradients = {"w": jnp.asarray(gradient, jnp.float32)}
        updates, state = update(gradients, state, params)
        expected = ahead if nesterov else average
        # A few float32 roundings of entries of order 1.
        np.testing.assert_allclose(updates["w"], expected, rtol=0, atol=1e-6)
        np.testing.assert_allclose(state.average["w"], average, rtol=0, atol=1e-6)


def test_transport_leaves_out_what_has_no_update(rng):
    params = {"a": jnp.eye(4, 2), "b": jnp.eye(4, 2), "c": optax.MaskedNode()}
    tx = mo.momentum(0.5, transport=mo.Stiefel())
    update = jax.jit(tx.update)
    _, state = update(params, tx.init(params), params)
    updates, new = update(params | {"b": None}, state, params)
    assert updates["b"] is None
    np.testing.assert_array_equal(new.average["b"], state.average["b"])
    assert jax.tree.structure(new) == jax.tree.structure(state)


def test_transport_needs_parameters_that_are_matrices(unhooked):
    tx = mo.momentum(0.5, transport=mo.Sphere())
    params = {"w": jnp.full((2, 2), 0.5)}
    with pytest.raises(
        ValueError, match=r"momentum with transport needs .* parameters"
    ):
        tx.update(params, tx.init(params))
    with pytest.raises(ValueError, match=r"'bias' of shape \(2,\)"):
        tx.init({"bias": jnp.ones(2)})


def test_without_transport_the_parameters_do_not_matter():
    params = {"w": jnp.ones((2, 2))}
    plain = mo.momentum(0.5)
    state = plain.init(params)
    without_params = jax.make_jaxpr(lambda u, s, p: plain.update(u, s))
    with_params = jax.make_jaxpr(plain.update)
    arguments = params, state, params
    assert str(with_params(*arguments)) == str(without_params(*arguments))
