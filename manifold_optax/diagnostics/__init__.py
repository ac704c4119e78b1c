"""What will happen to the parameters, and what the last step did: pure functions."""

from manifold_optax.diagnostics._collect import collect, FIELDS
from manifold_optax.diagnostics._describe import describe, Description, LabelledLeaf

__all__ = (
    "FIELDS",
    "Description",
    "LabelledLeaf",
    "collect",
    "describe",
)
