"""Loops: stacks of layers, recurrent networks, layers that are used several times."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen

import manifold_optax as mo
from modular.models.model import (
    as_users_trace,
    BATCH,
    below,
    BIAS,
    described,
    EMBEDDING,
    FROM_HEADS,
    fused,
    GAIN,
    Golden,
    MATRIX,
    Model,
    normal,
    PER_HEAD,
    READOUT,
    shapes,
    tokens,
)

LAYERS, WIDTH, HEADS, SIZE, HIDDEN = 3, 8, 2, 4, 12
VOCABULARY, LENGTH, CLASSES = 11, 6, 5


def _rms_norm(x: jax.Array, gain: jax.Array) -> jax.Array:
    return gain * x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)


def _block(layer: Any, x: jax.Array) -> jax.Array:
    """Pre-norm attention and feed-forward, of one layer of the stack."""
    y = _rms_norm(x, layer["norm1"])
    project = lambda kernel: jnp.einsum("btd,dhs->bths", y, kernel)
    query, key, value = (project(layer[name]) for name in ("q", "k", "v"))
    logits = jnp.einsum("bqhs,bkhs->bhqk", query, key) * SIZE**-0.5
    weights = jax.nn.softmax(logits, axis=-1)
    mixed = jnp.einsum("bhqk,bkhs->bqhs", weights, value)
    x = x + jnp.einsum("bqhs,hsd->bqd", mixed, layer["o"])
    hidden = jax.nn.gelu(_rms_norm(x, layer["norm2"]) @ layer["up"] + layer["up_bias"])
    return x + hidden @ layer["down"]


def scanned_layers() -> Model:
    """`scan` over stacked layers, each computed again in the backward pass."""

    def forward(params: Any, tokens: jax.Array) -> jax.Array:
        block = jax.checkpoint(_block)
        x = params["embed"][tokens]
        x, _ = jax.lax.scan(
            lambda x, layer: (block(layer, x), None), x, params["layers"]
        )
        return _rms_norm(x, params["norm"]) @ params["head"]

    layers = {
        **dict.fromkeys(("q", "k", "v"), (LAYERS, WIDTH, HEADS, SIZE)),
        "o": (LAYERS, HEADS, SIZE, WIDTH),
        "up": (LAYERS, WIDTH, HIDDEN),
        "up_bias": (LAYERS, HIDDEN),
        "down": (LAYERS, HIDDEN, WIDTH),
        "norm1": (LAYERS, WIDTH),
        "norm2": (LAYERS, WIDTH),
    }
    params = {
        "embed": (VOCABULARY, WIDTH),
        "layers": layers,
        "norm": (WIDTH,),
        "head": (WIDTH, VOCABULARY),
    }
    stack = {
        **dict.fromkeys(("q", "k", "v"), PER_HEAD),
        **{"o": FROM_HEADS, "up": MATRIX, "up_bias": BIAS, "down": MATRIX},
        **{"norm1": GAIN, "norm2": GAIN},
    }
    golden = {
        "embed": EMBEDDING,
        **below("layers", stack),
        "norm": GAIN,
        "head": READOUT,
    }
    inputs = (tokens(VOCABULARY, BATCH, LENGTH),)
    forward = as_users_trace(forward)
    return described(forward, shapes(params), inputs, golden, name="scanned_layers")


class _LinenLayer(linen.Module):
    """A residual layer as `linen.scan` wants it: carry in, carry and output out."""

    @linen.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        hidden = linen.swish(linen.Dense(HIDDEN, name="up")(x))
        return x + linen.Dense(WIDTH, name="down")(hidden), None


class _LinenStack(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        layers = linen.scan(
            linen.remat(_LinenLayer, prevent_cse=False),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=LAYERS,
        )
        x, _ = layers(name="layers")(x, None)
        return linen.Dense(CLASSES, name="head")(x)


def linen_scan() -> Model:
    model, x = _LinenStack(), normal(BATCH, WIDTH)
    params = jax.eval_shape(model.init, jax.random.key(0), x)["params"]

    def forward(params: Any, x: jax.Array) -> Any:
        return model.apply({"params": params}, x)

    golden = {
        **below("layers/up", {"kernel": MATRIX, "bias": BIAS}),
        **below("layers/down", {"kernel": MATRIX, "bias": BIAS}),
        **below("head", {"kernel": READOUT, "bias": BIAS}),
    }
    forward = as_users_trace(forward)
    return described(forward, params, (x,), golden, name="linen_scan")


def gated_recurrence() -> Model:
    """A GRU over time, whose three gates come from fused kernels.

    The loop runs over the inputs; the parameters are the same at every step.
    """

    def forward(params: Any, series: jax.Array) -> jax.Array:
        def step(state: jax.Array, x: jax.Array) -> tuple[jax.Array, None]:
            inputs = jnp.split(x @ params["w_x"] + params["bias"], 3, axis=-1)
            states = jnp.split(state @ params["w_h"], 3, axis=-1)
            reset = jax.nn.sigmoid(inputs[0] + states[0])
            update = jax.nn.sigmoid(inputs[1] + states[1])
            candidate = jnp.tanh(inputs[2] + reset * states[2])
            return (1 - update) * state + update * candidate, None

        start = jnp.zeros((series.shape[0], WIDTH))
        state, _ = jax.lax.scan(step, start, jnp.swapaxes(series, 0, 1))
        return state @ params["head"]

    params = {
        "w_x": (4, 3 * WIDTH),
        "w_h": (WIDTH, 3 * WIDTH),
        "bias": (3 * WIDTH,),
        "head": (WIDTH, CLASSES),
    }
    gates = fused((WIDTH,) * 3, use="gates")
    golden: dict[str, Golden] = {
        **{"w_x": gates, "w_h": gates, "bias": BIAS, "head": READOUT}
    }
    inputs = (normal(BATCH, LENGTH, 4),)
    forward = as_users_trace(forward)
    return described(forward, shapes(params), inputs, golden, name="gated_recurrence")


def plain_recurrence() -> Model:
    """A recurrent network with tanh, whose logits at every step are returned."""

    def forward(params: Any, tokens: jax.Array) -> jax.Array:
        def step(state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            state = jnp.tanh(x + state @ params["recurrent"] + params["bias"])
            return state, state @ params["head"]

        x = jnp.take(params["embed"], tokens.T, axis=0)
        start = jnp.zeros((tokens.shape[0], WIDTH))
        _, logits = jax.lax.scan(step, start, x)
        return jnp.swapaxes(logits, 0, 1)

    params = {
        "embed": (VOCABULARY, WIDTH),
        "recurrent": (WIDTH, WIDTH),
        "bias": (WIDTH,),
        "head": (WIDTH, VOCABULARY),
    }
    golden = {"embed": EMBEDDING, "recurrent": MATRIX, "bias": BIAS, "head": READOUT}
    inputs = (tokens(VOCABULARY, BATCH, LENGTH),)
    forward = as_users_trace(forward)
    return described(forward, shapes(params), inputs, golden, name="plain_recurrence")


def shared_layer() -> Model:
    """One residual layer, used three times: the same use, so it is not tied."""

    def forward(params: Any, x: jax.Array) -> jax.Array:
        x = x @ params["inputs"]
        for _ in range(3):
            x = x + 0.5 * jax.nn.relu(x @ params["up"]) @ params["down"]
        return x @ params["head"]

    params = {
        "inputs": (4, WIDTH),
        "up": (WIDTH, HIDDEN),
        "down": (HIDDEN, WIDTH),
        "head": (WIDTH, CLASSES),
    }
    used = Golden(mo.Role("matrix", mo.STACKED), "used again")
    golden = {"inputs": MATRIX, "up": used, "down": used, "head": READOUT}
    inputs = (normal(BATCH, 4),)
    forward = as_users_trace(forward)
    return described(forward, shapes(params), inputs, golden, name="shared_layer")
