"""Projection of updates onto the tangent space at the parameters."""

from typing import Any

import optax

from manifold_optax._checks import require_instance, require_params
from manifold_optax._typing import ArrayTree, AxisName, Matrix
from manifold_optax.geometry import Manifold
from manifold_optax.matrices import AxesLike, Placement
from manifold_optax.transforms._leaves import orientation_of, unit_map
from manifold_optax.transforms._stage import Stage, staged
from manifold_optax.transforms._start import check_layout, start


def tangent_project(
    manifold: Manifold,
    *,
    axes: AxesLike = None,
    placement: Placement | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Projects each update onto the tangent space of `manifold` at the parameter.

    The projection is orthogonal in the Frobenius inner product; at the boundary of a
    `Ball` or `Band` it keeps what a step against the update may do. After a momentum
    it also transports the average to the current tangent space.

    Args:
        manifold: the constraint of every leaf.
        axes: which axes of a leaf are the matrix; all others are batch axes.
        placement: which device computes which matrix; `None`: see `map_matrices`.

    Returns:
        A stateless transformation that needs `params`. Updates leave in the dtype in
        which they came; computed in at least float32.

    Raises:
        ValueError: at update, if `params` is None or a leaf is not a batch of matrices.

    Example:
        >>> tx = optax.chain(optax.trace(0.9), tangent_project(Stiefel()))

    Source: Absil, Mahony, Sepulchre (2008), section 3.6.1.
    """
    require_instance("manifold of tangent_project", manifold, Manifold)
    check_layout(axes, placement)
    unit = manifold.unit()

    def kernel(update: Matrix, point: Matrix, axis_name: AxisName = None) -> Matrix:
        # The step goes against the update, which matters to the tangent cone of a set
        # with a boundary.
        return -unit.to_tangent(point, -update, axis_name=axis_name)

    project_all = unit_map(kernel, manifold, axes=axes, placement=placement)

    def update_fn(
        updates: ArrayTree, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[ArrayTree, Any]:
        del extra_args
        require_params(params, "tangent_project")
        # A tangent space is the same at all sizes: the update is not scaled.
        return project_all((updates,), (params,), like=None), state

    stage = Stage(
        name="tangent_project",
        kernel=kernel,
        returns=("matrix",),
        in_units=False,
        orientation=orientation_of(manifold.transposable),
        whole=False,
        manifold=manifold,
        axes=axes,
        placement=placement,
    )
    return staged(
        start("tangent_project", axes, placement=placement, manifold=manifold),
        update_fn,
        stage,
    )
