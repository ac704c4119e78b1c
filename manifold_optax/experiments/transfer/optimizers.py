"""The compared optimizers: a direction for each matrix, and how far to step in it."""

import dataclasses
import functools
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

import manifold_optax as mo
from manifold_optax.experiments.transfer.networks import Network

OptimizerName: TypeAlias = Literal[
    "adamw",
    "muon_none",
    "muon_width",
    "muon_spectral",
    "muon_rms",
    "nominal",
    "derived",
    "measured",
    "tared",
]
Direction: TypeAlias = Literal["adamw", "muon", "modular"]
Factors: TypeAlias = dict[str, np.ndarray]
"""Name of a parameter → factors of its updates, which broadcast with it."""

# Least RMS of what enters a norm layer, for the derived budget of the transformer. Its
# stream begins with rows of RMS 1. Without a floor a norm layer has the slope 1/√ε.
_FLOOR = 0.5

# Mass of the inner matrices together, for "tared"; first and last have 1 each, as in
# T. Large et al. (arXiv:2405.14813) and their library modula.
_INNER_MASS = 5.0
_INNER = "inner|query|key|value|output|up|down"

# Rate of AdamW for embedding and readout beside Muon: the best one of AdamW on the same
# text in docs/lm_shakespeare.md. It does not change with the rate of Muon.
_OTHERS_RATE = 0.008


@functools.cache
def reading(network: Network) -> mo.modular.Network:
    """Returns the network as it is read from its computation."""
    struct = lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    params = {name: struct(shape) for name, shape in network.shapes.items()}
    inputs = struct((2, network.inputs))
    if network.family == "transformer":
        inputs = jax.ShapeDtypeStruct((2, 8), jnp.int32)
    return mo.modular.read(network.apply, params, inputs, floor=_FLOOR)


def direction_of(optimizer: OptimizerName) -> Direction:
    """Returns what an optimizer shares with those that differ from it in factors."""
    if optimizer == "adamw":
        return "adamw"
    return "muon" if optimizer.startswith("muon") else "modular"


def build(
    direction: Direction, network: Network
) -> optax.GradientTransformationExtraArgs:
    """Returns optimizers at the learning rate 1, shares 1 and no factor of the shape.

    Their updates are linear in these numbers, which may therefore be arrays of a
    compiled program: see `budget_factors` and `plain_factors`. Muon has all matrices of
    a perceptron, and the inner ones of the transformer, where AdamW has embedding and
    readout. Heads are matrices of their own.
    """
    if direction == "adamw":
        return optax.with_extra_args_support(optax.adamw(1.0))
    module = reading(network)
    if direction == "muon":
        muon = mo.muon(1.0, scale="none", axes=module.roles)
        if network.family != "transformer":
            return muon
        return mo.hybrid(muon, others=optax.adamw(1.0), labels=module.roles)
    nominal = mo.modular.budget(module)
    ones = {path: (1.0,) * len(own) for path, own in nominal.shares.items()}
    return mo.modular.modular_optimizer(
        module,
        1.0,
        budget=dataclasses.replace(nominal, shares=ones),
        schedule=mo.linalg.JORDAN,
    )


def budget_of(
    optimizer: OptimizerName,
    network: Network,
    at: tuple[int, np.ndarray | jax.Array] | None,
) -> mo.modular.Budget:
    """Returns a budget by its name.

    Args:
        optimizer: `"nominal"`, `"derived"`, `"measured"` or `"tared"`. The last is the
            measured one where the mass of all inner matrices does not grow with their
            number; see `budget_factors`.
        network: The network.
        at: Seed of the parameters, and the batch, at which sensitivities are measured.
    """
    module = reading(network)
    if optimizer in ("measured", "tared"):
        assert at is not None
        seed, batch = at
        tare = {_INNER: _INNER_MASS} if optimizer == "tared" else None
        return mo.modular.measured_budget(
            module, network.draw(seed), batch, tare=tare, addition="worst"
        )
    assert optimizer in ("nominal", "derived")
    return mo.modular.budget(module, sensitivity=optimizer)


def budget_factors(
    budget: mo.modular.Budget, network: Network, *, root: bool = False
) -> Factors:
    """Returns the shares: one number per layer of a stack.

    Args:
        budget: The budget.
        network: The network.
        root: Whether the squares of the changes of the output add up, as those of
            independent directions do, and not the changes. A layer with the part p of
            the mass then has √p of the learning rate in place of p.
    """
    factors = {}
    masses = {atom.path: atom.mass for atom in budget.atoms}
    total = sum(budget.masses.values())
    for name, shape in network.shapes.items():
        shares = np.asarray(budget.share(name))
        shares = shares * (total / masses[name]) ** 0.5 if root else shares
        shares = shares.astype(np.float32)
        stacked = name not in ("first", "last")
        rest = (1,) * (len(shape) - 1)
        factors[name] = shares.reshape(-1, *rest) if stacked else np.asarray(shares[0])
    return factors


def plain_factors(optimizer: OptimizerName, network: Network, rate: float) -> Factors:
    """Returns the factors, without the rate, of AdamW or of a rule of Muon.

    Beside Muon, embedding and readout of the transformer have the same rate for the
    rule `"rms"`, which makes rates comparable, and a fixed one for the others.
    """
    factors = {name: np.ones((), np.float32) for name in network.shapes}
    if optimizer == "adamw":
        return factors
    rule = optimizer.removeprefix("muon_")
    assert rule in ("none", "width", "spectral", "rms")
    tx = mo.scale_by_shape(rule, axes=reading(network).roles)
    for name, shape in network.shapes.items():
        if network.family == "transformer" and name in ("first", "last"):
            own = 1.0 if rule == "rms" else _OTHERS_RATE / rate
            factors[name] = np.asarray(own, np.float32)
            continue
        ones = {name: jnp.ones(shape)}
        scaled = jax.tree.leaves(tx.update(ones, tx.init(ones), ones)[0])[0]
        # One number: the matrices of a leaf have the same shape.
        factors[name] = np.asarray(scaled.max())
    return factors
