"""Models as users have them train after one declaration of roles."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import manifold_optax as mo
from manifold_optax.integrations.flax import module_list

WIDTH, HEADS, TOKENS, LENGTH = 16, 2, 11, 6


class Block(nnx.Module):
    """Attention with one fused projection, a feed-forward layer, biases everywhere."""

    def __init__(self, rngs: nnx.Rngs):
        self.ln_1 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.qkv = nnx.Linear(WIDTH, 3 * WIDTH, rngs=rngs)
        self.out = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.ln_2 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        qkv = self.qkv(self.ln_1(x)).reshape(*x.shape[:-1], 3, HEADS, -1)
        query, key, value = jnp.moveaxis(qkv, -3, 0)
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.reshape(x.shape))
        return x + self.down(jax.nn.gelu(self.up(self.ln_2(x))))


class Gpt(nnx.Module):
    """Learned positions, and an embedding that is the readout, too."""

    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(TOKENS, WIDTH, rngs=rngs)
        self.positions = nnx.Param(0.02 * rngs.normal((LENGTH, WIDTH)))
        self.blocks = module_list([Block(rngs) for _ in range(2)])
        self.ln_f = nnx.LayerNorm(WIDTH, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed(tokens) + self.positions[...][None]
        for block in self.blocks:
            x = block(x)
        return self.embed.attend(self.ln_f(x))


class ConvNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.conv2 = nnx.Conv(8, 8, (3, 3), rngs=rngs)
        self.head = nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = jax.nn.relu(self.norm(self.conv1(images)))
        return self.head(jax.nn.relu(self.conv2(x)).mean((1, 2)))


def trained(
    model: nnx.Module, roles: mo.Roles, batch: Any, targets: Any
) -> list[float]:
    """Losses of some steps of Muon with AdamW beside it."""
    tx = mo.hybrid(mo.muon(0.02, axes=roles), others=optax.adamw(3e-3), labels=roles)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model: Any, optimizer: nnx.Optimizer) -> jax.Array:
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels
        loss = lambda model: cross_entropy(model(batch), targets).mean()
        value, gradients = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradients)
        return value

    return [float(step(model, optimizer)) for _ in range(15)]


@pytest.mark.slow
@pytest.mark.slow
def test_a_gpt_needs_two_rules(rng: np.random.Generator) -> None:
    model = Gpt(nnx.Rngs(0))
    roles = mo.roles({"qkv/kernel": mo.Split((WIDTH,) * 3), "positions": "embedding"})
    described = mo.describe(roles, nnx.state(model, nnx.Param))
    matrices = {leaf.path: leaf.count for leaf in described.leaves if leaf.views}
    expected = {"qkv": 3, "out": 1, "up": 1, "down": 1}
    assert matrices == {
        f"blocks/{k}/{name}/kernel": count
        for k in range(2)
        for name, count in expected.items()
    }
    # Fused and plain kernels share one plan.
    assert len(described.plans) == 1
    tokens = jnp.asarray(rng.integers(0, TOKENS, (4, LENGTH + 1)))
    losses = trained(model, roles, tokens[:, :-1], tokens[:, 1:])
    # A model of this size learns 24 random tokens by heart (seen: 2.4 → 0.6).
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.slow
def test_a_conv_net_needs_one_rule(rng: np.random.Generator) -> None:
    model = ConvNet(nnx.Rngs(0))
    roles = mo.roles({r"conv\d/kernel": mo.CONV})
    images = jnp.asarray(rng.standard_normal((8, 6, 6, 1)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 5, 8))
    described = mo.describe(roles, nnx.state(model, nnx.Param))
    sizes = {leaf.path: leaf.sizes for leaf in described.leaves if leaf.views}
    assert sizes == {"conv1/kernel": "8 × 9", "conv2/kernel": "8 × 72"}
    losses = trained(model, roles, images, labels)
    # Random labels of random images (seen: 1.59 → 1.39).
    assert losses[-1] < losses[0] - 0.1


def test_muon_alone_refuses_a_convolution() -> None:
    kernel = {"conv": {"kernel": jnp.ones((3, 3, 4, 8))}}
    with pytest.raises(
        ValueError, match=r"'conv/kernel'.*more than two axes.*mo\.CONV"
    ):
        mo.muon(0.02).init(kernel)
