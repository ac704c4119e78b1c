"""A Gemma-like model: head axes come first, and soft caps bound the logits."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import manifold_optax as mo
from modular.models.model import (
    as_users_trace,
    BATCH,
    described,
    FROM_HEADS,
    GAIN,
    Golden,
    in_layers,
    Model,
    shapes,
    TIED,
    tokens,
)

WIDTH, HEADS, KEY_HEADS, SIZE, HIDDEN = 16, 4, 2, 4, 24
LAYERS, VOCABULARY, LENGTH = 2, 11, 6

_HEADS_FIRST = Golden(mo.Role("matrix", mo.STACKED), "heads")
"""`[heads, in, head_dim]`, or `[2, heads, in, head_dim]` for keys and values."""

_PAIR = Golden(mo.Role("matrix", mo.STACKED), "fused")
"""`[2, in, hidden]`: gate and value of the feed-forward layer."""


def _rms_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    """The gain is `1 + scale`, so that it is 1 where the parameter is 0."""
    variance = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(variance + 1e-6) * (1 + scale)


def _soft_cap(x: jax.Array, cap: float) -> jax.Array:
    return cap * jnp.tanh(x / cap)


def _attention(layer: Any, x: jax.Array) -> jax.Array:
    """Normalised queries and keys; groups of query heads share a key and a value."""
    query = jnp.einsum("btd,ndh->btnh", x, layer["q_einsum"])
    key, value = jnp.einsum("bsd,ckdh->cbskh", x, layer["kv_einsum"])
    query = _rms_norm(query, layer["query_norm"]) * SIZE**-0.5
    key = _rms_norm(key, layer["key_norm"])
    batch, length = x.shape[:2]
    query = query.reshape(batch, length, KEY_HEADS, HEADS // KEY_HEADS, SIZE)
    logits = _soft_cap(jnp.einsum("btkgh,bskh->bkgts", query, key), 50.0)
    causal = np.tril(np.ones((length, length), bool))
    weights = jax.nn.softmax(jnp.where(causal, logits, -2.4e38), axis=-1)
    mixed = jnp.einsum("bkgts,bskh->btkgh", weights, value)
    mixed = mixed.reshape(batch, length, HEADS, SIZE)
    return jnp.einsum("btnh,nhd->btd", mixed, layer["attn_vec_einsum"])


def _feed_forward(layer: Any, x: jax.Array) -> jax.Array:
    gate, value = jnp.einsum("btd,cdf->cbtf", x, layer["gating_einsum"])
    return (jax.nn.gelu(gate) * value) @ layer["linear"]


def gemma() -> Model:
    """Tied embedding, scaled by √width; norms before and after each layer."""

    def forward(params: Any, tokens: jax.Array) -> jax.Array:
        x = params["embedder"][tokens] * WIDTH**0.5
        for layer in params["layers"]:
            y = _attention(layer, _rms_norm(x, layer["pre_attention_norm"]))
            x = x + _rms_norm(y, layer["post_attention_norm"])
            y = _feed_forward(layer, _rms_norm(x, layer["pre_ffw_norm"]))
            x = x + _rms_norm(y, layer["post_ffw_norm"])
        return _soft_cap(
            _rms_norm(x, params["final_norm"]) @ params["embedder"].T, 30.0
        )

    wide_norms = ("pre_attention_norm", "post_attention_norm")
    wide_norms += ("pre_ffw_norm", "post_ffw_norm")
    head_norms = ("query_norm", "key_norm")
    layer = {
        "q_einsum": (HEADS, WIDTH, SIZE),
        "kv_einsum": (2, KEY_HEADS, WIDTH, SIZE),
        "attn_vec_einsum": (HEADS, SIZE, WIDTH),
        "gating_einsum": (2, WIDTH, HIDDEN),
        "linear": (HIDDEN, WIDTH),
        **dict.fromkeys(wide_norms, (WIDTH,)),
        **dict.fromkeys(head_norms, (SIZE,)),
    }
    of_layer = {
        "q_einsum": _HEADS_FIRST,
        "kv_einsum": _HEADS_FIRST,
        "attn_vec_einsum": FROM_HEADS,
        "gating_einsum": _PAIR,
        "linear": Golden(mo.Role("matrix", mo.STACKED)),
        **dict.fromkeys((*wide_norms, *head_norms), GAIN),
    }
    params = {
        "embedder": (VOCABULARY, WIDTH),
        "layers": [layer] * LAYERS,
        "final_norm": (WIDTH,),
    }
    golden = {
        "embedder": TIED,
        **in_layers("layers", LAYERS, of_layer),
        "final_norm": GAIN,
    }
    inputs = (tokens(VOCABULARY, BATCH, LENGTH),)
    forward = as_users_trace(forward)
    return described(forward, shapes(params), inputs, golden, name="gemma")
