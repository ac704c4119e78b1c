"""Leaves ↔ stacks of matrices: view, plan, map.

`map_matrices` is the only way of a transformation into the matrices of a tree. How a
leaf is a batch of matrices, in `_view`, `_blocks` and `_map.map_views`, is for the
floors above alone.
"""

from manifold_optax.matrices._axes import (
    Axes,
    AxesByPath,
    AxesLike,
    CONV,
    HEADS,
    HEADS_OUT,
    OUT_IN,
    Split,
    STACKED,
)
from manifold_optax.matrices._kernel import Result
from manifold_optax.matrices._map import map_matrices, plan_matrices
from manifold_optax.matrices._per_matrix import per_matrix
from manifold_optax.matrices._plan import Orientation, Placement, Plan

__all__ = (
    "CONV",
    "HEADS",
    "HEADS_OUT",
    "OUT_IN",
    "STACKED",
    "Axes",
    "AxesByPath",
    "AxesLike",
    "Orientation",
    "Placement",
    "Plan",
    "Result",
    "Split",
    "map_matrices",
    "per_matrix",
    "plan_matrices",
)
