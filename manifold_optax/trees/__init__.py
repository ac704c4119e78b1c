"""Pytrees, without matrices: paths, patterns, absent leaves, boxes, maps over leaves.

Every argument of the library that takes a pattern of paths means the rule of `matches`.
"""

from manifold_optax.trees._leaves import (
    bare,
    boxed_like,
    fill_absent,
    map_leaves,
)
from manifold_optax.trees._paths import (
    is_absent,
    join_paths,
    leaf_path,
    leaves_by_path,
)
from manifold_optax.trees._patterns import check_pattern, matches

__all__ = (
    "bare",
    "boxed_like",
    "check_pattern",
    "fill_absent",
    "is_absent",
    "join_paths",
    "leaf_path",
    "leaves_by_path",
    "map_leaves",
    "matches",
)
