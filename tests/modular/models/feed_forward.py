"""Feed-forward networks of Flax nnx and linen, and as plain functions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from manifold_optax.integrations.flax import module_list
from modular.models.model import (
    as_users_trace,
    BATCH,
    BIAS,
    described,
    GAIN,
    Golden,
    in_layers,
    MATRIX,
    Model,
    normal,
    READOUT,
    shapes,
    split_nnx,
)

INPUTS, WIDTH, CLASSES, RANK = 12, 16, 5, 2


class _Mlp(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        sizes = [(INPUTS, WIDTH), (WIDTH, WIDTH), (WIDTH, CLASSES)]
        self.layers = module_list(nnx.Linear(*size, rngs=rngs) for size in sizes)

    def __call__(self, x: jax.Array) -> jax.Array:
        *hidden, last = self.layers
        for layer in hidden:
            x = jax.nn.relu(layer(x))
        return last(x)


def mlp() -> Model:
    forward, params = split_nnx(_Mlp)
    golden = in_layers("layers", 2, {"kernel": MATRIX, "bias": BIAS})
    golden |= {"layers/2/kernel": READOUT, "layers/2/bias": BIAS}
    return described(forward, params, (normal(BATCH, INPUTS),), golden, name="mlp")


class _Regularised(linen.Module):
    """Layer normalisation behind the activation, and dropout."""

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(2):
            x = linen.LayerNorm()(linen.gelu(linen.Dense(WIDTH)(x)))
            x = linen.Dropout(0.1, deterministic=False)(x)
        return linen.Dense(CLASSES)(x)


def linen_dropout() -> Model:
    """The key of the dropout is an input."""
    model, x, key = _Regularised(), normal(BATCH, INPUTS), jax.random.key(0)
    params = jax.eval_shape(model.init, {"params": key, "dropout": key}, x)["params"]

    def forward(params: Any, x: jax.Array, key: jax.Array) -> Any:
        return model.apply({"params": params}, x, rngs={"dropout": key})

    golden: dict[str, Golden] = {}
    for k in range(2):
        golden |= {f"Dense_{k}/kernel": MATRIX, f"Dense_{k}/bias": BIAS}
        golden |= {f"LayerNorm_{k}/scale": GAIN, f"LayerNorm_{k}/bias": BIAS}
    golden |= {"Dense_2/kernel": READOUT, "Dense_2/bias": BIAS}
    forward = as_users_trace(forward)
    return described(forward, params, (x, key), golden, name="linen_dropout")


def weight_normalised() -> Model:
    """A plain function: `w = gain * direction / |direction|`, one length per output."""

    def dense(layer: Any, x: jax.Array) -> jax.Array:
        lengths = jnp.linalg.norm(layer["v"], axis=0, keepdims=True)
        return x @ (layer["g"] * layer["v"] / lengths) + layer["b"]

    def forward(params: Any, x: jax.Array) -> jax.Array:
        for layer in params["hidden"]:
            x = jnp.tanh(dense(layer, x))
        return dense(params["head"], x)

    def layer(fan_in: int, fan_out: int) -> dict[str, tuple[int, ...]]:
        return {"v": (fan_in, fan_out), "g": (fan_out,), "b": (fan_out,)}

    params = {
        "hidden": [layer(INPUTS, WIDTH), layer(WIDTH, WIDTH)],
        "head": layer(WIDTH, CLASSES),
    }
    golden = in_layers("hidden", 2, {"v": MATRIX, "g": GAIN, "b": BIAS})
    golden |= {"head/v": READOUT, "head/g": GAIN, "head/b": BIAS}
    inputs = (normal(BATCH, INPUTS),)
    return described(
        as_users_trace(forward),
        shapes(params),
        inputs,
        golden,
        name="weight_normalised",
    )


def _lora_params() -> Any:
    pair = lambda fan_in, fan_out: {"a": (fan_in, RANK), "b": (RANK, fan_out)}
    return shapes(
        {
            "adapters": [pair(INPUTS, WIDTH), pair(WIDTH, WIDTH)],
            "classifier": {"kernel": (WIDTH, CLASSES), "bias": (CLASSES,)},
        }
    )


_LORA = in_layers("adapters", 2, {"a": MATRIX, "b": MATRIX}) | {
    "classifier/kernel": READOUT,
    "classifier/bias": BIAS,
}


def _frozen() -> list[np.ndarray]:
    return [
        normal(INPUTS, WIDTH, seed=1) / INPUTS**0.5,
        normal(WIDTH, WIDTH, seed=2) / WIDTH**0.5,
    ]


def lora() -> Model:
    """Low-rank pairs beside frozen weights that are an input, and a new classifier."""

    def forward(params: Any, x: jax.Array, frozen: Any) -> jax.Array:
        for pair, weight in zip(params["adapters"], frozen, strict=True):
            x = jax.nn.relu(x @ weight + 2.0 * ((x @ pair["a"]) @ pair["b"]))
        return x @ params["classifier"]["kernel"] + params["classifier"]["bias"]

    inputs = (normal(BATCH, INPUTS), _frozen())
    return described(
        as_users_trace(forward), _lora_params(), inputs, _LORA, name="lora"
    )


def lora_merged() -> Model:
    """The same pairs, added to weights that are constants before the product."""
    frozen = _frozen()

    def forward(params: Any, x: jax.Array) -> jax.Array:
        for pair, weight in zip(params["adapters"], frozen, strict=True):
            x = jax.nn.relu(x @ (weight + 2.0 * pair["a"] @ pair["b"]))
        return x @ params["classifier"]["kernel"] + params["classifier"]["bias"]

    inputs = (normal(BATCH, INPUTS),)
    return described(
        as_users_trace(forward), _lora_params(), inputs, _LORA, name="lora_merged"
    )


def ensemble() -> Model:
    """Members side by side by `vmap` over the parameters; their logits are averaged."""
    members = 3

    def member(params: Any, x: jax.Array) -> jax.Array:
        x = jax.nn.elu(x @ params["w1"] + params["b1"])
        return x @ params["w2"] + params["b2"]

    def forward(params: Any, x: jax.Array) -> jax.Array:
        return jax.vmap(member, (0, None))(params, x).mean(0)

    params = {
        "w1": (members, INPUTS, WIDTH),
        "b1": (members, WIDTH),
        "w2": (members, WIDTH, CLASSES),
        "b2": (members, CLASSES),
    }
    golden = {"w1": MATRIX, "b1": BIAS, "w2": READOUT, "b2": BIAS}
    inputs = (normal(BATCH, INPUTS),)
    return described(
        as_users_trace(forward), shapes(params), inputs, golden, name="ensemble"
    )
