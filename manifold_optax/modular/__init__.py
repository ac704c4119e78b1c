"""Modular manifolds: a network as an expression, and the shares of its parameters.

A module is put together from atoms (parameters) and bonds (maps without parameters) by
composition, sums and tuples. Its shares divide one learning rate among the parameters,
so that a step changes the output of the network by the learning rate at most.
"""

from manifold_optax.modular._expression import (
    Bond,
    compose,
    Composition,
    Concat,
    Identity,
    Module,
    Sum,
)
from manifold_optax.modular._factors import Factor, factors
from manifold_optax.modular._modular_norm import modular_norm
from manifold_optax.modular._module import (
    Atom,
    atoms,
    mass,
    repeats,
    residual,
    sensitivities,
    sensitivity,
    shares,
)
from manifold_optax.modular._repeat import Repeat
from manifold_optax.modular._tare import map_atoms, tare

__all__ = (
    "Atom",
    "Bond",
    "Composition",
    "Concat",
    "Factor",
    "Identity",
    "Module",
    "Repeat",
    "Sum",
    "atoms",
    "compose",
    "factors",
    "map_atoms",
    "mass",
    "modular_norm",
    "repeats",
    "residual",
    "sensitivities",
    "sensitivity",
    "shares",
    "tare",
)
