"""The compared optimizers: a direction for each matrix, and how far to step in it."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import get_args, Literal, TypeAlias

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
]
OPTIMIZER_NAMES: tuple[OptimizerName, ...] = get_args(OptimizerName)
BUDGETS = ("nominal", "derived", "measured")

# Least RMS of what enters a norm layer, for the derived budget of the transformer. Its
# stream begins with rows of RMS 1. Without a floor a norm layer has the slope 1/√ε.
_FLOOR = 0.5

# Rate of AdamW for embedding and readout beside Muon: the best one of AdamW on the same
# text in docs/lm_shakespeare.md. It does not change with the rate of Muon.
_OTHERS_RATE = 0.008

Lengths: TypeAlias = Mapping[str, np.ndarray]
"""Name of a parameter → factors of its steps, which broadcast with it."""


@functools.cache
def reading(network: Network) -> mo.modular.Network:
    """Returns the network as it is read from its computation."""
    params = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32)
        for name, shape in network.shapes.items()
    }
    return mo.modular.read(network.apply, params, inputs_like(network), floor=_FLOOR)


def inputs_like(network: Network) -> jax.ShapeDtypeStruct:
    """Returns the shape of a small batch; no number depends on it."""
    if network.family == "transformer":
        return jax.ShapeDtypeStruct((2, 8), jnp.int32)
    return jax.ShapeDtypeStruct((2, network.inputs), jnp.float32)


def direction(
    optimizer: OptimizerName, network: Network
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer at the learning rate 1; budgets with the shares 1.

    The update is linear in the learning rate and in the shares, so that both may be
    arrays of a compiled program: `optimizer_lengths` has the shares.

    Muon has all matrices of a perceptron, and the inner ones of the transformer. There
    AdamW has embedding and readout, at the same rate for the rule "rms", which makes
    rates comparable, and at a fixed one for the other rules.
    """
    if optimizer == "adamw":
        return optax.with_extra_args_support(optax.adamw(1.0))
    module = reading(network)
    if optimizer in BUDGETS:
        nominal = mo.modular.budget(module)
        ones = {path: (1.0,) * len(own) for path, own in nominal.shares.items()}
        return mo.modular.modular_optimizer(
            module,
            1.0,
            budget=dataclasses.replace(nominal, shares=ones),
            schedule=mo.linalg.JORDAN,
        )
    rule = optimizer.removeprefix("muon_")
    muon = mo.muon(1.0, scale=rule, axes=module.roles)
    if network.family != "transformer":
        return muon
    return mo.hybrid(muon, others=optax.adamw(1.0), labels=module.roles)


def budget_of(
    optimizer: OptimizerName, network: Network, seed: int, batch: np.ndarray
) -> mo.modular.Budget:
    """Returns the budget of that name.

    Args:
        optimizer: One of `BUDGETS`.
        network: The network.
        seed: Of the parameters at which `"measured"` measures.
        batch: The inputs on which it does.
    """
    module = reading(network)
    if optimizer == "measured":
        return mo.modular.measured_budget(module, network.draw(seed), batch)
    return mo.modular.budget(module, sensitivity=optimizer)


def step_lengths(
    optimizer: OptimizerName,
    network: Network,
    rate: float,
    budget: mo.modular.Budget | None,
) -> dict[str, np.ndarray]:
    """Returns the factors of the updates of `direction`: learning rate times share."""
    lengths = {}
    for name, shape in network.shapes.items():
        length = np.float32(rate)
        if budget is not None:
            shares = np.asarray(budget.share(name), np.float32)
            inner = name not in ("first", "last")
            rest = (1,) * (len(shape) - 1)
            length = rate * (shares.reshape(-1, *rest) if inner else shares)
        elif _has_fixed_rate(optimizer, network, name):
            length = np.float32(_OTHERS_RATE)
        lengths[name] = np.asarray(length, np.float32)
    return lengths


def _has_fixed_rate(optimizer: str, network: Network, name: str) -> bool:
    beside_muon = network.family == "transformer" and name in ("first", "last")
    return beside_muon and optimizer in ("muon_none", "muon_width", "muon_spectral")
