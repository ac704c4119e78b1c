"""Small random networks whose parameters lie in the unit balls of their norms.

`random_network(seed)` draws one: dense, residual, attention, convolutional, or a
mixture of these; some scan over their blocks. Every matrix has RMS-to-RMS norm at most
1, every bias entries of at most 1, and every position of the input an RMS of at most 1
over its last axis.
"""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from jax import Array, numpy as jnp

from modular.layers import (
    ACTIVATIONS,
    attention,
    AxesByPath,
    convolution,
    dense,
    Draw,
    feed_forward,
    flatten,
    Layer,
    mean_over_positions,
    Params,
    pooling,
    residual,
    scanned,
    TAPS,
)

FAMILIES = ("dense", "residual", "attention", "convolution", "mixture")


@dataclasses.dataclass(frozen=True)
class RandomNetwork:
    """A network, a point of its parameters, and the axes of each parameter.

    Attributes:
        forward: `forward(params, *inputs)`; the last axis of its result holds features.
        params: nested dicts of float arrays.
        inputs: float arrays; each position has an RMS of at most 1 over the last axis.
        axes_by_path: the axes of the matrix at a path; `None` for a bias.
        slices_by_path: for parameters of scanned layers, the number of layers, which is
            the size of the leading axis.
        description: what was drawn, for messages.
    """

    forward: Callable[..., Array]
    params: Params
    inputs: tuple[Array, ...]
    axes_by_path: AxesByPath
    slices_by_path: dict[str, int]
    description: str


def random_network(seed: int) -> RandomNetwork:
    """The network of a seed; its family is `FAMILIES[seed % 5]`."""
    rng = np.random.default_rng([2024, seed])
    family = FAMILIES[seed % len(FAMILIES)]
    some = tuple(str(name) for name in rng.choice(list(ACTIVATIONS), 2, replace=False))
    draw = Draw(
        rng=rng,
        orthogonal=float(rng.choice([0.0, 0.5, 1.0])),
        biases=bool(rng.random() < 0.5),
        # Most biases are small, so that the weights decide; some fill their ball.
        bias_size=float(rng.choice([0.1, 0.1, 0.1, 1.0])),
        activations=some[: int(rng.integers(1, 3))],
    )
    return network_of(family, draw)


def network_of(family: str, draw: Draw) -> RandomNetwork:
    """A random network of a family, whose layers `draw` draws."""
    build = {
        "dense": _dense_network,
        "residual": _residual_network,
        "attention": _attention_network,
        "convolution": _convolutional_network,
        "mixture": _mixture,
    }[family]
    layers, shape = build(draw)
    return assembled(family, layers, _input(draw, shape))


def assembled(family: str, layers: list[Layer], x: Array) -> RandomNetwork:
    """The composition of the layers; a layer without parameters gets no entry."""
    names = [f"layer_{index}" for index in range(len(layers))]
    pairs = list(zip(names, layers, strict=True))

    def forward(params: Params, x: Array) -> Array:
        # As users write it: x + bias. The tests forbid this elsewhere.
        with jax.numpy_rank_promotion("allow"):
            for name, layer in pairs:
                x = layer.apply(params.get(name, {}), x)
        return x

    return RandomNetwork(
        forward=forward,
        params={name: layer.params for name, layer in pairs if layer.params},
        inputs=(x,),
        axes_by_path={
            f"{name}/{path}": axes
            for name, layer in pairs
            for path, axes in layer.axes.items()
        },
        slices_by_path={
            f"{name}/{path}": layer.slices
            for name, layer in pairs
            if layer.slices is not None
            for path in layer.axes
        },
        description=f"{family} {x.shape}: "
        + " > ".join(layer.name for layer in layers),
    )


def _input(draw: Draw, shape: tuple[int, ...]) -> Array:
    x = draw.rng.normal(size=shape)
    rms = np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True))
    return jnp.asarray(x / rms * draw.rng.uniform(0.5, 1), jnp.float32)


def _dense_network(draw: Draw) -> tuple[list[Layer], tuple[int, ...]]:
    depth = int(draw.rng.integers(1, 13))
    widths = [draw.one_of(3, 4, 6, 8) for _ in range(depth + 1)]
    layers = [
        dense(draw, widths[i], widths[i + 1], active=i + 1 < depth or draw.chance(0.2))
        for i in range(depth)
    ]
    return layers, (2, widths[0])


def _residual_network(draw: Draw) -> tuple[list[Layer], tuple[int, ...]]:
    width, blocks = draw.one_of(4, 6, 8), int(draw.rng.integers(1, 6))
    mixing = draw.one_of(None, blocks)
    layers = [dense(draw, draw.one_of(3, 8), width, active=False)]
    shape = (2, layers[0].params["kernel"].shape[0])
    if draw.chance(0.3):
        block = residual(feed_forward(draw, width), mixing)
        layers.append(scanned(draw, block, blocks))
    else:
        for _ in range(blocks):
            layers.append(residual(feed_forward(draw, width), mixing))
    layers.append(dense(draw, width, draw.one_of(2, 5), active=False))
    return layers, shape


def _attention_network(draw: Draw) -> tuple[list[Layer], tuple[int, ...]]:
    embed, blocks = draw.one_of(4, 8), int(draw.rng.integers(1, 4))
    mixing = draw.one_of(None, blocks)
    layers: list[Layer] = []
    if draw.chance(0.2):
        block = residual(attention(draw, embed), mixing)
        return [scanned(draw, block, blocks)], (1, draw.one_of(2, 3, 5), embed)
    for _ in range(blocks):
        block = attention(draw, embed)
        layers.append(block if draw.chance(0.3) else residual(block, mixing))
        if draw.chance():
            layers.append(residual(feed_forward(draw, embed), mixing))
    if draw.chance():
        layers.append(dense(draw, embed, draw.one_of(3, 6), active=False))
    return layers, (1, draw.one_of(2, 3, 5), embed)


def _convolutional_network(draw: Draw) -> tuple[list[Layer], tuple[int, ...]]:
    dims = draw.one_of(1, 2)
    size, channels = draw.one_of(6, 7) if dims == 2 else 9, draw.one_of(1, 2, 3)
    shape = (1, *[size] * dims, channels)
    layers: list[Layer] = []
    for _ in range(int(draw.rng.integers(1, 4))):
        out = draw.one_of(2, 3, 4)
        padding = draw.one_of("SAME", "VALID") if size >= 2 * TAPS else "SAME"
        stride = draw.one_of(1, 1, 2)
        layers.append(convolution(draw, dims, (channels, out), padding, stride))
        size = -(-(size if padding == "SAME" else size - TAPS + 1) // stride)
        channels = out
        if size >= 4 and draw.chance():
            layers.append(pooling(dims, draw.one_of("mean", "max")))
            size //= 2
    if draw.chance(0.7):
        flat = draw.chance()
        layers.append(flatten(dims) if flat else mean_over_positions(dims))
        channels *= size**dims if flat else 1
    layers.append(dense(draw, channels, draw.one_of(2, 5), active=False))
    return layers, shape


def _mixture(draw: Draw) -> tuple[list[Layer], tuple[int, ...]]:
    width, tokens = draw.one_of(4, 6), draw.one_of(2, 4)
    shape = (1, tokens, width)
    layers: list[Layer] = []
    for _ in range(int(draw.rng.integers(2, 6))):
        kind = draw.one_of("dense", "attention", "convolution", "feed_forward")
        if kind == "dense":
            out = draw.one_of(4, 6)
            layers.append(dense(draw, width, out, active=draw.chance(0.8)))
            width = out
            continue
        inner = _mixed_layer(draw, kind, width)
        layers.append(residual(inner, draw.one_of(None, 2)) if draw.chance() else inner)
    if draw.chance():
        layers.append(mean_over_positions(1))
    layers.append(dense(draw, width, 3, active=False))
    return layers, shape


def _mixed_layer(draw: Draw, kind: str, width: int) -> Layer:
    """A layer that keeps the shape of its input."""
    if kind == "attention":
        return attention(draw, width)
    if kind == "convolution":
        return convolution(draw, 1, (width, width), "SAME", 1)
    return feed_forward(draw, width)
