"""Leaves ↔ stacks of matrices: view, plan, map.

`map_matrices` is the only way of a transformation into the matrices of a tree.
"""

from manifold_optax.matrices._map import map_matrices, per_matrix, plan_matrices
from manifold_optax.matrices._plan import Placement, Plan
from manifold_optax.matrices._report import check_matrices, is_concrete, MatrixReport
from manifold_optax.matrices._view import (
    Axes,
    axes_at,
    AxesByPath,
    AxesLike,
    check_axes,
    CONV,
    HEADS,
    HEADS_OUT,
    joined,
    normalized_axis,
    OUT_IN,
    Split,
    split_axis,
    STACKED,
    View,
    views_of,
)

__all__ = (
    "CONV",
    "HEADS",
    "HEADS_OUT",
    "OUT_IN",
    "STACKED",
    "Axes",
    "AxesByPath",
    "AxesLike",
    "MatrixReport",
    "Placement",
    "Plan",
    "Split",
    "View",
    "axes_at",
    "check_axes",
    "check_matrices",
    "is_concrete",
    "joined",
    "map_matrices",
    "normalized_axis",
    "per_matrix",
    "plan_matrices",
    "split_axis",
    "views_of",
)
