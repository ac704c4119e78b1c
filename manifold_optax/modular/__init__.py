"""Modular manifolds: a network as it is read, and the shares of its parameters.

`read` traces a function and finds what each parameter is and how it reaches the output.
`budget` shares one learning rate among the parameters, so that a step changes the
output by the learning rate at most; `modular_optimizer` takes such steps. The algebra
behind it can be written by hand, too: atoms (parameters) and bonds (maps without
parameters), put together by composition, sums and tuples.
"""

from manifold_optax.modular._algebra._expression import (
    Bond,
    compose,
    Composition,
    Concat,
    Identity,
    Module,
    Sum,
)
from manifold_optax.modular._algebra._factors import Factor, factors
from manifold_optax.modular._algebra._modular_norm import modular_norm
from manifold_optax.modular._algebra._module import (
    Atom,
    atoms,
    mass,
    repeats,
    residual,
    sensitivities,
    sensitivity,
    shares,
)
from manifold_optax.modular._algebra._repeat import Repeat
from manifold_optax.modular._algebra._tare import map_atoms, tare
from manifold_optax.modular._bounds._mixed_norm import mixed_norm, MixedNorm
from manifold_optax.modular._bounds._number import largest, smallest
from manifold_optax.modular._bounds._sizes import Move, Rule, Sizes, Unreadable
from manifold_optax.modular._budgets._budget import Budget, budget, ReadModule
from manifold_optax.modular._budgets._measured import measured_budget
from manifold_optax.modular._budgets._optimizer import (
    modular_optimizer,
    project_parameters,
)
from manifold_optax.modular._budgets._scale import scale_by_modular_budget
from manifold_optax.modular._certificates._certificate import Certificate, certificate
from manifold_optax.modular._certificates._domains import Box, L2Ball, RmsBall
from manifold_optax.modular._certificates._lipschitz import (
    change_bound,
    lipschitz_bound,
)
from manifold_optax.modular._certificates._local_bound import local_lipschitz_bound
from manifold_optax.modular._certificates._radius import certified_radius
from manifold_optax.modular._computation._declare import declare
from manifold_optax.modular._network import Network
from manifold_optax.modular._primitives import register_rule
from manifold_optax.modular._read import read

__all__ = (
    "Atom",
    "Bond",
    "Box",
    "Budget",
    "Certificate",
    "Composition",
    "Concat",
    "Factor",
    "Identity",
    "L2Ball",
    "MixedNorm",
    "Module",
    "Move",
    "Network",
    "ReadModule",
    "Repeat",
    "RmsBall",
    "Rule",
    "Sizes",
    "Sum",
    "Unreadable",
    "atoms",
    "budget",
    "certificate",
    "certified_radius",
    "change_bound",
    "compose",
    "declare",
    "factors",
    "largest",
    "lipschitz_bound",
    "local_lipschitz_bound",
    "map_atoms",
    "mass",
    "measured_budget",
    "mixed_norm",
    "modular_norm",
    "modular_optimizer",
    "project_parameters",
    "read",
    "register_rule",
    "repeats",
    "residual",
    "scale_by_modular_budget",
    "sensitivities",
    "sensitivity",
    "shares",
    "smallest",
    "tare",
)
