"""Retractions: updates that land on a manifold; and the projection of whole trees."""

from typing import Any

import jax.numpy as jnp
import optax

from manifold_optax._checks import require_instance, require_params
from manifold_optax._typing import ArrayTree, AxisName, Matrix
from manifold_optax.geometry import Manifold, Stiefel
from manifold_optax.matrices import Axes, LAST_TWO, map_matrices, Placement
from manifold_optax.transforms._leaves import (
    divide_leaves,
    map_leaves,
    multiply_leaves,
    sizes_at,
)


def project(
    params: ArrayTree,
    manifold: Manifold,
    *,
    axes: Axes = LAST_TWO,
    placement: Placement | None = None,
) -> ArrayTree:
    """Nearest point of `manifold` for every matrix of a tree.

    For weights at the start of training, and for averages of weights (which leave the
    manifold) before they are evaluated.

    Args:
        params: tree of matrices.
        manifold: the constraint of every leaf.
        axes: which axes of a leaf are the matrix; all others are batch axes.
        placement: which device computes which matrix; `None`: see `map_matrices`.

    Returns:
        A tree like `params`, in its dtypes; computed in at least float32.

    Raises:
        ValueError, TypeError: for a leaf that is not a batch of real floating matrices.

    Example:
        >>> project({"w": jnp.array([[3.0, 4.0]])}, Sphere())
        {'w': Array([[0.6, 0.8]], dtype=float32)}
    """
    unit = manifold.unit()

    def kernel(point: Matrix, axis_name: AxisName = None) -> Any:
        return (unit.project(point, axis_name=axis_name),), ()

    sizes = sizes_at(manifold, params, params, axes)
    (points,), _ = map_matrices(
        kernel, (divide_leaves(params, sizes),), axes=axes, placement=placement
    )
    return multiply_leaves(points, sizes, like=params)


def retract(
    manifold: Manifold,
    *,
    axes: Axes = LAST_TWO,
    placement: Placement | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Replaces each update by the one that lands on `manifold` when it is added.

    Maps `update` to `R(param + update) − param`, where `R` is the projection of the
    manifold (for `Sphere("kept")` onto the sphere through `param`). It must be the last
    transformation that changes updates: whatever comes later undoes it. A zero update
    brings a parameter that is off the manifold back to it; to freeze a parameter use
    `optax.set_to_zero`, not a zero gradient.

    Args:
        manifold: the constraint of every leaf; mix constraints with `optax.partition`.
        axes: which axes of a leaf are the matrix; all others are batch axes.
        placement: which device computes which matrix; `None`: see `map_matrices`.

    Returns:
        A stateless transformation that needs `params`. Updates leave in the dtype of
        the parameter; computed in at least float32. Stored in bfloat16 the parameters
        stay on a Stiefel manifold only to about 3e-3. Where gradients have another
        dtype than parameters, wrappers that want one dtype on both sides
        (`optax.apply_if_finite`) need the gradients cast first.

    Raises:
        ValueError: at update, if `params` is None or a leaf is not a batch of matrices.

    Example:
        >>> tx = optax.chain(optax.sgd(0.1), retract(Sphere()))
        >>> params = {"w": jnp.array([[1.0, 0.0]])}
        >>> gradient = {"w": jnp.array([[0.0, -10.0]])}
        >>> updates, _ = tx.update(gradient, tx.init(params), params)
        >>> optax.apply_updates(params, updates)["w"].round(4)
        Array([[0.7071, 0.7071]], dtype=float32)

    Source: Absil, Mahony, Sepulchre (2008), section 4.1.
    """
    unit = manifold.unit()

    def kernel(update: Matrix, point: Matrix, axis_name: AxisName = None) -> Any:
        return (unit.retract(point, update, axis_name=axis_name) - point,), ()

    def update_fn(
        updates: ArrayTree, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[ArrayTree, Any]:
        del extra_args
        require_params(params, "retract")
        sizes = sizes_at(manifold, updates, params, axes)
        # Results come in the dtype of the first tree, which must hold a parameter's.
        updates = map_leaves(
            lambda _, u, p: u.astype(jnp.promote_types(u.dtype, p.dtype)),
            updates,
            params,
        )
        (steps,), _ = map_matrices(
            kernel,
            (divide_leaves(updates, sizes), divide_leaves(params, sizes)),
            axes=axes,
            placement=placement,
        )
        return multiply_leaves(steps, sizes, like=params), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update_fn)


def retract_polar(
    manifold: Stiefel | None = None,
    *,
    axes: Axes = LAST_TWO,
    placement: Placement | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Retraction onto the Stiefel manifold by the polar factor: `retract(Stiefel())`.

    `R(p + u)` is the matrix with equal singular values nearest to `p + u`, by a
    convergent, matmul-only iteration (`linalg.polar`); `u` need not be tangent.

    Args:
        manifold: `Stiefel(scale)`; `None`: scale 1.
        axes: which axes of a leaf are the matrix; all others are batch axes.
        placement: which device computes which matrix; `None`: see `map_matrices`.

    Returns:
        What `retract` returns.

    Raises:
        TypeError: for a manifold that is not `Stiefel` (`retract` takes all).
        ValueError: at update, as `retract` does.

    Example:
        >>> tx = optax.chain(dual_ascent_spectral(), optax.sgd(0.1), retract_polar())

    Source: Absil, Mahony, Sepulchre (2008), section 4.1.1.
    """
    manifold = Stiefel() if manifold is None else manifold
    require_instance("manifold of retract_polar", manifold, Stiefel)
    return retract(manifold, axes=axes, placement=placement)
