"""Lipschitz constants, growth and ranges of scalar functions."""

from manifold_optax.modular._scalar._expression import (
    constant,
    Expression,
    IDENTITY,
    Operand,
    Ref,
    Step,
)
from manifold_optax.modular._scalar._facts import analyse, ScalarFacts
from manifold_optax.modular._scalar._write import apply

__all__ = [
    "IDENTITY",
    "Expression",
    "Operand",
    "Ref",
    "ScalarFacts",
    "Step",
    "analyse",
    "apply",
    "constant",
]
