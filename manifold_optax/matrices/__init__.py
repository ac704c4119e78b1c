"""Leaves ↔ stacks of matrices: view, plan, map.

`map_matrices` is the only way of a transformation into the matrices of a tree.
"""

from manifold_optax.matrices._blocks import view_leaves, Views
from manifold_optax.matrices._kernel import Result
from manifold_optax.matrices._map import map_matrices, map_views, plan_matrices
from manifold_optax.matrices._per_matrix import per_matrix
from manifold_optax.matrices._plan import Orientation, Placement, Plan
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
    joined_numbers,
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
    "Orientation",
    "Placement",
    "Plan",
    "Result",
    "Split",
    "View",
    "Views",
    "axes_at",
    "check_axes",
    "check_matrices",
    "is_concrete",
    "joined",
    "joined_numbers",
    "map_matrices",
    "map_views",
    "normalized_axis",
    "per_matrix",
    "plan_matrices",
    "split_axis",
    "view_leaves",
    "views_of",
)
