"""What will happen to the parameters, and what the last step did: pure functions."""

from manifold_optax.diagnostics._collect import collect, FIELDS
from manifold_optax.diagnostics._describe import describe, DescribedLeaf, Description
from manifold_optax.diagnostics._residual import residual

__all__ = (
    "FIELDS",
    "DescribedLeaf",
    "Description",
    "collect",
    "describe",
    "residual",
)
