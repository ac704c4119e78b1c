"""GPTs as plain functions: the well-normed one, and GPT-2."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modular.models.model import (
    as_users_trace,
    BATCH,
    below,
    BIAS,
    described,
    EMBEDDING,
    FROM_HEADS,
    GAIN,
    Golden,
    heads_of,
    in_layers,
    MATRIX,
    Model,
    PER_HEAD,
    READOUT,
    shapes,
    TIED,
    tokens,
)

GELU_SLOPE = 1.1289
"""Divisor of the GELU in the well-normed GPT (github.com/modula-systems/modula,
`modula/bond.py`); the largest slope of the tanh form is 1.12900."""


def _rotated(x: jax.Array) -> jax.Array:
    """Rotary positions: each pair `(i, i + size / 2)` turns by its own angle."""
    length, size = x.shape[1], x.shape[-1]
    frequencies = 1e4 ** (-np.arange(size // 2) / (size // 2))
    angles = np.outer(np.arange(length), frequencies)[None, :, None, :]
    cosine, sine = np.cos(angles, dtype=np.float32), np.sin(angles, dtype=np.float32)
    first, second = x[..., : size // 2], x[..., size // 2 :]
    return jnp.concatenate(
        [cosine * first + sine * second, cosine * second - sine * first], axis=-1
    )


def _causal(length: int) -> np.ndarray:
    """`[1, 1, query, key]`: which keys a query sees."""
    return np.tril(np.ones((length, length), bool))[None, None]


def _well_normed_attention(block: Any, x: jax.Array) -> jax.Array:
    """Logits are divided by `head_dim`, values by 3: sensitivity 1 at unit norms."""
    project = lambda name: jnp.einsum("btd,dhs->bths", x, block[name])
    query, key = _rotated(project("q")), _rotated(project("k"))
    logits = jnp.einsum("bqhs,bkhs->bhqk", query, key) / query.shape[-1]
    logits = jnp.where(_causal(x.shape[1]), logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1)
    mixed = jnp.einsum("bhqk,bkhs->bqhs", weights, project("v")) / 3
    return jnp.einsum("bqhs,hsd->bqd", mixed, block["o"])


def well_normed_gpt(blocks: int = 2) -> Model:
    """The GPT of the modular norm, with `blocks` blocks of two residual layers.

    No norm layers and no biases. Every residual layer is `(1 - 1/2N) x + f(x)/2N`, so
    that all sensitivities are 1 where the weights have norm 1: the embedding by rows,
    queries, keys and values head by head, all other matrices as a whole.

    Source: T. Large et al., "Scalable optimization in the modular norm"
    (arXiv:2405.14813); github.com/modula-systems/modula, `modula/compound.py`.
    """
    width, heads, size, vocabulary, length = 16, 4, 4, 11, 6
    share = 1 / (2 * blocks)

    def forward(params: Any, tokens: jax.Array) -> jax.Array:
        x = params["embed"][tokens]
        for block in params["blocks"]:
            attended = _well_normed_attention(block, x)
            x = (1 - share) * x + share * attended
            hidden = jax.nn.gelu(x @ block["up"]) / GELU_SLOPE
            x = (1 - share) * x + share * (hidden @ block["down"])
        return x @ params["head"]

    block = {
        **dict.fromkeys(("q", "k", "v"), (width, heads, size)),
        "o": (heads, size, width),
        "up": (width, 4 * width),
        "down": (4 * width, width),
    }
    params = {
        "embed": (vocabulary, width),
        "blocks": [block] * blocks,
        "head": (width, vocabulary),
    }
    of_block = {
        **dict.fromkeys(("q", "k", "v"), PER_HEAD),
        **{"o": FROM_HEADS, "up": MATRIX, "down": MATRIX},
    }
    golden = {
        "embed": EMBEDDING,
        **in_layers("blocks", blocks, of_block),
        "head": READOUT,
    }
    inputs = (tokens(vocabulary, BATCH, length),)
    forward = as_users_trace(forward)
    name = "well_normed_gpt"
    return described(forward, shapes(params), inputs, golden, name=name)


def _layer_norm(norm: Any, x: jax.Array) -> jax.Array:
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.var(x, axis=-1, keepdims=True)
    return norm["g"] * (x - mean) / jnp.sqrt(variance + 1e-5) + norm["b"]


def _gpt2_block(block: Any, x: jax.Array, size: int) -> jax.Array:
    """Pre-norm attention of fused heads, and a feed-forward layer with tanh-GELU."""
    linear = lambda layer, y: y @ layer["w"] + layer["b"]
    fused = linear(block["c_attn"], _layer_norm(block["ln_1"], x))
    in_heads = lambda y: y.reshape(*y.shape[:2], -1, size).swapaxes(1, 2)
    query, key, value = map(in_heads, jnp.split(fused, 3, axis=-1))
    logits = query @ key.swapaxes(-1, -2) / np.sqrt(size, dtype=np.float32)
    logits = jnp.where(_causal(x.shape[1]), logits, -1e10)
    mixed = jax.nn.softmax(logits, axis=-1) @ value
    x = x + linear(block["attn_proj"], mixed.swapaxes(1, 2).reshape(x.shape))
    hidden = jax.nn.gelu(linear(block["c_fc"], _layer_norm(block["ln_2"], x)))
    return x + linear(block["mlp_proj"], hidden)


def _gpt2_params(
    width: int, vocabulary: int, context: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Shapes of the model without its blocks, and of one block."""
    norm = lambda: {"g": (width,), "b": (width,)}
    linear = lambda fan_in, fan_out: {"w": (fan_in, fan_out), "b": (fan_out,)}
    block = {
        "ln_1": norm(),
        "c_attn": linear(width, 3 * width),
        "attn_proj": linear(width, width),
        "ln_2": norm(),
        "c_fc": linear(width, 4 * width),
        "mlp_proj": linear(4 * width, width),
    }
    rest = {"wte": (vocabulary, width), "wpe": (context, width), "ln_f": norm()}
    return rest, block


def _gpt2_golden(size: int, heads: int) -> dict[str, Golden]:
    linear = {"w": MATRIX, "b": BIAS}
    return {
        **below("ln_1", {"g": GAIN, "b": BIAS}),
        **below("c_attn", {"w": heads_of(size, 3 * heads), "b": BIAS}),
        **below("attn_proj", linear),
        **below("ln_2", {"g": GAIN, "b": BIAS}),
        **below("c_fc", linear),
        **below("mlp_proj", linear),
    }


def gpt2(
    layers: int = 12, *, heads: int = 12, scanned: bool = False, length: int = 1024
) -> Model:
    """GPT-2 small, of shapes alone: unrolled, or as a `scan` over stacked layers.

    Heads have size 64. The embedding is tied, and positions are a slice of theirs.

    Source: A. Radford et al., "Language models are unsupervised multitask learners"
    (2019): 12 layers of width 768, 50,257 tokens, 1,024 positions.
    """
    size, vocabulary, context = 64, 50_257, 1024
    rest, block = _gpt2_params(size * heads, vocabulary, context)

    def forward(params: Any, tokens: jax.Array) -> jax.Array:
        x = params["wte"][tokens] + params["wpe"][: tokens.shape[1]]
        if scanned:
            body = lambda x, block: (_gpt2_block(block, x, size), None)
            x, _ = jax.lax.scan(body, x, params["h"])
        else:
            for block in params["h"]:
                x = _gpt2_block(block, x, size)
        return _layer_norm(params["ln_f"], x) @ params["wte"].T

    stacked = jax.tree.map(
        lambda shape: (layers, *shape), block, is_leaf=lambda x: isinstance(x, tuple)
    )
    params = {**rest, "h": stacked if scanned else [block] * layers}
    of_block = _gpt2_golden(size, heads)
    golden = {
        "wte": TIED,
        "wpe": BIAS,
        **(below("h", of_block) if scanned else in_layers("h", layers, of_block)),
        **below("ln_f", {"g": GAIN, "b": BIAS}),
    }
    inputs = (jax.ShapeDtypeStruct((1, length), np.int32),)
    name = f"gpt2_{'scanned' if scanned else 'unrolled'}"
    forward = as_users_trace(forward)
    return described(forward, shapes(params), inputs, golden, name=name)
