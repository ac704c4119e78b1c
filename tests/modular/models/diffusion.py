"""A denoiser of images: convolutions down and up, and the time of the noise."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import manifold_optax as mo
from modular.models.model import (
    BATCH,
    below,
    BIAS,
    CONVOLUTION,
    described,
    GAIN,
    Golden,
    MATRIX,
    Model,
    normal,
    split_nnx,
)

WIDTH, SIDE, TIME = 8, 8, 16


def _waves(times: jax.Array) -> jax.Array:
    """Sines and cosines of the time, at wavelengths from 1 to 10,000."""
    frequencies = np.exp(-np.log(1e4) * np.arange(TIME // 2) / (TIME // 2))
    angles = times[:, None] * jnp.asarray(frequencies, jnp.float32)[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class _UNet(nnx.Module):
    """One level: half the size and back; what was skipped is put beside it."""

    def __init__(self, rngs: nnx.Rngs):
        self.time = nnx.Linear(TIME, WIDTH, rngs=rngs)
        self.inputs = nnx.Conv(3, WIDTH, (3, 3), rngs=rngs)
        self.down = nnx.Conv(WIDTH, 2 * WIDTH, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.GroupNorm(2 * WIDTH, num_groups=4, rngs=rngs)
        self.up = nnx.ConvTranspose(2 * WIDTH, WIDTH, (2, 2), strides=2, rngs=rngs)
        self.outputs = nnx.Conv(2 * WIDTH, 3, (3, 3), rngs=rngs)

    def __call__(self, images: jax.Array, times: jax.Array) -> jax.Array:
        skipped = self.inputs(images)
        skipped = skipped + jax.nn.silu(self.time(_waves(times)))[:, None, None, :]
        x = self.up(jax.nn.silu(self.norm(self.down(skipped))))
        return self.outputs(jnp.concatenate([skipped, x], axis=-1))


def denoiser() -> Model:
    """The last convolution is the readout: its results are the noise."""
    forward, params = split_nnx(_UNet)
    convolution = {"kernel": CONVOLUTION, "bias": BIAS}
    golden = {
        **below("time", {"kernel": MATRIX, "bias": BIAS}),
        **below("inputs", convolution),
        **below("down", convolution),
        **below("norm", {"scale": GAIN, "bias": BIAS}),
        **below("up", convolution),
        "outputs/kernel": Golden(mo.Role("readout", mo.CONV)),
        "outputs/bias": BIAS,
    }
    times = np.asarray([3.0, 40.0], np.float32)
    inputs = (normal(BATCH, SIDE, SIDE, 3), times)
    return described(forward, params, inputs, golden, name="denoiser")
