"""Retractions: updates that land on a manifold."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int32

from manifold_optax._checks import (
    require_floating,
    require_instance,
    require_params,
    require_present,
    require_static_steps,
)
from manifold_optax._typing import ArrayTree, AxisName, Matrix
from manifold_optax.geometry import Ball, Band, DiagonalGram, Manifold, Stiefel
from manifold_optax.matrices import AxesLike, Placement
from manifold_optax.transforms._flops import of_retraction
from manifold_optax.transforms._leaves import unit_map
from manifold_optax.transforms._start import check_layout, start
from manifold_optax.trees import map_leaves


class RetractState(NamedTuple):
    """State of `retract`, where it depends on time."""

    count: Int32[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    """Number of updates so far."""


def retract(
    manifold: Manifold,
    *,
    every: int = 1,
    factor: Callable[[Any], Any] | None = None,
    axes: AxesLike = None,
    placement: Placement | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Replaces each update by the one that lands on `manifold` when it is added.

    Maps `update` to `R(param + update) − param`, where `R` is the projection of the
    manifold (for `Sphere("kept")` onto the sphere through `param`). It must be the last
    transformation that changes updates: whatever comes later undoes it. A zero update
    brings a parameter that is off the manifold back to it; to freeze a parameter use
    `optax.set_to_zero`, not a zero gradient. With a set that has an inside, such as
    `Ball(norm, radius)`, it clips after the step (the hard counterpart of
    `shrink_norm`).

    Args:
        manifold: the constraint of every leaf; mix constraints with `optax.partition`.
        every: retract the updates number `every`, `2·every`, … only, and let the others
            pass; a static int ≥ 1. Between two retractions the parameters leave the
            manifold by the second order of the steps.
        factor: Optax schedule `count -> factor > 0` by which the bound of a `Ball` or
            `Band` is multiplied: the update number `count` (from 0) lands within
            `factor(count)` times the bound. The links before this one do not see the
            factor: give them `Euclidean()` directions, as `muon` has. `None`: 1.
        axes: which axes of a leaf are the matrix; all others are batch axes.
        placement: which device computes which matrix; `None`: see `map_matrices`. Its
            `wire` does not narrow a retraction, and on a `DiagonalGram` matrices are
            `owned`, never split.

    Returns:
        A transformation that needs `params`; without state, or with `RetractState`
        where `every` or `factor` is given. Updates leave in the dtype of
        the parameter; computed in at least float32. Stored in bfloat16 the parameters
        stay on a Stiefel manifold only to about 5e-3. Where gradients have another
        dtype than parameters, wrappers that want one dtype on both sides
        (`optax.apply_if_finite`) need the gradients cast first.

    Raises:
        TypeError: for `every` that is not a static int.
        ValueError: for `every` below 1, or above where the manifold must be at hand
            (`"kept"`, `"isometry"`); for a `factor` of another manifold; at
            update, if `params` is None or a leaf is not a batch of matrices.

    Example:
        >>> tx = optax.chain(optax.sgd(0.1), retract(Sphere()))
        >>> params = {"w": jnp.array([[1.0, 0.0]])}
        >>> gradient = {"w": jnp.array([[0.0, -10.0]])}
        >>> updates, _ = tx.update(gradient, tx.init(params), params)
        >>> optax.apply_updates(params, updates)["w"].round(4)
        Array([[0.7071, 0.7071]], dtype=float32)

    Source: Absil, Mahony, Sepulchre (2008), section 4.1; the projection after the step
    as a hard form of weight decay ("post-clip"): J. Su, kexue.fm 11729 (2026).
    """
    require_instance("manifold of retract", manifold, Manifold)
    check_layout(axes, placement)
    _check_times(manifold, every, factor)
    placement = adapted(placement, manifold)
    timed = every > 1 or factor is not None
    retract_all = unit_map(
        _retraction_kernel(manifold.unit()),
        manifold,
        axes=axes,
        placement=placement,
        flops=of_retraction(manifold),
    )

    def land(updates: ArrayTree, params: ArrayTree, count: Any) -> ArrayTree:
        now = None if factor is None else factor(count)
        return retract_all((), (updates, params), like=params, factor=now)

    def pass_on(updates: ArrayTree, params: ArrayTree, count: Any) -> ArrayTree:
        del count
        return map_leaves(lambda _, u, p: u.astype(p.dtype), updates, params)

    def count_from_zero(params: ArrayTree) -> Any:
        del params
        return RetractState(jnp.zeros((), jnp.int32)) if timed else optax.EmptyState()

    init_fn = start(
        "retract",
        axes,
        placement=placement,
        manifold=manifold,
        state=count_from_zero,
    )

    def update_fn(
        updates: ArrayTree, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[ArrayTree, Any]:
        del extra_args
        require_params(params, "retract")
        # Results come in the dtype of the first tree, which must hold a parameter's.
        updates = map_leaves(widened, updates, params)
        if not timed:
            return land(updates, params, None), state
        count = jnp.asarray(optax.safe_increment(state.count))
        operands = (updates, params, state.count)
        if every == 1:
            return land(*operands), RetractState(count)
        # A branch, not a `where`: between two retractions nothing is computed.
        found = jax.lax.cond(count % every == 0, land, pass_on, *operands)
        return found, RetractState(count)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def widened(path: str, update: Array, param: Any) -> Array:
    """The update in a dtype that holds those of the parameter."""
    require_present(param, path)
    require_floating(param, path)
    return update.astype(jnp.promote_types(update.dtype, param.dtype))


def adapted(placement: Placement | None, manifold: Manifold) -> Placement | None:
    """The placement, as far as a retraction can follow it."""
    if placement is None:
        return None
    # Rounded on the wire, a point would be off its manifold by that rounding.
    exact = dataclasses.replace(placement, wire=None)
    # The projection of a DiagonalGram alternates between two sums over the long side.
    return exact.whole() if isinstance(manifold, DiagonalGram) else exact


def _retraction_kernel(unit: Manifold) -> Callable[..., Any]:
    def kernel(update: Matrix, point: Matrix, axis_name: AxisName = None) -> Matrix:
        return unit.retract(point, update, axis_name=axis_name) - point

    return kernel


def _check_times(manifold: Manifold, every: int, factor: Any) -> None:
    require_static_steps("every", every)
    if not every:
        raise ValueError(f"every must be an int of at least 1, got {every!r}.")
    if every > 1 and manifold.size == "kept":
        raise ValueError(
            f"{manifold} reads its radius from the parameters, which grow between two "
            f"retractions; give a radius, or leave every=1; got every={every}."
        )
    if every > 1 and getattr(manifold, "retraction", None) == "isometry":
        raise ValueError(
            f"{manifold} retracts steps from points on the manifold only, which there "
            f"are not with every={every}; use retraction='polar'."
        )
    if factor is None:
        return
    if not callable(factor):
        raise TypeError(
            "factor must be a schedule (count -> factor) or None, got "
            f"{factor!r}; a fixed size belongs to the manifold, e.g. mo.Sphere(2.0)."
        )
    if not isinstance(manifold, Ball | Band):
        raise ValueError(
            f"A factor of the size is for mo.Ball and mo.Band: on {manifold} the "
            "links before this one would measure at another size than the point has."
        )


def retract_polar(
    manifold: Stiefel | None = None,
    *,
    axes: AxesLike = None,
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
        ValueError: for a manifold with another retraction; at update, as `retract`.

    Example:
        >>> tx = optax.chain(dual_ascent_spectral(), optax.sgd(0.1), retract_polar())

    Source: Absil, Mahony, Sepulchre (2008), section 4.1.1.
    """
    manifold = Stiefel() if manifold is None else manifold
    require_instance("manifold of retract_polar", manifold, Stiefel)
    if manifold.retraction != "polar":
        raise ValueError(
            f"retract_polar retracts by the polar factor, but {manifold} names "
            f"{manifold.retraction!r}; use mo.retract(manifold)."
        )
    return retract(manifold, axes=axes, placement=placement)
