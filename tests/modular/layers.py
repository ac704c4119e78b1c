"""Layers of random networks, as users write them in plain JAX.

Each function draws one layer: its parameters inside the unit balls of their norms, the
axes of these parameters, and its function.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax import Array, lax, numpy as jnp
from optax.contrib import MuonDimensionNumbers

import manifold_optax as mo

Params = dict[str, Any]
Apply = Callable[[Params, Array], Array]
AxesByPath = dict[str, MuonDimensionNumbers | None]

# Queries, keys and values [embed, heads, head_dim]: each head is a matrix of its own.
EACH_HEAD = MuonDimensionNumbers(reduction_axis=-3, output_axis=-1)
# A convolution over one axis, [taps, in, out]: the map from a window to the channels.
CONV_1D = MuonDimensionNumbers(reduction_axis=(-3, -2), output_axis=-1)

TAPS = 3

ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu_tanh": jax.nn.gelu,
    "gelu_exact": lambda x: jax.nn.gelu(x, approximate=False),
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "softplus": jax.nn.softplus,
    "leaky_relu": jax.nn.leaky_relu,
}


@dataclasses.dataclass(frozen=True)
class Layer:
    """One drawn layer.

    Attributes:
        name: what was drawn.
        params: its parameters.
        axes: their axes, by path within the layer.
        apply: its function.
        slices: how many layers of a scan it stands for; the parameters then have a
            leading axis of this size.
    """

    name: str
    params: Params
    axes: AxesByPath
    apply: Apply
    slices: int | None = None


@dataclasses.dataclass(frozen=True)
class Draw:
    """What the layers of one network share.

    Attributes:
        rng: the source of all numbers.
        orthogonal: the probability that a matrix is a multiple of an orthogonal one.
        biases: whether layers have biases.
        bias_size: the largest entry of a bias.
        activations: the names from which layers draw.
    """

    rng: np.random.Generator
    orthogonal: float
    biases: bool
    bias_size: float
    activations: tuple[str, ...]

    def chance(self, probability: float = 0.5) -> bool:
        return bool(self.rng.random() < probability)

    def one_of(self, *options: Any) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def matrix(self, fan_in: int, fan_out: int) -> np.ndarray:
        """[in, out] of RMS-to-RMS norm 1 (orthogonal) or in [.5, 1]."""
        left, values, right = np.linalg.svd(
            self.rng.normal(size=(fan_in, fan_out)), full_matrices=False
        )
        if self.chance(self.orthogonal):
            values = np.ones_like(values)
        else:
            values = values / values[0] * self.rng.uniform(0.5, 1)
        return (left * values) @ right * math.sqrt(fan_out / fan_in)

    def bias(self, size: int) -> Params:
        if not self.biases:
            return {}
        entries = self.rng.uniform(-self.bias_size, self.bias_size, size)
        return {"bias": jnp.asarray(entries, jnp.float32)}

    def activation(self) -> tuple[str, Callable[[Array], Array]]:
        name = self.one_of(*self.activations)
        return name, ACTIVATIONS[name]


def dense(draw: Draw, fan_in: int, fan_out: int, *, active: bool) -> Layer:
    """x @ kernel + bias, with or without an activation after it."""
    kernel = jnp.asarray(draw.matrix(fan_in, fan_out), jnp.float32)
    params = {"kernel": kernel} | draw.bias(fan_out)
    name, activation = draw.activation() if active else ("linear", lambda x: x)

    def apply(params: Params, x: Array) -> Array:
        x = x @ params["kernel"]
        return activation(x + params["bias"] if "bias" in params else x)

    return Layer(f"{name} {fan_in}-{fan_out}", params, _axes(params), apply)


def feed_forward(draw: Draw, width: int) -> Layer:
    """Two dense layers with an activation between them."""
    hidden = draw.one_of(4, 8)
    up = dense(draw, width, hidden, active=True)
    down = dense(draw, hidden, width, active=False)
    params = {"up": up.params, "down": down.params}

    def apply(params: Params, x: Array) -> Array:
        return down.apply(params["down"], up.apply(params["up"], x))

    axes = {f"up/{path}": axes for path, axes in up.axes.items()}
    axes |= {f"down/{path}": axes for path, axes in down.axes.items()}
    return Layer(f"({up.name}, {down.name})", params, axes, apply)


def residual(inner: Layer, blocks: int | None) -> Layer:
    """x + f(x), or (1 - 1/2N) x + f(x)/2N with N blocks."""

    def apply(params: Params, x: Array) -> Array:
        if blocks is None:
            return x + inner.apply(params, x)
        part = 1 / (2 * blocks)
        return (1 - part) * x + part * inner.apply(params, x)

    name = f"[{inner.name}]" if blocks is None else f"[{inner.name}]/{2 * blocks}"
    return Layer(name, inner.params, inner.axes, apply)


def scanned(draw: Draw, layer: Layer, slices: int) -> Layer:
    """Layers of one kind one after the other, by `scan` over stacked parameters."""

    def stacked(leaf: Array) -> Array:
        signs = [draw.one_of(-1.0, 1.0) for _ in range(slices)]
        return jnp.stack([sign * leaf for sign in signs])

    def apply(params: Params, x: Array) -> Array:
        return lax.scan(lambda x, one: (layer.apply(one, x), None), x, params)[0]

    params = jax.tree.map(stacked, layer.params)
    return Layer(f"{slices} scanned {layer.name}", params, layer.axes, apply, slices)


def attention(draw: Draw, embed: int) -> Layer:
    """Attention over the second last axis, causal or not, of one to four heads."""
    heads, size = draw.one_of(1, 2, 4), draw.one_of(2, 4)
    causal = draw.chance()
    scale = draw.one_of(1 / math.sqrt(size), 1 / size)
    masked = draw.one_of(-np.inf, float(np.finfo(np.float32).min))
    params: Params = {}
    for name in ("query", "key", "value"):
        per_head = [draw.matrix(embed, size) for _ in range(heads)]
        params[name] = jnp.asarray(np.stack(per_head, axis=1), jnp.float32)
    out = draw.matrix(heads * size, embed).reshape(heads, size, embed)
    params["out"] = jnp.asarray(out, jnp.float32)

    def apply(params: Params, x: Array) -> Array:
        query = jnp.einsum("...te,ehd->...thd", x, params["query"])
        key = jnp.einsum("...te,ehd->...thd", x, params["key"])
        value = jnp.einsum("...te,ehd->...thd", x, params["value"])
        logits = scale * jnp.einsum("...qhd,...khd->...hqk", query, key)
        if causal:
            seen = jnp.tril(jnp.ones(logits.shape[-2:], bool))
            logits = jnp.where(seen, logits, masked)
        weights = jax.nn.softmax(logits)
        mixed = jnp.einsum("...hqk,...khd->...qhd", weights, value)
        return jnp.einsum("...qhd,hde->...qe", mixed, params["out"])

    name = f"{'causal' if causal else 'full'} attention {heads}x{size} *{scale:.6g}"
    return Layer(name, params, _axes(params), apply)


def convolution(
    draw: Draw, dims: int, channels: tuple[int, int], padding: str, stride: int
) -> Layer:
    """A convolution of three taps per axis over one or two axes, and an activation."""
    fan_in, fan_out = channels
    kernel = draw.matrix(TAPS**dims * fan_in, fan_out)
    kernel = jnp.asarray(kernel.reshape(*[TAPS] * dims, *channels), jnp.float32)
    params = {"kernel": kernel} | draw.bias(fan_out)
    name, activation = draw.activation()
    layout = ("NWC", "WIO", "NWC") if dims == 1 else ("NHWC", "HWIO", "NHWC")

    def apply(params: Params, x: Array) -> Array:
        x = lax.conv_general_dilated(
            x, params["kernel"], (stride,) * dims, padding, dimension_numbers=layout
        )
        return activation(x + params["bias"] if "bias" in params else x)

    name = f"{name} conv{dims}d {fan_in}-{fan_out} {padding}/{stride}"
    return Layer(name, params, _axes(params), apply)


def pooling(dims: int, kind: str) -> Layer:
    """The mean or the maximum over windows of two positions per axis."""
    window = (1, *[2] * dims, 1)

    def apply(params: Params, x: Array) -> Array:
        if kind == "max":
            return lax.reduce_window(x, -np.inf, lax.max, window, window, "VALID")
        return lax.reduce_window(x, 0.0, lax.add, window, window, "VALID") / 2**dims

    return Layer(f"{kind} pooling", {}, {}, apply)


def flatten(dims: int) -> Layer:
    return Layer("flatten", {}, {}, lambda _, x: x.reshape(*x.shape[: -1 - dims], -1))


def mean_over_positions(dims: int) -> Layer:
    axes = tuple(range(-1 - dims, -1))
    return Layer("mean", {}, {}, lambda _, x: jnp.mean(x, axis=axes))


def _axes(params: Params) -> AxesByPath:
    """The axes of a layer's own parameters, by their names and numbers of axes."""
    kernels = {2: mo.STACKED, 3: CONV_1D, 4: mo.CONV}
    named = {"query": EACH_HEAD, "key": EACH_HEAD, "value": EACH_HEAD}
    named |= {"out": mo.HEADS_OUT, "bias": None}
    return {
        name: named[name] if name in named else kernels[leaf.ndim]
        for name, leaf in params.items()
    }
