"""The training states of Flax take `hybrid` as they take any Optax optimizer."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen, nnx
from flax.training.train_state import TrainState

import manifold_optax as mo

PRESETS = {
    "muon": mo.muon(0.02),
    "manifold_muon": mo.manifold_muon(0.1, steps=0),
}


def data(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    x = jax.random.normal(key, (16, 6))
    return x, jnp.sin(x[:, :3])


def loss_of(predicted: jax.Array, wanted: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(predicted - wanted))


def projected(params: Any) -> Any:
    """With all kernels where `manifold_muon` wants them; biases as they are."""
    known = mo.roles()
    return jax.jit(lambda tree: mo.project(tree, mo.Stiefel(), axes=known))(params)


class NnxModel(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(6, 6, rngs=rngs)
        self.second = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(jnp.tanh(self.first(x)))


class LinenModel(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return linen.Dense(3)(jnp.tanh(linen.Dense(6)(x)))


TRAINS = pytest.mark.promise(
    "Wrappers and frameworks",
    "`nnx.Optimizer` and linen's `TrainState` train with `hybrid`",
    on="Muon, manifold Muon",
)


@TRAINS
@pytest.mark.parametrize(
    "name", ["muon", pytest.param("manifold_muon", marks=pytest.mark.slow)]
)
def test_an_nnx_optimizer_trains_with_hybrid(name: str, key: jax.Array) -> None:
    model = NnxModel(nnx.Rngs(0))
    nnx.update(model, projected(nnx.state(model, nnx.Param)))
    tx = mo.hybrid(PRESETS[name], others=optax.adamw(1e-2))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    x, y = data(key)

    @nnx.jit
    def step(model: Any, optimizer: Any) -> jax.Array:
        loss, gradient = nnx.value_and_grad(lambda m: loss_of(m(x), y))(model)
        optimizer.update(model, gradient)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(8)]
    assert losses[-1] < losses[0]
    state = nnx.state(optimizer)["opt_state"]
    masked = state["inner_states"]["matrix"]
    paths = [
        jax.tree_util.keystr(keys) for keys, _ in jax.tree.leaves_with_path(masked)
    ]
    assert paths
    assert not any("bias" in path for path in paths)


@TRAINS
@pytest.mark.parametrize(
    "name", ["muon", pytest.param("manifold_muon", marks=pytest.mark.slow)]
)
def test_a_linen_train_state_trains_with_hybrid(name: str, key: jax.Array) -> None:
    model = LinenModel()
    x, y = data(key)
    params = projected(model.init(key, x)["params"])
    tx = mo.hybrid(PRESETS[name], others=optax.adamw(1e-2))
    start = TrainState.create(apply_fn=model.apply, params=params, tx=tx)

    @jax.jit
    def step(state: TrainState) -> tuple[TrainState, jax.Array]:
        def loss(params: Any) -> jax.Array:
            predicted: Any = model.apply({"params": params}, x)
            return loss_of(predicted, y)

        value, gradient = jax.value_and_grad(loss)(state.params)
        return state.apply_gradients(grads=gradient), value

    state, losses = start, []
    for _ in range(8):
        state, loss = step(state)
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    assert int(state.step) == 8
    chex.assert_trees_all_equal_shapes_and_dtypes(state.opt_state, start.opt_state)


@pytest.mark.promise(
    "What is applied",
    "Each leaf gets the update of its own optimizer alone",
    on="hybrid; Muon and SGD",
)
def test_hybrid_gives_each_leaf_to_its_own_optimizer(key: jax.Array) -> None:
    model = LinenModel()
    params = model.init(key, jnp.ones((1, 6)))["params"]
    tx: Any = mo.hybrid(mo.muon(0.02), others=optax.sgd(1.0))
    gradient = jax.tree.map(lambda leaf: 1e-3 * jnp.ones_like(leaf), params)
    updates, _ = tx.update(gradient, tx.init(params), params)
    muon: Any = mo.muon(0.02)
    for layer, leaves in params.items():
        chex.assert_trees_all_equal(updates[layer]["bias"], -gradient[layer]["bias"])
        kernel = {"w": leaves["kernel"]}
        ones = {"w": gradient[layer]["kernel"]}
        expected, _ = muon.update(ones, muon.init(kernel), kernel)
        chex.assert_trees_all_close(updates[layer]["kernel"], expected["w"], atol=1e-6)
