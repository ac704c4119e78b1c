"""Scale of an update by the size of the manifold at its parameter."""

from typing import Any

import optax

from manifold_optax._checks import require_instance, require_params
from manifold_optax._typing import ArrayTree, AxisName, Matrix
from manifold_optax.geometry import Manifold
from manifold_optax.matrices import AxesLike
from manifold_optax.matrices._blocks import view_leaves
from manifold_optax.transforms._flops import of_entries
from manifold_optax.transforms._leaves import multiply_leaves, sizes_at
from manifold_optax.transforms._stage import Stage, staged
from manifold_optax.transforms._start import start


def scale_by_size(
    manifold: Manifold, *, axes: AxesLike = None
) -> optax.GradientTransformationExtraArgs:
    """Multiplies each update by the size of `manifold` at its parameter.

    After a direction of length 1 it makes the learning rate a step in units of the
    size, as `steepest` does by itself. For `Sphere("kept")` the size is the Frobenius
    norm of the parameter, so that steps are relative to the weights.

    Args:
        manifold: whose radius or scale.
        axes: which axes of a leaf are the matrix; all others are batch axes.

    Returns:
        A stateless transformation that needs `params`; updates keep their dtype. The
        norm of a zero matrix is 0, and so is its update then.

    Raises:
        ValueError: at update, if `params` is None or a leaf is not a batch of matrices.

    Example:
        >>> tx = scale_by_size(Sphere("kept"))
        >>> params = {"w": jnp.array([[3.0, 4.0]])}
        >>> updates = {"w": jnp.array([[1.0, 0.0]])}
        >>> tx.update(updates, tx.init(params), params)[0]
        {'w': Array([[5., 0.]], dtype=float32)}
    """
    require_instance("manifold of scale_by_size", manifold, Manifold)

    def update_fn(
        updates: ArrayTree, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[ArrayTree, Any]:
        del extra_args
        require_params(params, "scale_by_size")
        sizes = sizes_at(manifold, updates, params, view_leaves(updates, axes))
        return multiply_leaves(updates, sizes, like=updates), state

    stage = Stage(
        name="scale_by_size",
        kernel=_as_it_is,
        returns=("matrix",),
        in_units=True,
        orientation="either",
        whole=False,
        manifold=manifold,
        axes=axes,
        placement=None,
        placed=False,
        flops=of_entries,
    )
    return staged(start("scale_by_size", axes, planned=False), update_fn, stage)


def _as_it_is(update: Matrix, point: Matrix, axis_name: AxisName = None) -> Matrix:
    """In units of the size there is nothing to do."""
    del point, axis_name
    return update
