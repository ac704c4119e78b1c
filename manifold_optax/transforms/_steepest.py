"""The steepest direction of a manifold and a norm, as a transformation."""

from typing import Any

import optax

from manifold_optax._checks import require_params
from manifold_optax._typing import ArrayTree, AxisName, Matrix
from manifold_optax.geometry import (
    Euclidean,
    Manifold,
    needs_whole,
    Norm,
    steepest_direction,
)
from manifold_optax.matrices import Axes, LAST_TWO, map_matrices, Placement
from manifold_optax.matrices._plan import check_placement
from manifold_optax.transforms._leaves import orientation_of, unit_map


def steepest(
    manifold: Manifold,
    norm: Norm,
    *,
    axes: Axes = LAST_TWO,
    placement: Placement | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Replaces each update by the steepest unit tangent direction.

    On a manifold of size `s` the direction has the length `s` in the norm, so that the
    learning rate is the length of the step in units of `s`.

    Args:
        manifold: the constraint of every leaf.
        norm: the norm of a step.
        axes: which axes of a leaf are the matrix; all others are batch axes.
        placement: which device computes which matrix; `None`: see `map_matrices`.
            Pairs whose direction wants whole matrices (those with Spectral, RmsToRms
            and PNorm, but for the Euclidean space and Stiefel × Spectral) are never
            split: they are `owned` instead.

    Returns:
        A stateless transformation; it needs `params` unless the manifold is Euclidean.
        Its inner product with the incoming update is ≥ 0. An update without a tangent
        part gives 0.

    Raises:
        ValueError: for a pair without a known direction (the message prints the table);
            at update, if `params` is missing or a leaf is not a batch of matrices.

    Example:
        >>> tx = steepest(Euclidean(), Max())
        >>> updates = {"w": jnp.array([[0.5, -3.0]])}
        >>> tx.update(updates, tx.init(updates))[0]
        {'w': Array([[ 1., -1.]], dtype=float32)}

    Source: the table of J. Bernstein, "Modular Manifolds", Thinking Machines Lab
    (2025).
    """
    check_placement(placement)
    direction = steepest_direction(manifold, norm)
    flat = isinstance(manifold, Euclidean)
    if placement is not None and needs_whole(manifold, norm):
        placement = placement.whole()
    orientation = orientation_of(manifold.transposable and norm.transposable)

    def kernel(update: Matrix, *point: Matrix, axis_name: AxisName = None) -> Matrix:
        base = point[0] if point else update
        return direction(base, update, axis_name=axis_name)

    steepest_all = unit_map(
        kernel, manifold, axes=axes, placement=placement, orientation=orientation
    )

    def update_fn(
        updates: ArrayTree, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[ArrayTree, Any]:
        del extra_args
        if flat:
            found = map_matrices(
                kernel,
                (updates,),
                axes=axes,
                orientation=orientation,
                placement=placement,
            )
            return found, state
        require_params(params, f"steepest({manifold}, {norm})")
        return steepest_all((updates,), (params,), like=updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update_fn)
