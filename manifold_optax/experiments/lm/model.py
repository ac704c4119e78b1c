"""The decoder-only transformer, and what it leaves behind for the optimizers."""

from typing import Any, NamedTuple

import jax
import optax
from flax import nnx
from jaxtyping import Array, Float, Float32, Int32

from manifold_optax.experiments.lm.config import ModelConfig
from manifold_optax.experiments.lm.layers import (
    FeedForward,
    GroupedQueryAttention,
    LatentAttention,
    MixtureOfExperts,
    Stream,
)
from manifold_optax.integrations.flax import gather, module_list

Sequences = Int32[Array, "batch length"]
Logits = Float[Array, "batch length vocabulary"]


class Statistics(NamedTuple):
    """What the layers leave behind, by their paths.

    Attributes:
        max_logits: Largest attention logit of each head.
        expert_load: Tokens per expert; empty without experts.
    """

    max_logits: dict[str, Float32[Array, " heads"]]
    expert_load: dict[str, Float32[Array, " experts"]]


class Block(nnx.Module):
    """Attention and feed-forward, each behind a norm and added to its input."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.attention_norm = nnx.RMSNorm(config.width, rngs=rngs)
        self.attention = _attention(config, rngs)
        self.feed_forward_norm = nnx.RMSNorm(config.width, rngs=rngs)
        self.feed_forward = _feed_forward(config, rngs)

    def __call__(self, stream: Stream) -> Stream:
        """Returns the residual stream behind the block."""
        stream = stream + self.attention(self.attention_norm(stream))
        return stream + self.feed_forward(self.feed_forward_norm(stream))


class Transformer(nnx.Module):
    """A causal language model; its head is not tied to its embedding.

    Args:
        config: Sizes and kinds of layers.
        vocabulary: Number of characters.
        rngs: Source of the initial weights.
    """

    def __init__(self, config: ModelConfig, vocabulary: int, *, rngs: nnx.Rngs):
        self.embed = nnx.Embed(vocabulary, config.width, rngs=rngs)
        self.blocks = module_list(
            Block(config, rngs=rngs) for _ in range(config.layers)
        )
        self.head_norm = nnx.RMSNorm(config.width, rngs=rngs)
        self.head = nnx.Linear(config.width, vocabulary, use_bias=False, rngs=rngs)

    def __call__(self, tokens: Sequences) -> Logits:
        """Returns the logits of the character after each."""
        stream = self.embed(tokens)
        for block in self.blocks:
            stream = block(stream)
        return self.head(self.head_norm(stream))


def abstract_model(
    config: ModelConfig, vocabulary: int
) -> tuple[nnx.GraphDef[Transformer], Any]:
    """Returns the structure of a model and the shapes of its parameters."""
    model = nnx.eval_shape(lambda: Transformer(config, vocabulary, rngs=nnx.Rngs(0)))
    return nnx.graphdef(model), nnx.to_pure_dict(nnx.state(model))


def initial_params(config: ModelConfig, vocabulary: int, *, seed: int) -> Any:
    """Draws the parameters of a model."""
    model = Transformer(config, vocabulary, rngs=nnx.Rngs(seed))
    return nnx.to_pure_dict(nnx.state(model))


def apply_model(
    graph: nnx.GraphDef[Transformer], params: Any, tokens: Sequences
) -> tuple[Logits, Statistics]:
    """Applies a model.

    Args:
        graph: Its structure.
        params: Its parameters.
        tokens: Sequences of characters.

    Returns:
        The logits of the character after each, and what the layers left behind.
    """
    model = nnx.merge(graph, params)
    logits, left = _call_and_capture(model, tokens)
    has_experts = any("expert_load" in path for path, _ in nnx.to_flat_state(left))
    return logits, Statistics(
        max_logits=gather(left),
        expert_load=gather(left, "expert_load", reduce="sum") if has_experts else {},
    )


def next_character_loss(
    graph: nnx.GraphDef[Transformer], params: Any, tokens: Sequences
) -> tuple[Float32[Array, ""], Statistics]:
    """Returns the mean loss of all predictions, in nats, and the statistics."""
    logits, statistics = apply_model(graph, params, tokens[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    return losses.mean(), jax.lax.stop_gradient(statistics)


def _call_and_capture(model: Transformer, tokens: Sequences) -> tuple[Logits, Any]:
    """The logits, and the `nnx.State` of what the layers left behind."""
    if hasattr(nnx, "capture"):
        return nnx.capture(model, nnx.Intermediate)(tokens)
    # Flax up to 0.12.0 lacks it and leaves what is sown in the model.
    return model(tokens), nnx.pop(model, nnx.Intermediate)


def _attention(config: ModelConfig, rngs: nnx.Rngs) -> nnx.Module:
    match config.attention:
        case "mha":
            return GroupedQueryAttention(config, key_heads=config.heads, rngs=rngs)
        case "gqa":
            return GroupedQueryAttention(config, key_heads=config.key_heads, rngs=rngs)
        case "mla":
            return LatentAttention(config, rngs=rngs)


def _feed_forward(config: ModelConfig, rngs: nnx.Rngs) -> nnx.Module:
    if config.feed_forward == "moe":
        return MixtureOfExperts(config, rngs=rngs)
    return FeedForward(config, gated=config.feed_forward == "gated", rngs=rngs)
