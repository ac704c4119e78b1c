"""Equinox: weights are `[out, in]`, models take one example, users `vmap` them."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

import manifold_optax as mo
from modular.models.model import (
    BATCH,
    below,
    BIAS,
    described,
    EMBEDDING,
    GAIN,
    Golden,
    in_layers,
    Model,
    normal,
    tokens,
)

INPUTS, WIDTH, CLASSES = 12, 16, 5
HEADS, SIZE, VOCABULARY, LENGTH = 4, 4, 11, 6

MATRIX = Golden(mo.Role("matrix", mo.OUT_IN))
READOUT = Golden(mo.Role("readout", mo.OUT_IN))
TO_HEADS = Golden(mo.Role("matrix", mo.Split((SIZE,) * HEADS, -2, mo.OUT_IN)), "heads")
"""`[heads * size, in]`, reshaped to heads after the product."""


def _split(make: Callable[[jax.Array], Any]) -> tuple[Callable[..., Any], Any]:
    """`forward(params, batch)`, and the shapes of the arrays of the model."""
    model = eqx.filter_eval_shape(make, jax.random.key(0))
    is_array = lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)
    params, static = eqx.partition(model, is_array)

    def forward(params: Any, batch: jax.Array) -> jax.Array:
        return jax.vmap(eqx.combine(params, static))(batch)

    return forward, params


def equinox_mlp() -> Model:
    """Equinox's own MLP."""
    forward, params = _split(
        lambda key: eqx.nn.MLP(
            INPUTS, CLASSES, WIDTH, depth=2, activation=jax.nn.silu, key=key
        )
    )
    golden = in_layers("layers", 2, {"weight": MATRIX, "bias": BIAS})
    golden |= below("layers/2", {"weight": READOUT, "bias": BIAS})
    inputs = (normal(BATCH, INPUTS),)
    return described(forward, params, inputs, golden, name="equinox_mlp")


class _Transformer(eqx.Module):
    """One post-norm block over the tokens of one text; the mean token is classified."""

    embedding: eqx.nn.Embedding
    attention: eqx.nn.MultiheadAttention
    norm1: eqx.nn.LayerNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    norm2: eqx.nn.LayerNorm
    classifier: eqx.nn.Linear

    def __init__(self, key: jax.Array):
        keys = jax.random.split(key, 5)
        self.embedding = eqx.nn.Embedding(VOCABULARY, WIDTH, key=keys[0])
        self.attention = eqx.nn.MultiheadAttention(HEADS, WIDTH, key=keys[1])
        self.norm1 = eqx.nn.LayerNorm(WIDTH)
        self.up = eqx.nn.Linear(WIDTH, 2 * WIDTH, key=keys[2])
        self.down = eqx.nn.Linear(2 * WIDTH, WIDTH, key=keys[3])
        self.norm2 = eqx.nn.LayerNorm(WIDTH)
        self.classifier = eqx.nn.Linear(WIDTH, CLASSES, key=keys[4])

    def __call__(self, text: jax.Array) -> jax.Array:
        x = jax.vmap(self.embedding)(text)
        x = jax.vmap(self.norm1)(x + self.attention(x, x, x))
        hidden = jax.nn.mish(jax.vmap(self.up)(x))
        x = jax.vmap(self.norm2)(x + jax.vmap(self.down)(hidden))
        return self.classifier(jnp.mean(x, axis=0))


def equinox_transformer() -> Model:
    """Mapped over texts, tokens and heads, with Equinox's own attention."""
    forward, params = _split(_Transformer)
    golden = {
        "embedding/weight": EMBEDDING,
        **{f"attention/{name}_proj/weight": TO_HEADS for name in _PROJECTED},
        "attention/output_proj/weight": MATRIX,
        **below("norm1", {"weight": GAIN, "bias": BIAS}),
        **below("up", {"weight": MATRIX, "bias": BIAS}),
        **below("down", {"weight": MATRIX, "bias": BIAS}),
        **below("norm2", {"weight": GAIN, "bias": BIAS}),
        **below("classifier", {"weight": READOUT, "bias": BIAS}),
    }
    inputs = (tokens(VOCABULARY, BATCH, LENGTH),)
    return described(forward, params, inputs, golden, name="equinox_transformer")


_PROJECTED = ("query", "key", "value")
