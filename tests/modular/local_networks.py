"""Small networks for bounds around a point, and a search for their steepest places."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Case:
    """A network with its parameters and one input, `[1, ...]`."""

    function: Callable[[Any, Any], Any]
    params: Any
    x: Any


def _matrix(rng: np.random.Generator, inputs: int, outputs: int) -> jax.Array:
    """Independent entries of variance 1 / inputs."""
    return jnp.asarray(rng.normal(size=(inputs, outputs)) / inputs**0.5, jnp.float32)


def mlp(
    widths: Sequence[int], seed: int = 0, activation: Any = jax.nn.relu, *,
    orthogonal: bool = False, residual: bool = False,
) -> Case:  # fmt: skip
    """Dense layers with small random biases."""
    rng = np.random.default_rng(seed)
    params = []
    for inputs, outputs in itertools.pairwise(widths):
        weight = _matrix(rng, inputs, outputs)
        if orthogonal:
            weight = jnp.asarray(np.linalg.qr(weight)[0])
        params.append(
            (weight, jnp.asarray(0.1 * rng.normal(size=outputs), jnp.float32))
        )

    def function(params: Any, x: Any) -> Any:
        for weight, bias in params[:-1]:
            y = activation(x @ weight + bias[None])
            x = x + y if residual and x.shape == y.shape else y
        weight, bias = params[-1]
        return x @ weight + bias[None]

    x = rng.normal(size=(1, widths[0]))
    return Case(function, params, jnp.asarray(x, jnp.float32))


def convolutional(seed: int = 0, size: int = 12, channels: int = 8) -> Case:
    """Two convolutions, the second with stride 2, a pool of maxima, one dense layer."""
    rng = np.random.default_rng(seed)
    kernels = [
        jnp.asarray(rng.normal(size=(3, 3, i, o)) / (9 * i) ** 0.5, jnp.float32)
        for i, o in ((3, channels), (channels, channels))
    ]
    flat = (size // 4) ** 2 * channels
    params = {"kernels": kernels, "head": _matrix(rng, flat, 10)}

    def function(params: Any, x: Any) -> Any:
        numbers = ("NHWC", "HWIO", "NHWC")
        for stride, kernel in zip((1, 2), params["kernels"], strict=True):
            x = jax.lax.conv_general_dilated(
                x, kernel, (stride, stride), "SAME", dimension_numbers=numbers
            )
            x = jax.nn.relu(x)
        window = (1, 2, 2, 1)
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")
        return x.reshape(len(x), -1) @ params["head"]

    x = rng.normal(size=(1, size, size, 3))
    return Case(function, params, jnp.asarray(x, jnp.float32))


def _layer_norm(x: Any) -> Any:
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x - mean).mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-5)


def transformer(
    blocks: int = 1,
    seed: int = 0,
    *,
    width: int = 32,
    heads: int = 4,
    tokens: int = 8,
    causal: bool = False,
) -> Case:
    """Pre-norm blocks: LayerNorm with ε = 1e-5, attention, GELU MLP of width 4 d."""
    rng = np.random.default_rng(seed)
    params = [
        {
            **{name: _matrix(rng, width, width) for name in "qkvo"},
            "up": _matrix(rng, width, 4 * width),
            "down": _matrix(rng, 4 * width, width),
        }
        for _ in range(blocks)
    ]

    def block(params: Any, x: Any) -> Any:
        y = _layer_norm(x)
        shape = (*x.shape[:2], heads, width // heads)
        q, k, v = ((y @ params[name]).reshape(shape) for name in "qkv")
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) / (width // heads) ** 0.5
        if causal:
            mask = jnp.tril(jnp.ones((1, 1, tokens, tokens), bool))
            mask = jnp.broadcast_to(mask, logits.shape)
            logits = jnp.where(mask, logits, -jnp.inf)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits), v)
        x = x + mixed.reshape(x.shape) @ params["o"]
        return x + jax.nn.gelu(_layer_norm(x) @ params["up"]) @ params["down"]

    def function(params: Any, x: Any) -> Any:
        for own in params:
            x = block(own, x)
        return x

    x = rng.normal(size=(1, tokens, width))
    return Case(function, params, jnp.asarray(x, jnp.float32))


def steepness(case: Case, x: Any) -> float:
    """The norm of the Jacobian at a point: to the last axis, the largest of others."""
    jacobian = np.asarray(jax.jacobian(lambda x: case.function(case.params, x)[0])(x))
    size = int(np.prod(x.shape))
    matrices = jacobian.reshape(-1, jacobian.shape[jacobian.ndim - x.ndim - 1], size)
    return float(np.max(np.linalg.norm(matrices.astype(np.float64), 2, (1, 2))))


def attacked(
    case: Case, radius: float, *, starts: int = 4, steps: int = 40, seed: int = 0
) -> float:
    """The largest norm of a Jacobian found in the ball, by gradient ascent.

    Two points climb the ratio of the changes of output and input, with normalised
    gradients; then the Jacobian is taken at each and between them.
    """
    function = jax.jit(lambda x: case.function(case.params, x))
    shape, size = case.x.shape, case.x.size

    def inside(u: jax.Array) -> jax.Array:
        norm = jnp.linalg.norm(u)
        return u / jnp.maximum(1.0, norm)

    def ratio(pair: jax.Array) -> jax.Array:
        points = [case.x + radius * u.reshape(shape) for u in pair]
        change = jnp.linalg.norm(function(points[0]) - function(points[1]), axis=-1)
        # Nearer points would measure rounding.
        apart = jnp.linalg.norm(pair[0] - pair[1]) + 1e-2
        return jnp.max(change) / (radius * apart)

    @jax.jit
    def climb(pair: jax.Array) -> jax.Array:
        def step(pair: jax.Array, rate: jax.Array) -> tuple[jax.Array, None]:
            slope = jax.grad(ratio)(pair)
            length = jnp.linalg.norm(slope, axis=1, keepdims=True)
            return jax.vmap(inside)(pair + rate * slope / (length + 1e-20)), None

        return jax.lax.scan(step, pair, jnp.geomspace(0.5, 0.02, steps))[0]

    best = steepness(case, case.x)
    for key in jax.random.split(jax.random.key(seed), starts):
        pair = jax.vmap(inside)(jax.random.normal(key, (2, size)) / size**0.5)
        one, other = climb(pair)
        for u in (one, other, (one + other) / 2):
            best = max(best, steepness(case, case.x + radius * u.reshape(shape)))
    return best
