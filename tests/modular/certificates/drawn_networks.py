"""Random networks of known kinds of weights, each with a set of inputs.

Their weights leave the unit balls, unlike those of `modular.networks`: a certificate
on live parameters has to follow them.
"""

import dataclasses
import math

import jax
import numpy as np
from jax import numpy as jnp

from modular.certificates.domains import Ball, Domain, EntryBox, Everything, Tokens
from modular.layers import Draw
from modular.networks import FAMILIES, network_of, RandomNetwork

WEIGHTS = ("orthogonal", "gaussian", "stretched", "mixed")
ACTIVATIONS = (
    "relu",
    "gelu_tanh",
    "gelu_exact",
    "silu",
    "tanh",
    "leaky_relu",
    "softplus",
)

EXAMPLES = 2
"""Examples in every input, so that none is taken for a position."""


@dataclasses.dataclass(frozen=True)
class WeightDraw(Draw):
    """Draws weights of one kind.

    Attributes:
        weights: "orthogonal": all singular values 1; "gaussian": entries of variance
            1/fan_in; "stretched": 1.5 times orthogonal; "mixed": each matrix one of
            them, a few of them zero.
    """

    weights: str = "orthogonal"

    def matrix(self, fan_in: int, fan_out: int) -> np.ndarray:
        kind = self.weights
        if kind == "mixed":
            kind = self.one_of(*["orthogonal", "gaussian", "stretched"] * 3, "zero")
        drawn = self.rng.normal(size=(fan_in, fan_out))
        if kind == "zero":
            return np.zeros_like(drawn)
        if kind == "gaussian":
            return drawn / math.sqrt(fan_in)
        left, _, right = np.linalg.svd(drawn, full_matrices=False)
        return (1.5 if kind == "stretched" else 1.0) * left @ right


@dataclasses.dataclass(frozen=True)
class Declared:
    """A network and the set of its inputs.

    Attributes:
        network: the network, with `EXAMPLES` examples in its input.
        domain: the set.
        classes: the features of the output if it has one position, else `None`.
    """

    network: RandomNetwork
    domain: Domain
    classes: int | None

    @property
    def description(self) -> str:
        return f"{self.network.description}, inputs in {self.domain}"


def declared_network(seed: int) -> Declared:
    """The network of a seed; its family is `FAMILIES[seed % 5]`."""
    rng = np.random.default_rng([13, seed])
    family = FAMILIES[seed % len(FAMILIES)]
    some = tuple(str(name) for name in rng.choice(ACTIVATIONS, 2, replace=False))
    draw = WeightDraw(
        rng=rng,
        orthogonal=1.0,
        biases=bool(rng.random() < 0.5),
        bias_size=float(rng.choice([0.1, 1.0])),
        activations=some[: int(rng.integers(1, 3))],
        weights=WEIGHTS[seed // len(FAMILIES) % len(WEIGHTS)],
    )
    network = network_of(family, draw)
    x = jnp.concatenate([network.inputs[0][:1]] * EXAMPLES)
    network = dataclasses.replace(network, inputs=(x,))
    out = jax.eval_shape(network.forward, network.params, x)
    return Declared(
        network=network,
        domain=_domain(draw, family, x.shape),
        classes=out.shape[-1] if out.ndim == 2 else None,
    )


def _domain(draw: Draw, family: str, shape: tuple[int, ...]) -> Domain:
    """Attention has no constant without bounds on its tokens."""
    like = jax.ShapeDtypeStruct(shape, np.float32)
    needs_tokens = family in ("attention", "mixture")
    kinds = ("box", "tokens") if needs_tokens else ("box", "tokens", "ball", "all")
    kind = draw.one_of(*kinds)
    size = draw.one_of(0.3, 1.0, 2.0)
    if kind == "box":
        low, high = draw.one_of((0.0, 1.0), (-1.0, 1.0), (-size, 2 * size))
        return EntryBox(like, low, high)
    if kind == "tokens":
        return Tokens(like, size)
    if kind == "ball":
        return Ball(like, size, draw.one_of(0.0, 0.5))
    return Everything(like, size)
