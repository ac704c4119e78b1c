"""What will happen to the parameters, and what the last step did: pure functions."""

from manifold_optax.diagnostics._collect import collect, FIELDS
from manifold_optax.diagnostics._describe import describe, DescribedLeaf, Description
from manifold_optax.diagnostics._measures import (
    angle,
    COUNTS,
    MEASURES,
    MonitorInfo,
    OF_WEIGHTS,
    orthogonality_error,
    rms,
    stable_rank,
)
from manifold_optax.diagnostics._residual import residual
from manifold_optax.diagnostics._write import write

__all__ = (
    "COUNTS",
    "FIELDS",
    "MEASURES",
    "OF_WEIGHTS",
    "DescribedLeaf",
    "Description",
    "MonitorInfo",
    "angle",
    "collect",
    "describe",
    "orthogonality_error",
    "residual",
    "rms",
    "stable_rank",
    "write",
)
