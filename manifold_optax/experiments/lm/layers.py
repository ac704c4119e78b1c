"""Layers of the transformer: rotary positions, attention, feed-forward."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

import manifold_optax as mo
from manifold_optax.experiments.lm.config import ModelConfig

Stream = Float[Array, "batch length width"]
Heads = Float[Array, "batch length heads size"]

# Base of the wavelengths of rotary positions (J. Su et al., arXiv:2104.09864, 3.2.2).
_ROTARY_BASE = 10_000.0

_experts_fan_in_normal = jax.nn.initializers.lecun_normal(batch_axis=0)


def rotate(vectors: Heads) -> Heads:
    """Rotates pairs of entries by angles that grow with the position.

    Entry `i` is paired with entry `i + size / 2`; a product of two rotated vectors
    depends on the difference of their positions alone.

    Args:
        vectors: Queries or keys, of even size.

    Returns:
        The rotated vectors.

    Source: J. Su et al., "RoFormer" (arXiv:2104.09864), equation 34.
    """
    _, length, _, size = vectors.shape
    frequencies = _ROTARY_BASE ** (-jnp.arange(0, size, 2) / size)
    angles = jnp.outer(jnp.arange(length), frequencies)[None, :, None, :]
    cosine, sine = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(vectors, 2, axis=-1)
    return jnp.concatenate(
        [first * cosine - second * sine, second * cosine + first * sine], axis=-1
    )


def _attend(
    module: nnx.Module,
    query: Heads,
    key: Float[Array, "batch length key_heads size"],
    value: Float[Array, "batch length key_heads value_size"],
) -> Float[Array, "batch length heads value_size"]:
    """Causal attention; leaves the largest logit of each head at the module."""
    output, max_logits = mo.attention.dot_product_attention(
        query, key, value, is_causal=True
    )
    module.sow(
        nnx.Intermediate,
        "max_logits",
        max_logits,
        init_fn=lambda: jnp.full(max_logits.shape, -jnp.inf, max_logits.dtype),
        reduce_fn=jnp.maximum,
    )
    return output


class GroupedQueryAttention(nnx.Module):
    """Causal attention with rotary positions, in which heads may share keys and values.

    Kernels are `[width, heads, size]` and, for the output, `[heads, size, width]`.
    """

    def __init__(self, config: ModelConfig, *, key_heads: int, rngs: nnx.Rngs):
        project = functools.partial(
            nnx.LinearGeneral, config.width, use_bias=False, rngs=rngs
        )
        self.query = project((config.heads, config.head_size))
        self.key = project((key_heads, config.head_size))
        self.value = project((key_heads, config.head_size))
        self.output = _join_heads(config, rngs)

    def __call__(self, inputs: Stream) -> Stream:
        """Returns what the layer adds to the residual stream."""
        query, key = rotate(self.query(inputs)), rotate(self.key(inputs))
        return self.output(_attend(self, query, key, self.value(inputs)))


class LatentAttention(nnx.Module):
    """Causal attention whose keys and values come from a small latent.

    Positions have entries of their own: `rope_size` of each query, and one rotary key
    that all heads share. The kernel `key_value_up` is `[latent, heads, key + value]`.

    Source: DeepSeek-AI, "DeepSeek-V2" (arXiv:2405.04434), section 2.1.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        project = functools.partial(nnx.LinearGeneral, use_bias=False, rngs=rngs)
        self.sizes = (config.head_size, config.latent)
        size = config.head_size + config.rope_size
        self.query = project(config.width, (config.heads, size))
        self.key_value_down = project(config.width, config.latent + config.rope_size)
        self.latent_norm = nnx.RMSNorm(config.latent, rngs=rngs)
        self.key_value_up = project(config.latent, (config.heads, 2 * config.head_size))
        self.output = _join_heads(config, rngs)

    def __call__(self, inputs: Stream) -> Stream:
        """Returns what the layer adds to the residual stream."""
        head_size, latent_size = self.sizes
        query, rotary_query = jnp.split(self.query(inputs), [head_size], axis=-1)
        latent, rotary_key = jnp.split(
            self.key_value_down(inputs), [latent_size], axis=-1
        )
        key, value = jnp.split(
            self.key_value_up(self.latent_norm(latent)), [head_size], axis=-1
        )
        shared = rotate(rotary_key[:, :, None, :])
        shared = jnp.broadcast_to(shared, (*key.shape[:-1], shared.shape[-1]))
        query = jnp.concatenate([query, rotate(rotary_query)], axis=-1)
        key = jnp.concatenate([key, shared], axis=-1)
        return self.output(_attend(self, query, key, value))


class FeedForward(nnx.Module):
    """Two linear maps with GELU between them, or with SiLU and a gate."""

    def __init__(self, config: ModelConfig, *, gated: bool, rngs: nnx.Rngs):
        project = functools.partial(nnx.Linear, use_bias=False, rngs=rngs)
        self.up = project(config.width, config.hidden)
        self.gate = project(config.width, config.hidden) if gated else None
        self.down = project(config.hidden, config.width)

    def __call__(self, inputs: Stream) -> Stream:
        """Returns what the layer adds to the residual stream."""
        if self.gate is None:
            return self.down(nnx.gelu(self.up(inputs)))
        return self.down(nnx.silu(self.gate(inputs)) * self.up(inputs))


class MixtureOfExperts(nnx.Module):
    """Gated experts, of which each token goes to the few with the highest scores.

    The bias of the router takes part in the choice alone, not in the weights of the
    chosen, and has no gradient; `mo.balance_router_bias` moves it by the load that is
    left at the module as `expert_load`. Every expert computes every token, which is
    exact and simple, and costs `experts / chosen_experts` times what it must.

    Source: L. Wang et al., "Auxiliary-loss-free load balancing" (arXiv:2408.15664).
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        experts, width, hidden = config.experts, config.width, config.hidden
        self.chosen = config.chosen_experts
        self.router = nnx.Linear(width, experts, use_bias=False, rngs=rngs)
        self.router_bias = nnx.Param(jnp.zeros(experts))

        def kernels(fan_in: int, fan_out: int) -> nnx.Param:
            shape = (experts, fan_in, fan_out)
            return nnx.Param(_experts_fan_in_normal(rngs.params(), shape))

        self.gate_kernel = kernels(width, hidden)
        self.up_kernel = kernels(width, hidden)
        self.down_kernel = kernels(hidden, width)

    def __call__(self, inputs: Stream) -> Stream:
        """Returns what the layer adds to the residual stream."""
        weights = self._route(inputs)
        gate = jnp.einsum("btw,ewh->bteh", inputs, self.gate_kernel[...])
        up = jnp.einsum("btw,ewh->bteh", inputs, self.up_kernel[...])
        hidden = nnx.silu(gate) * up * weights[..., None]
        return jnp.einsum("bteh,ehw->btw", hidden, self.down_kernel[...])

    def _route(self, inputs: Stream) -> Float[Array, "batch length experts"]:
        """Weights of the experts of each token: they sum to 1 over the chosen."""
        scores = nnx.sigmoid(self.router(inputs))
        bias = jax.lax.stop_gradient(self.router_bias[...])
        _, chosen = jax.lax.top_k(scores + bias[None, None, :], self.chosen)
        mask = jax.nn.one_hot(chosen, scores.shape[-1]).sum(-2)
        self.sow(
            nnx.Intermediate,
            "expert_load",
            mask.sum((0, 1)),
            init_fn=lambda: jnp.zeros(scores.shape[-1]),
            reduce_fn=jnp.add,
        )
        kept = scores * mask
        return kept / kept.sum(-1, keepdims=True)


def _join_heads(config: ModelConfig, rngs: nnx.Rngs) -> nnx.LinearGeneral:
    return nnx.LinearGeneral(
        (config.heads, config.head_size),
        config.width,
        axis=(-2, -1),
        use_bias=False,
        rngs=rngs,
    )
