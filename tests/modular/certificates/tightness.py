"""Networks on which the factor between a bound and the best attack is followed."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax import numpy as jnp

from manifold_optax import modular
from modular.certificates.ascent import attacked_ratios
from modular.certificates.domains import Ball, Domain, EntryBox, Tokens
from modular.certificates.drawn_networks import WeightDraw
from modular.certificates.steepest import steep_pairs
from modular.layers import (
    attention,
    AxesByPath,
    convolution,
    dense,
    feed_forward,
    flatten,
    Layer,
    mean_over_positions,
    Params,
    pooling,
    residual,
)
from modular.networks import assembled, RandomNetwork

ACTIVATIONS = ("relu", "gelu_exact", "silu", "tanh")
SEEDS = (0, 1)

STEEP = 16
"""Starts of the attack that a search by a population finds."""

Builder = Callable[[WeightDraw], list[Layer]]
"""Makes layers, from what draws the weights."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One network.

    Attributes:
        build: makes the layers, from what draws the weights.
        domain: the inputs.
        activation: of all layers.
        weights: kind of the weights, as `WeightDraw.weights`.
        seed: of the weights.
        starts: drawn starts of the attack.
        steps: steps from every start.
        points: of the search for `STEEP` further starts.
        trials: of every such point.
    """

    build: Builder
    domain: Domain
    activation: str
    weights: str = "orthogonal"
    seed: int = 0
    starts: int = 48
    steps: int = 300
    points: int = 256
    trials: int = 500

    @property
    def network(self) -> RandomNetwork:
        draw = WeightDraw(
            rng=np.random.default_rng([7, self.seed]),
            orthogonal=1.0,
            biases=False,
            bias_size=0.0,
            activations=(self.activation,),
            weights=self.weights,
        )
        like = self.domain.like
        return assembled("case", self.build(draw), jnp.zeros(like.shape, like.dtype))


def factor_of(case: Case) -> float:
    """The certified Lipschitz constant over the largest ratio that the attack finds."""
    bound, found = bound_and_attacked(case)
    return bound / found


def bound_and_attacked(case: Case) -> tuple[float, float]:
    """The certified Lipschitz constant, and the largest ratio found."""
    network = case.network
    bound = modular.lipschitz_bound(
        network.forward, network.params, case.domain.declared()
    )
    steep = steep_pairs(
        network.forward,
        network.params,
        case.domain,
        points=case.points,
        trials=case.trials,
        count=STEEP,
    )
    (found,) = attacked_ratios(
        network.forward,
        network.params,
        case.domain,
        starts=case.starts,
        steps=case.steps,
        further=steep,
    )
    return float(bound), float(found)


def chain(depth: int, width: int = 16) -> Builder:
    """Dense layers, the last one without activation."""
    return lambda draw: [
        dense(draw, width, width, active=i + 1 < depth) for i in range(depth)
    ]


def blocks(count: int, mixed: bool, width: int = 8) -> Builder:
    """Residual feed-forward blocks."""
    mixing = count if mixed else None
    return lambda draw: [
        residual(feed_forward(draw, width), mixing) for _ in range(count)
    ]


def conv_net(draw: WeightDraw) -> list[Layer]:
    """Two convolutions with a mean pooling, a third one, and a readout."""
    return [
        convolution(draw, 2, (3, 6), "SAME", 1),
        pooling(2, "mean"),
        convolution(draw, 2, (6, 6), "SAME", 1),
        convolution(draw, 2, (6, 6), "SAME", 2),
        flatten(2),
        dense(draw, 6 * 2 * 2, 5, active=False),
    ]


def max_pooled(draw: WeightDraw) -> list[Layer]:
    """The same with maxima and a mean over positions."""
    return [
        convolution(draw, 2, (3, 6), "SAME", 1),
        pooling(2, "max"),
        convolution(draw, 2, (6, 6), "SAME", 1),
        mean_over_positions(2),
        dense(draw, 6, 5, active=False),
    ]


def heads_of_width(heads: int, width: int, causal: bool, scale: float) -> Builder:
    """Attention whose heads share the width; their matrices make square ones.

    Args:
        heads: heads, each of the size `width / heads`.
        width: features.
        causal: whether no position sees a later one.
        scale: logits are products times this.
    """
    size = width // heads

    def apply(params: Params, x: jax.Array) -> jax.Array:
        in_heads = (width, heads, size)
        query, key, value = (
            jnp.einsum("nte,ehd->nhtd", x, params[name].reshape(in_heads))
            for name in ("query", "key", "value")
        )
        logits = scale * jnp.einsum("nhqd,nhkd->nhqk", query, key)
        if causal:
            seen = jnp.tril(jnp.ones(logits.shape[-2:], bool))
            logits = jnp.where(seen, logits, -jnp.inf)
        mixed = jnp.einsum("nhqk,nhkd->nqhd", jax.nn.softmax(logits), value)
        return mixed.reshape(x.shape) @ params["out"]

    def build(draw: WeightDraw) -> list[Layer]:
        names = ("query", "key", "value", "out")
        params = {name: jnp.float32(draw.matrix(width, width)) for name in names}
        name = f"{'causal' if causal else 'full'} attention {heads}x{size} *{scale:.4g}"
        return [Layer(name, params, dict.fromkeys(names), apply)]

    return build


def pre_norm(inner: Layer) -> Layer:
    """x + f(LayerNorm(x)) with the usual ε of 1e-5 and no gain."""

    def apply(params: Params, x: jax.Array) -> jax.Array:
        mean = jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.var(x, axis=-1, keepdims=True)
        return x + inner.apply(params, (x - mean) / jnp.sqrt(variance + 1e-5))

    axes: AxesByPath = inner.axes
    return Layer(f"x + {inner.name} of the norm", inner.params, axes, apply)


def transformer(count: int) -> Builder:
    """Pre-norm blocks of attention and a feed-forward layer."""

    def build(draw: WeightDraw) -> list[Layer]:
        layers: list[Layer] = []
        for _ in range(count):
            layers.append(pre_norm(attention(draw, 8)))
            layers.append(pre_norm(feed_forward(draw, 8)))
        return layers

    return build


def _shaped(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, np.float32)


VECTORS = Ball(_shaped(1, 16), 8.0)
"""Wide enough for the steepest slopes of all activations."""

RESIDUAL = Ball(_shaped(1, 8), 8.0)
SEQUENCE = Tokens(_shaped(1, 4, 8), 1.0)
IMAGES = EntryBox(_shaped(1, 6, 6, 3), -1.0, 1.0)

# Convolutions are slow on a CPU, most of all in float64.
SHORT = {"starts": 32, "steps": 300, "points": 96, "trials": 300}


def _over(
    builds: Sequence[Builder],
    domain: Domain,
    weights: str = "orthogonal",
    **effort: int,
) -> tuple[Case, ...]:
    return tuple(
        Case(build, domain, activation, weights, seed, **effort)
        for build in builds
        for activation in ACTIVATIONS
        for seed in SEEDS
    )


def _attention(heads: int) -> tuple[Case, ...]:
    """Blocks of two widths, with both usual scales, causal or not."""
    return tuple(
        Case(
            heads_of_width(heads, width, causal, (width / heads) ** power),
            Tokens(_shaped(1, 4, width), 1.0),
            "none",
        )
        for width in (8, 16)
        for causal in (False, True)
        for power in (-0.5, -1)
    )


CASES: dict[str, tuple[Case, ...]] = {
    "orthogonal MLP, depth 3": _over([chain(3)], VECTORS),
    "orthogonal MLP, depth 6": _over([chain(6)], VECTORS),
    "orthogonal MLP, depth 12": _over([chain(12)], VECTORS),
    "Gaussian MLP, depth 3": _over([chain(3)], VECTORS, "gaussian"),
    "Gaussian MLP, depth 12": _over([chain(12)], VECTORS, "gaussian"),
    "orthogonal residual blocks, mixed": _over(
        [blocks(n, mixed=True) for n in (1, 3, 5)], RESIDUAL
    ),
    "orthogonal residual blocks, x + f(x)": _over(
        [blocks(n, mixed=False) for n in (1, 3, 5)], RESIDUAL
    ),
    "one attention block, 1 or 2 heads": (*_attention(1), *_attention(2)),
    "one attention block, 4 heads": _attention(4),
    "ConvNet, two convolutions": _over([max_pooled], IMAGES, "orthogonal", **SHORT),
    "ConvNet, three convolutions": _over([conv_net], IMAGES, "orthogonal", **SHORT),
    "Gaussian ConvNet, two convolutions": _over(
        [max_pooled], IMAGES, "gaussian", **SHORT
    ),
    "Gaussian ConvNet, three convolutions": _over(
        [conv_net], IMAGES, "gaussian", **SHORT
    ),
    "one pre-norm block": tuple(
        Case(transformer(1), SEQUENCE, "gelu_exact", seed=seed) for seed in SEEDS
    ),
    "four pre-norm blocks": tuple(
        Case(transformer(4), SEQUENCE, "gelu_exact", seed=seed) for seed in SEEDS
    ),
}
"""Name → networks."""
