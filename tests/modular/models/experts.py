"""Mixtures of experts whose kernels are stacks `[experts, in, out]`."""

from typing import Any

import jax
import jax.numpy as jnp

from modular.models.model import (
    as_users_trace,
    BATCH,
    described,
    EXPERTS_IN,
    EXPERTS_OUT,
    MATRIX,
    Model,
    normal,
    READOUT,
    ROUTER,
    shapes,
)

WIDTH, HIDDEN, EXPERTS, CLASSES, LENGTH = 8, 12, 4, 5, 6

_PARAMS = {
    "router": (WIDTH, EXPERTS),
    "up": (EXPERTS, WIDTH, HIDDEN),
    "down": (EXPERTS, HIDDEN, WIDTH),
    "classifier": (WIDTH, CLASSES),
}


def _of_experts(name: str, layer: Any, golden: Any, refuses: str | None) -> Model:
    """A residual layer of experts and a classifier of the mean token."""

    def forward(params: Any, x: jax.Array) -> jax.Array:
        return (x + layer(params, x)).mean(1) @ params["classifier"]

    inputs = (normal(BATCH, LENGTH, WIDTH),)
    forward = as_users_trace(forward)
    golden = {**golden, "classifier": READOUT}
    return described(
        forward, shapes(_PARAMS), inputs, golden, name=name, refuses=refuses
    )


def weighed_experts() -> Model:
    """Every token goes to all experts; a softmax weighs what they return."""

    def layer(params: Any, x: jax.Array) -> jax.Array:
        weights = jax.nn.softmax(x @ params["router"], axis=-1)
        hidden = jax.nn.gelu(jnp.einsum("btd,edh->bteh", x, params["up"]))
        outputs = jnp.einsum("bteh,ehd->bted", hidden, params["down"])
        return jnp.einsum("bted,bte->btd", outputs, weights)

    golden = {"router": ROUTER, "up": MATRIX, "down": MATRIX}
    return _of_experts("weighed_experts", layer, golden, None)


def summed_experts() -> Model:
    """The same function, in which one product sums over the experts.

    By use alone the experts are one wide layer: `down` contracts experts and hidden
    units together. Whoever wrote it means a stack of experts.
    """

    def layer(params: Any, x: jax.Array) -> jax.Array:
        weights = jax.nn.softmax(x @ params["router"], axis=-1)
        hidden = jax.nn.gelu(jnp.einsum("btd,edh->bteh", x, params["up"]))
        weighed = hidden * weights[..., None]
        return jnp.einsum("bteh,ehd->btd", weighed, params["down"])

    golden = {"router": ROUTER, "up": EXPERTS_IN, "down": EXPERTS_OUT}
    return _of_experts("summed_experts", layer, golden, None)


def switched_experts() -> Model:
    """One expert per token, by `argmax`, whose kernels are gathered."""

    def layer(params: Any, x: jax.Array) -> jax.Array:
        scores = jax.nn.softmax(x @ params["router"], axis=-1)
        chosen = jnp.argmax(scores, axis=-1)
        weight = jnp.max(scores, axis=-1)[..., None]
        hidden = jax.nn.relu(jnp.einsum("btd,btdh->bth", x, params["up"][chosen]))
        return weight * jnp.einsum("bth,bthd->btd", hidden, params["down"][chosen])

    golden = {"router": ROUTER, "up": MATRIX, "down": MATRIX}
    return _of_experts("switched_experts", layer, golden, "argmax")
