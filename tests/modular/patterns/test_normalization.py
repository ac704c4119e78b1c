"""Norm layers as Flax, Equinox and people write them."""

import itertools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from modular.patterns.evaluation import evaluate, found

X = np.random.default_rng(0).normal(0.3, 2, (2, 6, 8)).astype(np.float32)
GAIN = jnp.linspace(-1, 2, 8)[None, None]


def linen(module):
    """A Flax module as a function, with parameters that do nothing by chance."""
    params = module.init(jax.random.key(0), X)
    params = jax.tree.map(lambda leaf: leaf + jnp.linspace(0, 1, leaf.size), params)
    return lambda x: module.apply(params, x, mutable=["batch_stats"])[0]


def centred(x):
    return x - x.mean(-1, keepdims=True)


def square(x):
    return jnp.mean(x**2, -1, keepdims=True)


def haiku(x):
    mean = jnp.mean(x, -1, keepdims=True)
    inverse = GAIN * lax.rsqrt(jnp.var(x, -1, keepdims=True) + 1e-5)
    return inverse * (x - mean) + GAIN


def llama(x):
    y = x.astype(jnp.float32)
    y = y * lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + 1e-6)
    return y.astype(jnp.bfloat16) * GAIN.astype(jnp.bfloat16)


def folded(x):
    gain = lax.rsqrt(x.var(-1, keepdims=True) + 1e-5) * GAIN
    return x * gain - x.mean(-1, keepdims=True) * gain


def folded_bias(x):
    gain = lax.rsqrt(x.var(-1, keepdims=True) + 1e-5) * GAIN
    return x * gain + (GAIN - x.mean(-1, keepdims=True) * gain)


def one_pass(x):
    mean = x.sum(-1) * (1 / 8)
    variance = (x * x).sum(-1) * (1 / 8) - mean * mean
    return (x - mean[..., None]) / jnp.sqrt(jnp.maximum(variance, 0) + 1e-5)[..., None]


def means_of_means(x):
    """A batch norm whose statistics are averaged over devices."""
    mean, power = x.mean(1, keepdims=True), (x * x).mean(1, keepdims=True)
    mean, power = mean.mean(0, keepdims=True), power.mean(0, keepdims=True)
    return (x - mean) * lax.rsqrt(power - mean * mean + 1e-5)


def gated(x):
    y = x * GAIN * jax.nn.sigmoid(x)
    return y * lax.rsqrt(square(y) + 1e-6)


RNGS = nnx.Rngs(0)
LAYER = {"axes": (2,), "centred": True}
RMS = {"axes": (2,), "centred": False}

LAYERS = {
    "linen": (linen(nn.LayerNorm()), LAYER | {"epsilon": 1e-6}),
    "linen two-pass": (
        linen(nn.LayerNorm(use_fast_variance=False)),
        LAYER | {"epsilon": 1e-6},
    ),
    "linen bfloat16": (
        linen(nn.LayerNorm(dtype=jnp.bfloat16)),
        LAYER | {"epsilon": 1e-6},
    ),
    "nnx": (nnx.LayerNorm(8, rngs=RNGS), LAYER | {"epsilon": 1e-6}),
    "nnx two-pass": (
        nnx.LayerNorm(8, use_fast_variance=False, rngs=RNGS),
        LAYER | {"epsilon": 1e-6},
    ),
    "equinox": (jax.vmap(jax.vmap(eqx.nn.LayerNorm(8))), LAYER | {"epsilon": 1e-5}),
    "haiku": (haiku, LAYER | {"epsilon": 1e-5}),
    "standardize": (jax.nn.standardize, LAYER | {"epsilon": 1e-5}),
    "by std": (
        lambda x: centred(x) / jnp.std(x, -1, keepdims=True),
        LAYER | {"epsilon": 0},
    ),
    "std + eps": (
        lambda x: centred(x) / (jnp.std(x, -1, keepdims=True) + 0.25),
        LAYER | {"epsilon": 0, "offset": 0.25},
    ),
    "one pass": (one_pass, LAYER | {"epsilon": 1e-5}),
    "gain before the mean": (folded, LAYER | {"epsilon": 1e-5}),
    "as x a + b": (folded_bias, LAYER | {"epsilon": 1e-5}),
    "linen RMS": (linen(nn.RMSNorm()), RMS | {"epsilon": 1e-6}),
    "linen RMS two-pass": (
        linen(nn.RMSNorm(use_fast_variance=False)),
        RMS | {"epsilon": 1e-6},
    ),
    "nnx RMS": (nnx.RMSNorm(8, rngs=RNGS), RMS | {"epsilon": 1e-6}),
    "equinox RMS": (jax.vmap(jax.vmap(eqx.nn.RMSNorm(8))), RMS | {"epsilon": 1e-5}),
    "llama": (llama, RMS | {"epsilon": 1e-6}),
    "times rsqrt": (lambda x: x * lax.rsqrt(square(x) + 1e-6), RMS | {"epsilon": 1e-6}),
    "over sqrt": (
        lambda x: x / jnp.sqrt(square(x) + 1e-6) * GAIN,
        RMS | {"epsilon": 1e-6},
    ),
    "power": (
        lambda x: GAIN * (x * (square(x) + 1e-6) ** -0.5),
        RMS | {"epsilon": 1e-6},
    ),
    "reciprocal": (
        lambda x: x * (1 / jnp.sqrt(square(x) + 1e-6)),
        RMS | {"epsilon": 1e-6},
    ),
    "einsum": (
        lambda x: x * lax.rsqrt(jnp.einsum("btd,btd->bt", x, x) / 8 + 1e-6)[..., None],
        RMS | {"epsilon": 1e-6},
    ),
    "of a product": (gated, RMS | {"epsilon": 1e-6}),
    "of 3 x": (
        lambda x: 3 * x * lax.rsqrt(square(3 * x) + 9e-3),
        RMS | {"epsilon": 9e-3},
    ),
    "3 x over x": (
        lambda x: 3 * x * lax.rsqrt(square(x) + 1e-6),
        RMS | {"epsilon": 1e-6, "scale": 3},
    ),
    "L2": (
        lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True),
        RMS | {"epsilon": 0, "scale": 8**-0.5},
    ),
    "L2 + eps": (
        lambda x: x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 0.5),
        RMS | {"epsilon": 0, "scale": 8**-0.5, "offset": 0.5 * 8**-0.5},
    ),
    "L2 from eps": (
        lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 6),
        RMS | {"epsilon": 0, "scale": 8**-0.5, "floor": 6 * 8**-0.5},
    ),
    "L2 from eps²": (
        lambda x: x * lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 36)),
        RMS | {"epsilon": 0, "scale": 8**-0.5, "floor": 6 * 8**-0.5},
    ),
    "torch RMS": (
        lambda x: (
            x / (jnp.linalg.norm(x, axis=-1, keepdims=True) * 8**-0.5 + 0.25) * GAIN
        ),
        RMS | {"epsilon": 0, "offset": 0.25},
    ),
    "by columns": (
        jax.vmap(lambda x: x * lax.rsqrt(square(x) + 1e-6), in_axes=1, out_axes=1),
        RMS | {"epsilon": 1e-6},
    ),
    "mapped columns": (
        jax.vmap(
            lambda x: (x - x.mean(0)[None]) / jnp.sqrt(x.var(0) + 1e-5)[None], 2, 2
        ),
        {"axes": (0,), "centred": True, "epsilon": 1e-5},
    ),
    "means of means": (
        means_of_means,
        {"axes": (0, 1), "centred": True, "epsilon": 1e-5},
    ),
    "batch": (
        linen(nn.BatchNorm(use_running_average=False)),
        {"axes": (0, 1), "centred": True, "epsilon": 1e-5},
    ),
    "instance": (linen(nn.InstanceNorm()), {"axes": (1,), "centred": True}),
    # Of the reshaped value: [2, 6, groups, channels of a group].
    "group": (linen(nn.GroupNorm(4)), {"axes": (1, 3), "centred": True}),
    "nnx group": (
        nnx.GroupNorm(8, num_groups=2, use_fast_variance=False, rngs=RNGS),
        {"axes": (1, 3), "centred": True},
    ),
    "equinox group": (
        jax.vmap(eqx.nn.GroupNorm(2, 6)),
        {"axes": (2, 3), "centred": True},
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_spellings(name):
    function, truth = LAYERS[name]
    (layer,) = found(function, X)
    assert layer.name == "normalize"
    rest = {"scale": 1, "offset": 0, "floor": 0}
    for key, value in (rest | truth).items():
        # Constants are float32 in the graph, and up to five of them are multiplied.
        assert layer.params[key] == pytest.approx(value, rel=1e-6, abs=1e-12), key


@pytest.fixture(scope="module")
def values():
    """The values of all layers, ours and theirs, in one compilation."""
    functions = {name: function for name, (function, _) in LAYERS.items()}
    return jax.jit(lambda x: {k: (evaluate(f, x), f(x)) for k, f in functions.items()})(
        X
    )


@pytest.mark.parametrize("name", LAYERS)
def test_value(name, values):
    ours, theirs = values[name]
    # Entries are at most 8: 2e-6 relative to that is 17 eps of sums in another order.
    # bfloat16 rounds to 2^-8, up to four times on the way.
    narrow = ours.dtype == jnp.bfloat16 or "bfloat16" in name
    tolerance = 4 * 2**-8 if narrow else 2e-6
    theirs, ours = np.asarray(theirs, np.float32), np.asarray(ours, np.float32)
    assert abs(ours - theirs).max() <= tolerance * 8


def mask_mean(x):
    keep = jnp.arange(8)[None, None] < 5
    return x * lax.rsqrt(jnp.mean(x**2, -1, keepdims=True, where=keep) + 1e-6)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x / jnp.std(x, -1, keepdims=True),
        lambda x: centred(x) / jnp.std(x, -2, keepdims=True),
        lambda x: centred(x) / jnp.sqrt(square(x)),
        lambda x: x * lax.rsqrt(square(jnp.sin(x)) + 1e-6),
        lambda x: x * lax.rsqrt(square(x) - 1e-6),
        lambda x: x / (square(x) + 1e-6),
        lambda x: x * jnp.sqrt(square(x) + 1e-6),
        lambda x: x * jax.nn.sigmoid(x),
        mask_mean,
    ],
    ids=itertools.count(),
)
def test_look_alikes(function):
    assert not found(function, X, name="normalize")


def test_rows_are_not_columns():
    """A square array has means that fit along the wrong axis."""

    def wrong(x):
        return x * lax.rsqrt(jnp.mean(x * x, 1) + 1e-6)[None, :]

    def right(x):
        return x * lax.rsqrt(jnp.mean(x * x, 1) + 1e-6)[:, None]

    assert not found(wrong, X[0, :6, :6])
    assert len(found(right, X[0, :6, :6])) == 1
