"""One network in NNX, linen, Equinox and plain JAX: every optimizer trains it alike."""

import functools
from collections.abc import Callable
from typing import Any

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen, nnx
from flax.training.train_state import TrainState

import manifold_optax as mo
from conformance.case import Case
from conformance.steps import filled
from conformance.table import CASES
from conformance.training import is_optimizer

# The frameworks multiply in other orders; directions and three steps amplify the
# float32 units (6e-8) of gradients of order 1.
ROUNDING = 1e-4
STEPS = 3

SHAPES = {"kernel": (6, 4), "bias": (4,)}

OPTIMIZERS = [
    pytest.param(case, id=case.name)
    for case in CASES
    # How a narrow average is rounded depends on the path and the axes of a leaf.
    if is_optimizer(case) and case.takes_axes and not case.narrow
]


def optimizer(case: Case, axes: Any = None) -> Any:
    """The optimizer of the case for kernels, AdamW for biases."""
    roles = mo.roles({"kernel|weight": axes or mo.STACKED})
    inner = case.factory(**(dict(case.arguments) | dict(case.numbers)), axes=roles)
    return mo.hybrid(inner, others=optax.adamw(0.01), labels=roles)


@functools.cache
def start(case: Case) -> Any:
    """Kernel on the manifold, and bias."""
    drawn = filled({"only": SHAPES}, 0)
    if not case.retracts:
        return drawn
    return mo.project(drawn, case.manifold, axes=mo.roles({"kernel": mo.STACKED}))


def loss_of(predicted: jax.Array) -> jax.Array:
    wanted = jnp.sin(filled({"y": (16, 4)}, 2)["y"])
    return jnp.mean(jnp.square(jnp.tanh(predicted) - wanted))


def inputs() -> jax.Array:
    return filled({"x": (16, 6)}, 1)["x"]


@functools.cache
def plain(case: Case) -> Any:
    tx, params = optimizer(case), start(case)

    def loss(params: Any) -> jax.Array:
        only = params["only"]
        return loss_of(inputs() @ only["kernel"] + only["bias"][None])

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(STEPS):
        params, state = step(params, state)
    return params["only"]


class NnxModel(nnx.Module):
    def __init__(self) -> None:
        self.only = nnx.Linear(6, 4, rngs=nnx.Rngs(0))


def in_nnx(case: Case) -> Any:
    model = NnxModel()
    nnx.update(model, start(case))
    tx = nnx.Optimizer(model, optimizer(case), wrt=nnx.Param)

    @nnx.jit
    def step(model: Any, tx: Any) -> None:
        tx.update(model, nnx.grad(lambda m: loss_of(m.only(inputs())))(model))

    for _ in range(STEPS):
        step(model, tx)
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))["only"]


class LinenModel(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return linen.Dense(4, name="only")(x)


def in_linen(case: Case) -> Any:
    model = LinenModel()
    state = TrainState.create(
        apply_fn=model.apply, params=start(case), tx=optimizer(case)
    )

    def loss(params: Any) -> jax.Array:
        predicted: Any = model.apply({"params": params}, inputs())
        return loss_of(predicted)

    @jax.jit
    def step(state: TrainState) -> TrainState:
        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    for _ in range(STEPS):
        state = step(state)
    return state.params["only"]


def in_equinox(case: Case) -> Any:
    """Weights are `[out, in]` here, and activations are leaves that are no arrays."""
    model = eqx.nn.MLP(6, 4, 1, depth=0, key=jax.random.key(0))
    only = start(case)["only"]
    where = lambda m: (m.layers[0].weight, m.layers[0].bias)
    model = eqx.tree_at(where, model, (only["kernel"].T, only["bias"]))
    tx = optimizer(case, mo.OUT_IN)
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model: Any, state: Any) -> Any:
        loss = lambda m: loss_of(jax.vmap(m)(inputs()))
        gradient = eqx.filter_grad(loss)(model)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, state = tx.update(gradient, state, params)
        return eqx.apply_updates(model, updates), state

    for _ in range(STEPS):
        model, state = step(model, state)
    kernel, bias = where(model)
    return {"kernel": kernel.T, "bias": bias}


@pytest.mark.promise(
    "Wrappers and frameworks",
    "A training in nnx, linen and Equinox ends as in plain JAX",
    on="every optimizer",
)
@pytest.mark.slow
@pytest.mark.parametrize("case", OPTIMIZERS)
@pytest.mark.parametrize("train", [in_nnx, in_linen, in_equinox])
def test_a_framework_trains_as_plain_jax(
    train: Callable[[Case], Any], case: Case
) -> None:
    expected = plain(case)
    moved = jnp.abs(expected["kernel"] - start(case)["only"]["kernel"]).max()
    assert float(moved) > 0.01
    chex.assert_trees_all_close(train(case), expected, rtol=ROUNDING, atol=ROUNDING)
