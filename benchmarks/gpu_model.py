"""A language model in plain JAX, whose training step the optimizers are a share of.

Pre-norm decoder with GELU and tied embeddings, as GPT-2, without biases and dropout:
no optimizer's cost depends on these. Weights are float32, products are in bfloat16.
Layers are stacked along the first axis and run by `jax.lax.scan`, so that a program
does not grow with their number.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

Attention = Literal["xla", "cudnn"]


@dataclasses.dataclass(frozen=True)
class Transformer:
    """Sizes of a model and of the batch that it is trained on."""

    name: str
    layers: int
    width: int
    heads: int
    vocabulary: int
    batch: int
    """Sequences of a step."""
    context: int
    """Tokens of a sequence."""
    remat: bool = False
    """Whether the backward pass computes each layer again instead of keeping it."""

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.batch * self.context

    @property
    def shapes(self) -> dict[str, Any]:
        """Shapes of the parameters, named as in `trees.transformer_tree`."""
        depth, width = self.layers, self.width
        square, scale = (depth, width, width), (depth, width)
        return {
            "embedding": (self.vocabulary, width),
            "positions": (self.context, width),
            "layers": {
                **dict.fromkeys(("wq", "wk", "wv", "wo"), square),
                "w_up": (depth, width, 4 * width),
                "w_down": (depth, 4 * width, width),
                "scale_attention": scale,
                "scale_mlp": scale,
            },
            "scale": (width,),
        }

    @property
    def model_flops(self) -> float:
        """FLOPs of forward and backward, without what `remat` repeats.

        6 per weight of a product and token, and 12·layers·width·context per token for
        attention (A. Chowdhery et al., PaLM, 2022, appendix B). The embedding counts
        once: it is the readout.
        """
        weights = 12 * self.layers * self.width**2 + self.vocabulary * self.width
        attention = 12 * self.layers * self.width * self.context
        return float(self.tokens * (6 * weights + attention))

    def init(self) -> Any:
        """Parameters in float32: scales of 1, others of deviation 0.02 as in GPT-2."""
        is_shape = lambda x: isinstance(x, tuple)
        shapes, form = jax.tree.flatten_with_path(self.shapes, is_leaf=is_shape)
        keys = jax.random.split(jax.random.key(0), len(shapes))
        leaves = [
            jnp.ones(shape)
            if "scale" in jax.tree_util.keystr(path)
            else 0.02 * jax.random.normal(key, shape)
            for (path, shape), key in zip(shapes, keys, strict=True)
        ]
        return jax.tree.unflatten(form, leaves)

    def data(self) -> jax.Array:
        """Random tokens, one more than the context: the last is predicted only."""
        shape = (self.batch, self.context + 1)
        return jax.random.randint(jax.random.key(1), shape, 0, self.vocabulary)

    def loss(self, params: Any, tokens: jax.Array, attention: Attention) -> jax.Array:
        """Mean cross entropy of the next token."""
        half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
        x = half["embedding"][tokens[:, :-1]] + half["positions"]
        layer = functools.partial(_layer, self.heads, attention)
        layer = jax.checkpoint(layer) if self.remat else layer
        x, _ = jax.lax.scan(lambda x, w: (layer(x, w), None), x, half["layers"])
        x = _normalized(x) * half["scale"]
        logits = jnp.einsum("btd,vd->btv", x, half["embedding"])
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits.astype(jnp.float32), tokens[:, 1:]
        )
        return losses.mean()


def _layer(heads: int, attention: Attention, x: Any, weights: Any) -> Any:
    batch, length, width = x.shape
    split = (batch, length, heads, width // heads)
    y = _normalized(x) * weights["scale_attention"]
    query, key, value = ((y @ weights[k]).reshape(split) for k in ("wq", "wk", "wv"))
    mixed = jax.nn.dot_product_attention(
        query, key, value, is_causal=True, implementation=attention
    )
    x = x + mixed.reshape(x.shape) @ weights["wo"]
    y = _normalized(x) * weights["scale_mlp"]
    return x + jax.nn.gelu(y @ weights["w_up"]) @ weights["w_down"]


def _normalized(x: Any) -> Any:
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(wide**2, axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(mean_square + 1e-5)).astype(x.dtype)


def fastest_attention() -> Attention:
    """`"cudnn"` where a small step compiles with it, else `"xla"`.

    An optimizer's share would look smaller beside a slow attention.
    """
    if jax.default_backend() != "gpu":
        return "xla"
    small = Transformer("probe", 1, 128, 2, 256, batch=2, context=128)
    step = jax.jit(jax.grad(small.loss), static_argnums=2)
    try:
        jax.block_until_ready(step(small.init(), small.data(), "cudnn"))
    except (RuntimeError, ValueError, NotImplementedError) as error:
        print(f"cuDNN's attention does not run here: {str(error).splitlines()[0]}")
        return "xla"
    return "cudnn"
