"""A small network on the kernels of the table, and trainings of it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from conformance.case import Case, Tree, Tx
from conformance.steps import filled, parameters

Loss = Callable[[Tree, jax.Array], jax.Array]

EXAMPLES, STEPS = 16, 3


def is_optimizer(case: Case) -> bool:
    """Not a building block: it takes a learning rate."""
    return "learning_rate" in case.numbers


def examples(seed: int = 7) -> jax.Array:
    """Inputs of the network."""
    return filled({"x": (EXAMPLES, 8)}, seed)["x"]


def loss(params: Tree, x: jax.Array) -> jax.Array:
    """Mean squared error of a network through all leaves of the table."""
    hidden = jnp.tanh(
        jnp.tanh(x @ params["first"]["kernel"]) @ params["second"]["kernel"]
    )
    outputs = jnp.einsum("nh,lho->nlo", hidden, params["third"]["kernel"])
    errors = jnp.square(outputs.sum(1) - jnp.sin(x[:, :2]))
    if "fourth" not in params:
        return errors.mean()
    return (errors.sum(1) + jnp.square(params["fourth"]["bias"]).sum()).mean()


def trained(
    case: Case, loss: Loss = loss, wrap: Callable[[Tx], Any] = lambda tx: tx
) -> tuple[Tree, Tree]:
    """Parameters and state after `STEPS` steps of a jitted loop."""
    tx = wrap(case.make())

    @jax.jit
    def step(params: Tree, state: Tree, x: jax.Array) -> tuple[Tree, Tree]:
        updates, state = tx.update(jax.grad(loss)(params, x), state, params)
        return optax.apply_updates(params, updates), state

    params = parameters(case)
    state = tx.init(params)
    for _ in range(STEPS):
        params, state = step(params, state, examples())
    return params, state
