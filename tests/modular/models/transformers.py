"""Transformers of Flax nnx: GPTs and a vision transformer."""

import jax
import jax.numpy as jnp
from flax import nnx

from manifold_optax.integrations.flax import module_list
from modular.models.model import (
    BATCH,
    below,
    BIAS,
    CONVOLUTION,
    described,
    EMBEDDING,
    FROM_HEADS,
    GAIN,
    Golden,
    heads_of,
    in_layers,
    MATRIX,
    Model,
    normal,
    PER_HEAD,
    READOUT,
    split_nnx,
    TIED,
    TOKEN,
    tokens,
)

WIDTH, HEADS, SIZE, LAYERS = 16, 4, 4, 2
VOCABULARY, LENGTH, CLASSES = 11, 6, 5

_NORM = {"scale": GAIN, "bias": BIAS}
_LINEAR = {"kernel": MATRIX, "bias": BIAS}
_MULTI_HEAD = {
    **{
        f"{name}/{leaf}": golden
        for name in ("query", "key", "value")
        for leaf, golden in {"kernel": PER_HEAD, "bias": BIAS}.items()
    },
    "out/kernel": FROM_HEADS,
    "out/bias": BIAS,
}


class _FusedBlock(nnx.Module):
    """Pre-norm; queries, keys and values come from one kernel `[width, 3 * width]`."""

    def __init__(self, rngs: nnx.Rngs):
        self.ln_1 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.qkv = nnx.Linear(WIDTH, 3 * WIDTH, rngs=rngs)
        self.out = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.ln_2 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        in_heads = lambda y: y.reshape(*y.shape[:-1], HEADS, SIZE)
        parts = jnp.split(self.qkv(self.ln_1(x)), 3, axis=-1)
        query, key, value = map(in_heads, parts)
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.reshape(x.shape))
        return x + self.down(jax.nn.gelu(self.up(self.ln_2(x))))


class _FusedGpt(nnx.Module):
    """Positions are looked up, and the embedding is the readout, too."""

    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.positions = nnx.Embed(LENGTH, WIDTH, rngs=rngs)
        self.blocks = module_list(_FusedBlock(rngs) for _ in range(LAYERS))
        self.ln_f = nnx.LayerNorm(WIDTH, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        places = jnp.arange(tokens.shape[1])[None]
        x = self.embed(tokens) + self.positions(places)
        for block in self.blocks:
            x = block(x)
        return self.embed.attend(self.ln_f(x))


def fused_gpt() -> Model:
    """The 3 · heads blocks of the fused kernel are those of queries, keys, values."""
    forward, params = split_nnx(_FusedGpt)
    block = {
        **below("ln_1", _NORM),
        **below("ln_2", _NORM),
        **below("qkv", {"kernel": heads_of(SIZE, 3 * HEADS), "bias": BIAS}),
        **{p: g for name in ("out", "up", "down") for p, g in _linear(name).items()},
    }
    golden = {
        "embed/embedding": TIED,
        "positions/embedding": EMBEDDING,
        **in_layers("blocks", LAYERS, block),
        **below("ln_f", _NORM),
    }
    inputs = (tokens(VOCABULARY, BATCH, LENGTH),)
    return described(forward, params, inputs, golden, name="fused_gpt")


class _MultiHeadBlock(nnx.Module):
    """Pre-norm; Flax's attention, whose kernels are `[width, heads, size]`."""

    def __init__(self, *, causal: bool, rngs: nnx.Rngs):
        self.causal = causal
        self.norm1 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.fc1 = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs)
        self.fc2 = nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        mask = nnx.make_causal_mask(x[..., 0]) if self.causal else None
        x = x + self.attention(self.norm1(x), mask=mask)
        return x + self.fc2(jax.nn.gelu(self.fc1(self.norm2(x))))


class _MultiHeadGpt(nnx.Module):
    """Positions are a plain parameter, of which the first are added."""

    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.positions = nnx.Param(0.02 * rngs.normal((2 * LENGTH, WIDTH)))
        self.blocks = module_list(
            _MultiHeadBlock(causal=True, rngs=rngs) for _ in range(LAYERS)
        )
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, VOCABULARY, use_bias=False, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed(tokens) + self.positions[...][None, : tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def _multi_head_block() -> dict[str, Golden]:
    return {
        **below("norm1", _NORM),
        **below("norm2", _NORM),
        **below("attention", _MULTI_HEAD),
        **_linear("fc1"),
        **_linear("fc2"),
    }


def multi_head_gpt() -> Model:
    forward, params = split_nnx(_MultiHeadGpt)
    golden = {
        "embed/embedding": EMBEDDING,
        "positions": BIAS,
        **in_layers("blocks", LAYERS, _multi_head_block()),
        **below("norm", _NORM),
        "head/kernel": READOUT,
    }
    inputs = (tokens(VOCABULARY, BATCH, LENGTH),)
    return described(forward, params, inputs, golden, name="multi_head_gpt")


class _VisionTransformer(nnx.Module):
    """Patches by a strided convolution, a class token, learned positions."""

    def __init__(self, rngs: nnx.Rngs):
        self.patch = nnx.Conv(3, WIDTH, (4, 4), strides=(4, 4), rngs=rngs)
        self.cls_token = nnx.Param(jnp.zeros((1, 1, WIDTH)))
        self.pos_embed = nnx.Param(0.02 * rngs.normal((1, 5, WIDTH)))
        self.blocks = module_list(
            _MultiHeadBlock(causal=False, rngs=rngs) for _ in range(LAYERS)
        )
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.patch(images).reshape(images.shape[0], -1, WIDTH)
        token = jnp.tile(self.cls_token[...], (x.shape[0], 1, 1))
        x = jnp.concatenate([token, x], axis=1) + self.pos_embed[...]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def vision_transformer() -> Model:
    """Positions that are added whole are a bias by use, whatever their name is."""
    forward, params = split_nnx(_VisionTransformer)
    golden = {
        "patch/kernel": CONVOLUTION,
        "patch/bias": BIAS,
        "cls_token": TOKEN,
        "pos_embed": BIAS,
        **in_layers("blocks", LAYERS, _multi_head_block()),
        **below("norm", _NORM),
        **below("head", {"kernel": READOUT, "bias": BIAS}),
    }
    images = normal(BATCH, 8, 8, 3)
    return described(forward, params, (images,), golden, name="vision_transformer")


class _EncoderDecoder(nnx.Module):
    """Cross-attention: queries from one input, keys and values from the other."""

    def __init__(self, rngs: nnx.Rngs):
        self.shared = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.encoder = _MultiHeadBlock(causal=False, rngs=rngs)
        self.cross = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.lm_head = nnx.Linear(WIDTH, VOCABULARY, use_bias=False, rngs=rngs)

    def __call__(self, source: jax.Array, target: jax.Array) -> jax.Array:
        memory = self.encoder(self.shared(source))
        x = self.shared(target)
        x = x + self.cross(self.norm(x), memory)
        return self.lm_head(x)


def encoder_decoder() -> Model:
    """The embedding is looked up twice, which is one use: it is not tied."""
    forward, params = split_nnx(_EncoderDecoder)
    golden = {
        "shared/embedding": EMBEDDING,
        **below("encoder", _multi_head_block()),
        **below("cross", _MULTI_HEAD),
        **below("norm", _NORM),
        "lm_head/kernel": READOUT,
    }
    inputs = (
        tokens(VOCABULARY, BATCH, LENGTH),
        tokens(VOCABULARY, BATCH, 4, seed=1),
    )
    return described(forward, params, inputs, golden, name="encoder_decoder")


def _linear(name: str) -> dict[str, Golden]:
    return below(name, _LINEAR)
