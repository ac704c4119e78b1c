"""Certificates of functions that are small enough to know or to enumerate."""

import dataclasses

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from manifold_optax import modular
from modular.certificates.ascent import attacked_changes, attacked_ratios
from modular.certificates.domains import Ball, Tokens

# Bounds are computed in float32 of some tens of rounded numbers.
ROUNDING = 2e-6


def chain(params, x):
    for weights in params:
        x = x @ weights
    return x


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_changes_of_products_of_numbers(depth):
    """Steps along which numbers shrink, grow, vanish and change their sign."""
    rng = np.random.default_rng(depth)
    sizes = rng.choice([0.0, 1e-2, 1.0, 1.0, 30.0], size=(2, 4000, depth))
    before, step = (sizes * rng.normal(size=sizes.shape)).astype(np.float32)
    # A fifth of the steps end at another point of one size, a fifth at 0.
    step[::5] = -before[::5]
    step[1::5] = np.roll(before[1::5], 1, axis=1) - before[1::5]
    like = jax.ShapeDtypeStruct((1, 1), np.float32)
    shapes = [like] * depth
    certificate = modular.certificate(chain, shapes, modular.L2Ball(like, 1.0))
    leaves = lambda array: [jnp.asarray(array[:, i, None, None]) for i in range(depth)]
    found = jax.jit(jax.vmap(certificate.change))(leaves(before), leaves(step))
    old, new = np.float64(before), np.float64(before) + np.float64(step)
    true = np.abs(new.prod(axis=1) - old.prod(axis=1))
    assert (np.asarray(found) >= true * (1 - ROUNDING)).all()


@pytest.mark.slow
@pytest.mark.parametrize("activation", [jax.nn.relu, jnp.tanh, jax.nn.softplus])
def test_a_weight_that_is_used_twice(activation):
    def forward(weights, x):
        hidden = activation(x @ weights)
        return activation(hidden @ weights) @ weights.T

    like = jax.ShapeDtypeStruct((2, 6), np.float32)
    domain = Ball(like, 2.0, 0.2)
    rng = np.random.default_rng(0)
    weights = [np.float32(rng.normal(size=(6, 6)) / 2) for _ in range(5)]
    params = {"w": jnp.asarray(weights[0])}
    tied = lambda params, x: forward(params["w"], x)
    certificate = modular.certificate(tied, params, domain.declared())
    (ratio,) = attacked_ratios(tied, params, domain)
    assert ratio <= float(certificate.lipschitz(params)) * (1 + ROUNDING)
    steps = [{"w": size * w} for size in (1e-3, 0.1, 1.0) for w in weights]
    bounds = [float(certificate.change(params, step)) for step in steps]
    found = attacked_changes(tied, params, steps, domain)
    assert (found <= np.asarray(bounds) * (1 + ROUNDING)).all()


@dataclasses.dataclass(frozen=True)
class Shell(Tokens):
    """An RMS over the last axis between `least` and `radius`."""

    least: float = 0.5

    def nearest(self, x, margin=0.0):
        x = super().nearest(x, margin)
        rms = jnp.sqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True))
        room = margin / np.sqrt(self.like.shape[-1])
        return x * jnp.maximum(1, (self.least + room) / jnp.maximum(rms, 1e-9))


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [1e-5, 0.1])
def test_a_norm_layer_above_its_floor(epsilon):
    def rms_norm(params, x):
        mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        return params["gain"][None] * x * jax.lax.rsqrt(mean_square + epsilon)

    like = jax.ShapeDtypeStruct((2, 8), np.float32)
    domain = Shell(like, 3.0, 0.5)
    params = {"gain": jnp.linspace(-2, 1, 8)}
    shell = modular.RmsBall(like, 3.0)
    above = modular.lipschitz_bound(rms_norm, params, shell, floor=0.5)
    (found,) = attacked_ratios(rms_norm, params, domain)
    known = 2 / np.sqrt(0.25 + epsilon)
    # Attained across the direction of x, whose own part is shortened.
    assert 0.99 * known <= found <= known * (1 + 1e-6)
    assert found <= float(above) * (1 + ROUNDING)
    assert float(above) <= 1.01 * known
    anywhere = modular.lipschitz_bound(rms_norm, params, shell)
    (found,) = attacked_ratios(rms_norm, params, Tokens(like, 3.0), starts=32)
    assert found <= float(anywhere) * (1 + ROUNDING)
    assert float(anywhere) <= 1.01 * 2 / np.sqrt(epsilon)


@pytest.mark.slow
def test_a_weight_that_is_computed():
    def forward(params, x):
        length = jnp.linalg.norm(params["v"], axis=0, keepdims=True)
        return x @ (params["v"] / length * params["g"][None])

    rng = np.random.default_rng(0)
    params = {"v": jnp.float32(rng.normal(size=(6, 4))), "g": jnp.ones(4)}
    like = jax.ShapeDtypeStruct((2, 6), np.float32)
    found = float(modular.lipschitz_bound(forward, params, like))
    (ratio,) = attacked_ratios(forward, params, Ball(like, 1.0))
    assert ratio <= found * (1 + ROUNDING)
    # It is the norm of the weight that is used, found to 6 %.
    assert found <= 1.06 * ratio


@pytest.mark.slow
def test_tokens_are_enumerated():
    def forward(params, tokens):
        return jax.nn.gelu(params["table"][tokens] @ params["up"]) @ params["down"]

    def drawn(seed):
        rng = np.random.default_rng(seed)
        shapes = {"table": (11, 6), "up": (6, 8), "down": (8, 3)}
        return {name: jnp.float32(rng.normal(size=s)) for name, s in shapes.items()}

    params, tokens = drawn(0), jax.ShapeDtypeStruct((1, 5), np.int32)
    certificate = modular.certificate(forward, params, tokens)
    everything = jnp.arange(11)[None]
    outputs = np.asarray(forward(params, everything), np.float64)[0]
    # Two sequences may differ in all tokens.
    apart = np.linalg.norm(outputs[:, None] - outputs[None], axis=-1).max()
    assert apart <= float(certificate.lipschitz(params)) * (1 + ROUNDING)
    for size in (1e-3, 0.1, 1.0):
        step = jax.tree.map(lambda x, s=size: s * x, drawn(1))
        after = jax.tree.map(jnp.add, params, step)
        moved = np.asarray(forward(after, everything), np.float64)[0] - outputs
        bound = float(certificate.change(params, step))
        # Outputs of about 10 in float32, whose difference is about 1e-2: 1e-4 of it.
        assert np.linalg.norm(moved, axis=-1).max() <= bound * (1 + 1e-4)
