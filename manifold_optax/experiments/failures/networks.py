"""Tasks of small networks: their parameters, data, losses, and what is judged."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from manifold_optax.experiments.failures.problems import (
    COLUMNS,
    frame,
    Moment,
    ROWS,
    Tree,
)

HEADS = 2
_HEAD_SIZE = 8


def draw_classes(key: Key[Array, ""]) -> tuple[Tree, Tree]:
    """Draws 64 inputs of standard deviation 50, in 8 classes."""
    keys = jax.random.split(key, 3)
    inputs = 50 * jax.random.normal(keys[0], (64, ROWS))
    labels = jnp.argmax(inputs @ frame(keys[1]), axis=1)
    return {"w": frame(keys[2])}, {"inputs": inputs, "labels": labels}


def cross_entropy(params: Tree, data: Tree) -> Array:
    """Returns the mean cross-entropy, in nats."""
    logs = jax.nn.log_softmax(data["inputs"] @ params["w"])
    return -jnp.mean(jnp.take_along_axis(logs, data["labels"][:, None], 1))


def draw_neurons(key: Key[Array, ""]) -> tuple[Tree, Tree]:
    """Draws a perceptron whose units are silent, and the outputs of a live one."""
    keys = jax.random.split(key, 5)
    inputs = jax.random.normal(keys[0], (256, ROWS))
    signs = jax.random.rademacher(keys[1], (COLUMNS,)).astype(jnp.float32)
    outputs = jax.nn.relu(inputs @ frame(keys[2])) @ signs
    params = {
        "w": frame(keys[3], ROWS, 32),
        # Before the bias, the variance of a unit is 16/32.
        "bias": jnp.full(32, -2 * 0.5**0.5),
        "readout": jax.random.normal(keys[4], (32,)) / 32**0.5,
        "mean": jnp.zeros(1),
    }
    outputs = (outputs - outputs.mean()) / outputs.std()
    return params, {"inputs": inputs, "outputs": outputs}


def neurons_error(params: Tree, data: Tree) -> Array:
    """Returns the mean squared error, over the variance of the outputs."""
    units = jax.nn.relu(data["inputs"] @ params["w"] + params["bias"][None])
    found = units @ params["readout"] + params["mean"]
    return jnp.mean(jnp.square(found - data["outputs"]))


def _attend(params: Tree, inputs: Array) -> tuple[Array, Array]:
    """Returns the outputs of two heads, and the largest logit of each."""

    def heads(name: str) -> Array:
        return (inputs @ params[name]).reshape(*inputs.shape[:2], HEADS, _HEAD_SIZE)

    logits = jnp.einsum("bqhd,bkhd->bhqk", heads("query"), heads("key"))
    logits = logits / _HEAD_SIZE**0.5
    values = inputs.reshape(*inputs.shape[:2], HEADS, _HEAD_SIZE)
    outputs = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits), values)
    return outputs, logits.max(axis=(0, 2, 3))


def draw_attention(key: Key[Array, ""]) -> tuple[Tree, Tree]:
    """Draws attention with saturated logits, and the outputs of one with small ones."""
    keys = jax.random.split(key, 5)
    inputs = jax.random.normal(keys[0], (16, 8, ROWS))
    first, second, third, fourth = (frame(own, ROWS, ROWS) for own in keys[1:])
    params = {"query": 8 * first, "key": 8 * second}
    teacher = {"query": third, "key": fourth}
    outputs = _attend(teacher, inputs)[0]
    found = _attend(params, inputs)[0]
    start = jnp.mean(jnp.square(found - outputs))
    return params, {"inputs": inputs, "outputs": outputs, "start": start}


def attention_loss(params: Tree, data: Tree, now: Moment) -> tuple[Array, Tree]:
    """The mean squared error over that of the start, and the largest logits."""
    del now
    found, largest = _attend(params, data["inputs"])
    error = jnp.mean(jnp.square(found - data["outputs"])) / data["start"]
    return error, {"max_logits": {"": jax.lax.stop_gradient(largest)}}


def attention_error(params: Tree, data: Tree) -> Array:
    """Returns the mean squared error, over that of the start."""
    found, _ = _attend(params, data["inputs"])
    return jnp.mean(jnp.square(found - data["outputs"])) / data["start"]
