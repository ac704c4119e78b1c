"""What each parameter of a model is: its label, and its axes as a matrix."""

from manifold_optax.roles._names import role_by_name
from manifold_optax.roles._report import LabelReport, ReadRoles, UseReport
from manifold_optax.roles._role import (
    EMBEDDING,
    MATRIX,
    NOT_MATRICES,
    OTHER,
    READOUT,
    Role,
    ROUTER,
    VECTOR,
)
from manifold_optax.roles._roles import Roles, roles

__all__ = (
    "EMBEDDING",
    "MATRIX",
    "NOT_MATRICES",
    "OTHER",
    "READOUT",
    "ROUTER",
    "VECTOR",
    "LabelReport",
    "ReadRoles",
    "Role",
    "Roles",
    "UseReport",
    "role_by_name",
    "roles",
)
