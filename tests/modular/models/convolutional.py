"""Networks with convolutions."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen, nnx

import manifold_optax as mo
from modular.models.model import (
    as_users_trace,
    BATCH,
    below,
    BIAS,
    CONVOLUTION,
    described,
    fused,
    GAIN,
    Golden,
    MATRIX,
    Model,
    normal,
    READOUT,
    split_nnx,
)

WIDTH, CLASSES, SIDE, GROUPS = 8, 5, 8, 2

_LINE = Golden(mo.Role("matrix", optax.contrib.MuonDimensionNumbers((-3, -2), -1)))
"""`[taps, in, out]`: a convolution along one axis."""


class _ConvNet(nnx.Module):
    """Ordinary, grouped, depthwise and pointwise convolutions."""

    def __init__(self, rngs: nnx.Rngs):
        conv = lambda *sizes, **options: nnx.Conv(*sizes, rngs=rngs, **options)
        self.stem = conv(3, WIDTH, (3, 3), strides=2)
        self.grouped = conv(WIDTH, WIDTH, (3, 3), feature_group_count=GROUPS)
        self.depthwise = conv(WIDTH, WIDTH, (3, 3), feature_group_count=WIDTH)
        self.pointwise = conv(WIDTH, 2 * WIDTH, (1, 1), use_bias=False)
        self.head = nnx.Linear(2 * WIDTH, CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = jax.nn.relu(self.stem(images))
        x = jax.nn.relu(self.grouped(x))
        x = jax.nn.relu(self.pointwise(self.depthwise(x)))
        x = nnx.max_pool(x, (2, 2), strides=(2, 2))
        return self.head(x.mean((1, 2)))


def conv_net() -> Model:
    """A grouped kernel is `[height, width, in / groups, out]`.

    The first `out / groups` outputs see the first `in / groups` inputs, and so on: one
    matrix per group.
    """
    forward, params = split_nnx(_ConvNet)
    groups = fused((WIDTH // GROUPS,) * GROUPS, mo.CONV, "groups")
    golden = {
        "stem/kernel": CONVOLUTION,
        "stem/bias": BIAS,
        "grouped/kernel": groups,
        "grouped/bias": BIAS,
        "depthwise/kernel": fused((1,) * WIDTH, mo.CONV, "depthwise"),
        "depthwise/bias": BIAS,
        "pointwise/kernel": CONVOLUTION,
        "head/kernel": READOUT,
        "head/bias": BIAS,
    }
    images = normal(BATCH, SIDE, SIDE, 3)
    return described(forward, params, (images,), golden, name="conv_net")


class _ConvLine(nnx.Module):
    """Convolutions over time; the second is dilated and sees the past alone."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Conv(4, WIDTH, 3, padding="SAME", rngs=rngs)
        self.second = nnx.Conv(
            WIDTH, WIDTH, 3, kernel_dilation=2, padding="CAUSAL", rngs=rngs
        )
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, series: jax.Array) -> jax.Array:
        x = jax.nn.leaky_relu(self.first(series))
        x = x + jax.nn.softplus(self.second(x))
        return self.head(x[:, -1])


def conv_line() -> Model:
    forward, params = split_nnx(_ConvLine)
    golden = {
        "first/kernel": _LINE,
        "first/bias": BIAS,
        "second/kernel": _LINE,
        "second/bias": BIAS,
        "head/kernel": READOUT,
        "head/bias": BIAS,
    }
    series = normal(BATCH, 6, 4)
    return described(forward, params, (series,), golden, name="conv_line")


class _ResNet(linen.Module):
    """Two residual blocks; the second halves the image and doubles the channels."""

    train: bool

    @linen.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = linen.Conv(WIDTH, (3, 3), use_bias=False, name="stem")(images)
        x = linen.relu(self._norm("stem_bn")(x))
        for index, (channels, stride) in enumerate([(WIDTH, 1), (2 * WIDTH, 2)]):
            x = self._block(x, f"block{index}", channels, stride)
        return linen.Dense(CLASSES, name="head")(x.mean((1, 2)))

    def _norm(self, name: str) -> linen.BatchNorm:
        return linen.BatchNorm(use_running_average=not self.train, name=name)

    def _block(self, x: jax.Array, name: str, channels: int, stride: int) -> jax.Array:
        conv = lambda window, strides, suffix: linen.Conv(
            channels, window, strides, use_bias=False, name=f"{name}_{suffix}"
        )
        y = conv((3, 3), stride, "conv1")(x)
        y = linen.relu(self._norm(f"{name}_bn1")(y))
        y = self._norm(f"{name}_bn2")(conv((3, 3), 1, "conv2")(y))
        if x.shape != y.shape:
            x = self._norm(f"{name}_bn3")(conv((1, 1), stride, "shortcut")(x))
        return linen.relu(x + y)


def _resnet(name: str, *, train: bool) -> Model:
    model, images = _ResNet(train), normal(BATCH, SIDE, SIDE, 3)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    statistics = jax.tree_util.tree_map_with_path(
        # The running means begin as 0, the running variances as 1.
        lambda keys, leaf: jnp.full(leaf.shape, float(keys[-1].key == "var")),
        variables["batch_stats"],
    )

    def forward(params: Any, images: jax.Array, statistics: Any) -> Any:
        variables = {"params": params, "batch_stats": statistics}
        if not train:
            return model.apply(variables, images)
        logits, updated = model.apply(variables, images, mutable=["batch_stats"])
        return logits, updated

    convolutions = ["stem", "block0_conv1", "block0_conv2"]
    convolutions += ["block1_conv1", "block1_conv2", "block1_shortcut"]
    norms = ["stem_bn", "block0_bn1", "block0_bn2"]
    norms += ["block1_bn1", "block1_bn2", "block1_bn3"]
    golden = {
        **_each(convolutions, {"kernel": CONVOLUTION}),
        **_each(norms, {"scale": GAIN, "bias": BIAS}),
        **below("head", {"kernel": READOUT, "bias": BIAS}),
    }
    inputs = (images, statistics)
    return described(
        as_users_trace(forward), variables["params"], inputs, golden, name=name
    )


def resnet_training() -> Model:
    """Statistics of the batch; the updated running ones are a side output.

    The results of convolutions leave the function through that side output, too. That
    makes no readout of them.
    """
    return _resnet("resnet_training", train=True)


def resnet_inference() -> Model:
    """Running statistics, which are an input."""
    return _resnet("resnet_inference", train=False)


class _PatchMixer(nnx.Module):
    """Maps along the tokens and along the channels in turn."""

    def __init__(self, rngs: nnx.Rngs):
        linear = lambda *sizes: nnx.Linear(*sizes, rngs=rngs)
        self.patches = linear(4 * 4 * 3, WIDTH)
        self.norm = nnx.LayerNorm(WIDTH, use_bias=False, use_scale=False, rngs=rngs)
        self.tokens_up, self.tokens_down = linear(4, 8), linear(8, 4)
        self.channels_up, self.channels_down = linear(WIDTH, 16), linear(16, WIDTH)
        self.head = linear(WIDTH, CLASSES)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = images.reshape(images.shape[0], 2, 4, 2, 4, 3)
        x = self.patches(x.transpose(0, 1, 3, 2, 4, 5).reshape(images.shape[0], 4, -1))
        gelu = functools.partial(jax.nn.gelu, approximate=False)
        y = jnp.swapaxes(self.norm(x), 1, 2)
        x = x + jnp.swapaxes(self.tokens_down(gelu(self.tokens_up(y))), 1, 2)
        x = x + self.channels_down(gelu(self.channels_up(self.norm(x))))
        return self.head(x.mean(1))


def patch_mixer() -> Model:
    """An MLP-Mixer: patches by reshaping, no convolution, no parameters of the norm."""
    forward, params = split_nnx(_PatchMixer)
    layers = ["patches", "tokens_up", "tokens_down", "channels_up", "channels_down"]
    golden = _each(layers, {"kernel": MATRIX, "bias": BIAS})
    golden |= below("head", {"kernel": READOUT, "bias": BIAS})
    images = normal(BATCH, SIDE, SIDE, 3)
    return described(forward, params, (images,), golden, name="patch_mixer")


def _each(names: Sequence[str], table: dict[str, Golden]) -> dict[str, Golden]:
    return {path: g for name in names for path, g in below(name, table).items()}
