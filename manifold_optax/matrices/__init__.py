"""Leaves ↔ stacks of matrices: view, plan, map.

`map_matrices` is the only way of a transformation into the matrices of a tree.
"""

from manifold_optax.matrices._map import map_matrices, per_matrix, plan_matrices
from manifold_optax.matrices._plan import Placement, Plan
from manifold_optax.matrices._view import (
    Axes,
    joined,
    LAST_TWO,
    normalized_axis,
    Split,
    split_axis,
    View,
    views_of,
)

__all__ = (
    "LAST_TWO",
    "Axes",
    "Placement",
    "Plan",
    "Split",
    "View",
    "joined",
    "map_matrices",
    "normalized_axis",
    "per_matrix",
    "plan_matrices",
    "split_axis",
    "views_of",
)
