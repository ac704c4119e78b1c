"""The steepest direction of a manifold and a norm, as a transformation."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import optax
from jaxtyping import Array

from manifold_optax._checks import (
    require_flag,
    require_in_range,
    require_instance,
    require_params,
)
from manifold_optax._typing import ArrayTree, AxisName, Matrix
from manifold_optax.geometry import (
    certified_direction,
    Euclidean,
    Manifold,
    needs_whole,
    Norm,
    steepest_direction,
)
from manifold_optax.matrices import (
    AxesLike,
    map_matrices,
    per_matrix,
    Placement,
    Result,
)
from manifold_optax.transforms._flops import of_steepest
from manifold_optax.transforms._leaves import orientation_of, unit_map
from manifold_optax.transforms._stage import Stage, staged
from manifold_optax.transforms._start import check_layout, start
from manifold_optax.trees import fill_absent


class SteepestState(NamedTuple):
    """State of `steepest` with a certificate."""

    gap: ArrayTree
    """Relative gap, an upper bound of what the last direction lost, in [0, 1]; float32
    `[*batch]` (`[*batch, blocks]` for a `Split`); 1 before the first update."""


def steepest(
    manifold: Manifold,
    norm: Norm,
    *,
    certify: bool = False,
    tolerance: float | None = None,
    axes: AxesLike = None,
    placement: Placement | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Replaces each update by the steepest unit tangent direction.

    On a manifold of size `s` the direction has the length `s` in the norm, so that the
    learning rate is the length of the step in units of `s`.

    Args:
        manifold: the constraint of every leaf.
        norm: the norm of a step.
        certify: whether to keep in the state how much the direction loses at most. Only
            directions that are searched for have a certificate; all others are exact.
        tolerance: relative gap at which the solver stops, in (0, 1); `None`: after a
            fixed number of steps. `Stiefel` under `Spectral` and `RmsToRms` takes one.
        axes: which axes of a leaf are the matrix; all others are batch axes.
        placement: which device computes which matrix; `None`: see `map_matrices`.
            Pairs whose direction wants whole matrices (those with Spectral, RmsToRms
            and PNorm, but for the Euclidean space and Stiefel × Spectral) are never
            split: they are `owned` instead.

    Returns:
        A transformation without state, or with `SteepestState` under `certify`; it
        needs `params` unless the manifold is Euclidean.
        Its inner product with the incoming update is ≥ 0. An update without a tangent
        part gives 0.

    Raises:
        TypeError: if `manifold` or `norm` is of another kind.
        ValueError: for a pair without a known direction (the message prints the table),
            without a certificate, or whose solver cannot stop at a `tolerance`; at init
            and update, if `params` is missing or a leaf is not a batch of matrices.

    Example:
        >>> tx = steepest(Euclidean(), Max())
        >>> updates = {"w": jnp.array([[0.5, -3.0]])}
        >>> tx.update(updates, tx.init(updates))[0]
        {'w': Array([[ 1., -1.]], dtype=float32)}

    Source: the table of J. Bernstein, "Modular Manifolds", Thinking Machines Lab
    (2025).
    """
    check_layout(axes, placement)
    direction = _direction(manifold, norm, tolerance, certify=certify)
    flat, given = isinstance(manifold, Euclidean), placement
    if placement is not None and needs_whole(manifold, norm):
        placement = placement.whole()
    orientation = orientation_of(manifold.transposable and norm.transposable)
    returns: tuple[Result, ...] = ("matrix", "number") if certify else ("matrix",)

    def kernel(update: Matrix, *point: Matrix, axis_name: AxisName = None) -> Any:
        base = point[0] if point else update
        return direction(base, update, axis_name=axis_name)

    steepest_all = unit_map(
        kernel,
        manifold,
        axes=axes,
        placement=placement,
        orientation=orientation,
        returns=returns,
        flops=of_steepest(manifold, norm),
    )

    map_flat = functools.partial(
        map_matrices,
        kernel,
        axes=axes,
        orientation=orientation,
        placement=placement,
    )

    def state_of(params: ArrayTree) -> Any:
        if not certify:
            return optax.EmptyState()
        return SteepestState(per_matrix(params, 1.0, axes=axes))

    init_fn = start(
        "steepest", axes, placement=placement, manifold=manifold, state=state_of
    )

    def update_fn(
        updates: ArrayTree, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[ArrayTree, Any]:
        del extra_args
        if flat:
            return map_flat((updates,)), state
        require_params(params, f"steepest({manifold}, {norm})")
        found = steepest_all((updates,), (params,), like=updates)
        if not certify:
            return found, state
        return found[0], known(state, found[1:])

    def known(old: Any, numbers: Sequence[ArrayTree]) -> Any:
        return SteepestState(fill_absent(numbers[0], old.gap)) if certify else old

    stage = Stage(
        name=f"steepest({manifold}, {norm})",
        kernel=kernel,
        returns=returns,
        in_units=not flat,
        orientation=orientation,
        whole=needs_whole(manifold, norm),
        manifold=None if flat else manifold,
        axes=axes,
        placement=given,
        flops=of_steepest(manifold, norm),
        state=known,
    )
    return staged(init_fn, update_fn, stage)


def _direction(
    manifold: Manifold, norm: Norm, tolerance: float | None, *, certify: bool
) -> Any:
    """The pure direction of checked arguments, `(direction, gap)` under `certify`."""
    require_instance("manifold of steepest", manifold, Manifold)
    require_instance("norm of steepest", norm, Norm)
    require_flag("certify", certify)
    require_in_range("tolerance", tolerance, "(0, 1)", optional=True)
    if not certify and tolerance is None:
        return steepest_direction(manifold, norm)
    solve = certified_direction(manifold, norm, tolerance=tolerance)

    def direction(
        point: Matrix, gradient: Matrix, axis_name: AxisName = None
    ) -> Matrix | tuple[Array, Array]:
        found = solve(point, gradient, axis_name=axis_name)
        if not certify:
            return found.direction
        assert found.gap is not None
        return found.direction, found.gap

    return direction
