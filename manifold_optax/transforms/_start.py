"""How a transformation of matrices starts: what does not fit is said at `init`."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from manifold_optax._typing import ArrayTree
from manifold_optax.diagnostics import residual
from manifold_optax.geometry import Ball, Band, Euclidean, Manifold
from manifold_optax.matrices import AxesLike, Placement
from manifold_optax.matrices._axes import check_axes_like
from manifold_optax.matrices._plan import check_placement
from manifold_optax.matrices._report import check_matrices, is_concrete
from manifold_optax.trees import bare, leaf_path

OFF_MANIFOLD = 0.1
"""Residual above which a weight counts as never projected. Weights stored in bfloat16
are off by 5e-3 at most in our tests, a kernel of Flax's default initializer by 0.9."""


def start(
    name: str,
    axes: AxesLike,
    *,
    placement: Placement | None = None,
    manifold: Manifold | None = None,
    planned: bool = True,
    state: Callable[[ArrayTree], Any] = optax.init_empty_state,
) -> Any:
    """The `init` of a transformation of matrices.

    Args:
        name: of the transformation, for messages and for `describe`.
        axes: which axes of a leaf are the matrix.
        placement: which device computes which matrix.
        manifold: on which concrete parameters must lie; `None`: anywhere.
        planned: whether the transformation stacks and places the matrices.
        state: parameters → state.

    Returns:
        `params -> state`. It raises ValueError or TypeError, naming the leaf, for
        leaves that are not matrices, and ValueError for weights off their manifold.

    Raises:
        TypeError: for `axes` or a `placement` of another kind.
    """
    check_layout(axes, placement)

    def init_fn(params: ArrayTree) -> Any:
        check_matrices(name, params, axes, placement=placement, planned=planned)
        if manifold is not None and not _is_anywhere(manifold):
            _check_points(name, params, manifold, axes)
        return state(params)

    return init_fn


def check_layout(axes: Any, placement: Any = None) -> None:
    """Raises TypeError for `axes` or a `placement` of another kind.

    For functions that use them before they make their `start`, or make none.
    """
    check_axes_like(axes)
    check_placement(placement)


def _is_anywhere(manifold: Manifold) -> bool:
    """Whether training may start at any point: inside of a set, or at any radius."""
    return isinstance(manifold, Euclidean | Ball | Band) or manifold.size == "kept"


def _check_points(
    name: str, params: ArrayTree, manifold: Manifold, axes: AxesLike
) -> None:
    """Raises ValueError for a weight off its manifold, as far as weights are known."""
    for keys, leaf in jax.tree_util.tree_leaves_with_path(bare(params)):
        path = leaf_path(keys)
        # Weights that a jitted function closes over are known while it is traced. One
        # at a time: together they may not fit on one device.
        with jax.ensure_compile_time_eval():
            here = {path: _on_one_device(leaf)}
            found = residual(here, manifold, axes=axes)[path]
        worst = 0.0 if found is None else float(np.max(np.asarray(found), initial=0))
        # Not finite weights are another fault, which the first update shows.
        if OFF_MANIFOLD < worst < float("inf"):
            raise ValueError(
                f"The parameter {path!r} is not on {manifold}, which {name} "
                f"needs: its residual is {worst:.2g}. Project the parameters first: "
                f"params = mo.project(params, mo.{manifold}, axes=...). A zero matrix "
                "(on mo.Stiefel, one of deficient rank) cannot be projected: "
                "initialise it otherwise."
            )


def _on_one_device(leaf: Any) -> Any:
    """A concrete leaf as it is, or gathered; `None` for one that is not known here."""
    if not is_concrete(leaf) or not leaf.is_fully_addressable:
        return None
    if len(leaf.sharding.device_set) == 1:
        return leaf
    return jax.numpy.asarray(jax.device_get(leaf))
