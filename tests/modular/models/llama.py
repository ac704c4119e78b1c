"""Llama-like and latent attention: rotary positions, shared keys, gated layers."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import manifold_optax as mo
from manifold_optax.experiments.lm.config import ModelConfig
from manifold_optax.experiments.lm.model import abstract_model, apply_model
from manifold_optax.integrations.flax import module_list
from modular.models.model import (
    as_users_trace,
    BATCH,
    BIAS,
    described,
    EMBEDDING,
    EXPERTS_IN,
    EXPERTS_OUT,
    FROM_HEADS,
    fused,
    GAIN,
    Golden,
    heads_of,
    in_layers,
    MATRIX,
    Model,
    PER_HEAD,
    READOUT,
    ROUTER,
    split_nnx,
    tokens,
)

WIDTH, HEADS, KEY_HEADS, SIZE, LAYERS = 16, 4, 2, 4, 2
VOCABULARY, LENGTH = 11, 6

_ONE_HEAD = optax.contrib.MuonDimensionNumbers(0, 2)
"""`[in, heads, head_dim]`, each head a matrix of its own."""


def _rotated(x: jax.Array) -> jax.Array:
    """Rotary positions as Llama's users write them: `x cos + rotate_half(x) sin`."""
    length, size = x.shape[1], x.shape[-1]
    frequencies = 10_000.0 ** (-jnp.arange(0, size, 2) / size)
    angles = jnp.outer(jnp.arange(length), frequencies)
    angles = jnp.concatenate([angles, angles], axis=-1)[None, :, None, :]
    half = jnp.concatenate([-x[..., size // 2 :], x[..., : size // 2]], axis=-1)
    return x * jnp.cos(angles) + half * jnp.sin(angles)


class _LlamaBlock(nnx.Module):
    """Two query heads share a key and a value; kernels have two axes."""

    def __init__(self, rngs: nnx.Rngs):
        linear = functools.partial(nnx.Linear, use_bias=False, rngs=rngs)
        self.input_norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.q_proj = linear(WIDTH, HEADS * SIZE)
        self.k_proj = linear(WIDTH, KEY_HEADS * SIZE)
        self.v_proj = linear(WIDTH, KEY_HEADS * SIZE)
        self.o_proj = linear(HEADS * SIZE, WIDTH)
        self.mlp_norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.gate_proj = linear(WIDTH, 2 * WIDTH)
        self.up_proj = linear(WIDTH, 2 * WIDTH)
        self.down_proj = linear(2 * WIDTH, WIDTH)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self._attention(self.input_norm(x))
        y = self.mlp_norm(x)
        return x + self.down_proj(jax.nn.silu(self.gate_proj(y)) * self.up_proj(y))

    def _attention(self, x: jax.Array) -> jax.Array:
        in_heads = lambda y: y.reshape(*y.shape[:2], -1, SIZE)
        query = _rotated(in_heads(self.q_proj(x)))
        key = _rotated(in_heads(self.k_proj(x)))
        key = jnp.repeat(key, HEADS // KEY_HEADS, axis=2)
        value = jnp.repeat(in_heads(self.v_proj(x)), HEADS // KEY_HEADS, axis=2)
        logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) / SIZE**0.5
        causal = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))[None, None]
        weights = jax.nn.softmax(jnp.where(causal, logits, -jnp.inf))
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        return self.o_proj(mixed.reshape(*x.shape[:2], HEADS * SIZE))


class _Llama(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.embed_tokens = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.layers = module_list(_LlamaBlock(rngs) for _ in range(LAYERS))
        self.norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.lm_head = nnx.Linear(WIDTH, VOCABULARY, use_bias=False, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))


def llama() -> Model:
    """The halves that rotary positions mix are one head, not two matrices."""
    forward, params = split_nnx(_Llama)
    matrices = ("o_proj", "gate_proj", "up_proj", "down_proj")
    block = {
        "input_norm/scale": GAIN,
        "q_proj/kernel": heads_of(SIZE, HEADS),
        "k_proj/kernel": heads_of(SIZE, KEY_HEADS),
        "v_proj/kernel": heads_of(SIZE, KEY_HEADS),
        "mlp_norm/scale": GAIN,
        **{f"{name}/kernel": MATRIX for name in matrices},
    }
    golden = {
        "embed_tokens/embedding": EMBEDDING,
        **in_layers("layers", LAYERS, block),
        "norm/scale": GAIN,
        "lm_head/kernel": READOUT,
    }
    inputs = (tokens(VOCABULARY, BATCH, LENGTH),)
    return described(forward, params, inputs, golden, name="llama")


def language_model(
    config: ModelConfig, block: dict[str, Golden], *, name: str, refuses: str | None
) -> Model:
    """The model of the experiment `lm`; its largest logits are side outputs."""
    graph, params = abstract_model(config, VOCABULARY)

    def forward(params: Any, tokens: jax.Array) -> Any:
        return apply_model(graph, params, jnp.asarray(tokens))

    golden = {
        "embed/embedding": EMBEDDING,
        **in_layers("blocks", config.layers, block),
        "head_norm/scale": GAIN,
        "head/kernel": READOUT,
    }
    return described(
        as_users_trace(forward),
        params,
        (tokens(VOCABULARY, BATCH, LENGTH),),
        golden,
        name=name,
        refuses=refuses,
    )


_NORMS = {"attention_norm/scale": GAIN, "feed_forward_norm/scale": GAIN}


def latent_attention() -> Model:
    """Multi-head latent attention with decoupled rotary positions.

    Keys and values are split from one product and used apart, as are the latent and
    the rotary key. The content of a query and its rotary part come from one product,
    too, but are joined again: two maps for whoever designed them, one by use.
    """
    config = ModelConfig(
        attention="mla",
        feed_forward="gated",
        layers=LAYERS,
        width=WIDTH,
        heads=HEADS,
        head_size=SIZE,
        latent=8,
        rope_size=2,
        hidden=24,
    )
    query = mo.Split((SIZE, 2), -1, _ONE_HEAD)
    block = {
        **_NORMS,
        "attention/query/kernel": Golden(
            mo.Role("matrix", query), "heads", mo.Role("matrix", _ONE_HEAD)
        ),
        "attention/key_value_down/kernel": fused((8, 2)),
        "attention/latent_norm/scale": GAIN,
        "attention/key_value_up/kernel": fused((SIZE, SIZE), _ONE_HEAD),
        "attention/output/kernel": FROM_HEADS,
        **{f"feed_forward/{n}/kernel": MATRIX for n in ("gate", "up", "down")},
    }
    return language_model(config, block, name="latent_attention", refuses=None)


def top_k_experts() -> Model:
    """Experts chosen by `top_k`, whose choice jumps: no reading bounds it."""
    config = ModelConfig(
        attention="gqa",
        feed_forward="moe",
        layers=1,
        width=WIDTH,
        heads=HEADS,
        key_heads=KEY_HEADS,
        head_size=SIZE,
        hidden=24,
        experts=4,
    )
    block = {
        **_NORMS,
        **{f"attention/{n}/kernel": PER_HEAD for n in ("query", "key", "value")},
        "attention/output/kernel": FROM_HEADS,
        "feed_forward/router/kernel": ROUTER,
        "feed_forward/router_bias": BIAS,
        "feed_forward/gate_kernel": EXPERTS_IN,
        "feed_forward/up_kernel": EXPERTS_IN,
        "feed_forward/down_kernel": EXPERTS_OUT,
    }
    return language_model(config, block, name="top_k_experts", refuses="top_k")
