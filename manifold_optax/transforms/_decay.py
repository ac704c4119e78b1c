"""Soft constraints on a norm: the parameters shrink a little before each step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int32

from manifold_optax._checks import (
    require_in_range,
    require_instance,
    require_params,
    require_present,
    require_same_shapes,
    require_static_steps,
)
from manifold_optax._typing import ArrayTree, AxisName, Matrix, Scalar
from manifold_optax.geometry import BallNorm
from manifold_optax.linalg import spectral_norm
from manifold_optax.matrices import AxesLike, map_matrices, per_matrix, Placement
from manifold_optax.matrices._view import views_of
from manifold_optax.transforms._leaves import orientation_of
from manifold_optax.transforms._start import check_layout, start
from manifold_optax.trees import bare, fill_absent, is_absent, leaf_path, map_leaves


class SpectralDecayState(NamedTuple):
    """State of `add_spectral_weight_decay`."""

    right: ArrayTree
    """Last singular vector of the short side of each matrix, float32 `[*batch, short]`
    (`[*batch, blocks, short]` for a `Split`, padded with zeros); zero at first."""


class ShrinkState(NamedTuple):
    """State of `shrink_norm` with a schedule."""

    count: Int32[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    """Number of updates so far."""


def add_spectral_weight_decay(
    weight_decay: Scalar,
    *,
    steps: int = 2,
    axes: AxesLike = None,
    placement: Placement | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adds the gradient of `weight_decay/2 · ‖W‖₂²` to each update: `σ₁ u₁ v₁ᵀ`.

    Ordinary weight decay shrinks all singular values, this one the largest alone; it
    stands where `optax.add_decayed_weights` would stand, before the learning rate.
    Since it acts in one direction per step while Muon's update acts in all, it does not
    bound the norm by `scale/weight_decay`: under a persistent update of rank `r` the
    balance is at `r · scale/weight_decay`. Where a bound is needed use `shrink_norm`
    with `Spectral()`, or `retract(Ball(Spectral(), radius))`.

    Args:
        weight_decay: ≥ 0; may be traced.
        steps: power iterations per update, static and ≥ 1. They start from the vector
            of the update before, so two suffice while the parameters change slowly.
        axes: which axes of a leaf are the matrix; all others are batch axes.
        placement: which device computes which matrix; `None`: see `map_matrices`.

    Returns:
        A transformation with state `SpectralDecayState` that needs `params`. Updates
        leave in the dtype in which they came; computed in at least float32, for
        parameters of any scale. A zero matrix does not decay. With equal largest
        singular values one direction of their span is taken.

    Raises:
        TypeError: for steps that are not a static int.
        ValueError: for a concrete negative decay or steps below 1; at update, if
            `params` is None or a leaf is not a batch of matrices.

    Cost: `4·m·n·(steps + 1)` FLOPs.

    Example:
        >>> params = {"w": jnp.diag(jnp.array([3.0, 2.0, 1.0]))}
        >>> tx = add_spectral_weight_decay(0.05, steps=16)
        >>> updates = jax.tree.map(jnp.zeros_like, params)
        >>> updates, _ = tx.update(updates, tx.init(params), params)
        >>> jnp.diag(updates["w"]).round(3)
        Array([0.15, 0.  , 0.  ], dtype=float32)

    Source: J. Su, "Spectral-norm weight decay", kexue.fm 10648 (2025).
    """
    check_layout(axes, placement)
    require_in_range("weight_decay", weight_decay, "[0, inf)")
    require_static_steps("steps", steps)
    if not steps:
        raise ValueError(f"steps must be an int of at least 1, got {steps!r}.")

    def kernel(
        x: Matrix, right: Array, axis_name: AxisName = None
    ) -> tuple[Array, Array]:
        short = x.shape[-1]
        found = spectral_norm(x, right[:short], steps=steps, axis_name=axis_name)
        rank_one = found.norm * found.left[:, None] * found.right[None, :]
        padded = jnp.zeros_like(right).at[:short].set(found.right.astype(right.dtype))
        return rank_one, padded

    init_fn = start(
        "add_spectral_weight_decay",
        axes,
        placement=placement,
        state=lambda params: SpectralDecayState(_short_vectors(params, axes)),
    )

    def update_fn(
        updates: ArrayTree, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[ArrayTree, SpectralDecayState]:
        del extra_args
        require_params(params, "add_spectral_weight_decay")
        decay, right = map_matrices(
            kernel,
            (_updated_points(updates, params),),
            (state.right,),
            returns=("matrix", "number"),
            axes=axes,
            placement=placement,
        )
        updates = _add(updates, decay, weight_decay)
        return updates, SpectralDecayState(fill_absent(right, state.right))

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def shrink_norm(
    norm: BallNorm,
    rate: Scalar | optax.Schedule,
    *,
    axes: AxesLike = None,
    placement: Placement | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Weight decay as a projection: `W` goes to the ball of norm `(1 − rate)·‖W‖`.

    Adds `Π(W) − W` to each update, with the projection `Π` of `Ball(norm)`. It is the
    soft form of a bound on the norm; the hard form is `retract(Ball(norm, radius))`
    after the step. What it is for each norm:

    | norm | effect |
    |---|---|
    | `Frobenius` | ordinary decoupled weight decay |
    | `Spectral`, `RmsToRms` | singular values above `(1 − rate)·σ₁` are cut to it |
    | `RowRms`, `ColumnRms` | the same for the norms of rows, of columns |
    | `Max` | the same for the entries |

    So it takes from the largest parts only as much as the bound asks for. After a step
    of length `a` in the norm, `‖W‖ ≤ max(‖W₀‖, a/rate)`: with `rate = learning_rate ·
    weight_decay` the bound is `scale/weight_decay`.

    It stands after the learning rate and before a retraction: what it adds is not
    multiplied by the learning rate, so that a `rate` of the same schedule does what
    decoupled decay does.

    Args:
        norm: a norm whose ball has a projection: any `BallNorm`.
        rate: number in [0, 1), or an Optax schedule `count -> rate`; usually learning
            rate times weight decay. May be traced.
        axes: which axes of a leaf are the matrix; all others are batch axes.
        placement: which device computes which matrix; `None`: see `map_matrices`.

    Returns:
        A transformation that needs `params`; without state, with `ShrinkState` where
        the rate is a schedule. Updates leave in the dtype in which they came; computed
        in at least float32. A zero matrix stays.

    Raises:
        TypeError: if `norm` is not a `BallNorm`.
        ValueError: for a concrete rate outside [0, 1); at update, if `params` is None
            or a leaf is not a batch of matrices.

    Cost: for the spectral norm `4·m·n·k` FLOPs for the short side `k`, and on a CPU an
    eigendecomposition, elsewhere a polar factor and 65 products of `k × k` matrices;
    for the others a few passes over the matrix. Rates below 1e-6 are lost in float32
    but for the Frobenius norm.

    Example:
        >>> params = {"w": jnp.diag(jnp.array([4.0, 2.0]))}
        >>> tx = optax.chain(muon(0.02), shrink_norm(Spectral(), 0.25))
        >>> zero = jax.tree.map(jnp.zeros_like, params)
        >>> updates, _ = tx.update(zero, tx.init(params), params)
        >>> optax.apply_updates(params, updates)["w"].round(4)
        Array([[3., 0.],
               [0., 2.]], dtype=float32)

    Source: J. Su, "pre-decay" in the unified view of weight decay, kexue.fm (2026).
    """
    check_layout(axes, placement)
    require_instance("norm of shrink_norm", norm, BallNorm)
    require_in_range("rate", rate, "[0, 1)", schedule=True)
    ball_norm = norm.free_of_shape
    assert isinstance(ball_norm, BallNorm)

    def kernel(x: Matrix, rate: Array, axis_name: AxisName = None) -> Matrix:
        part = rate.astype(x.dtype)
        change = ball_norm.shrinkage(x, part, axis_name=axis_name)
        return jnp.where(part == 0, x - x, change)

    def count_from_zero(params: ArrayTree) -> Any:
        del params
        timed = callable(rate)
        return ShrinkState(jnp.zeros((), jnp.int32)) if timed else optax.EmptyState()

    init_fn = start("shrink_norm", axes, placement=placement, state=count_from_zero)

    def update_fn(
        updates: ArrayTree, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[ArrayTree, Any]:
        del extra_args
        require_params(params, "shrink_norm")
        now: Any = rate(state.count) if callable(rate) else rate
        points = _updated_points(updates, params)
        # A number per matrix, so that a traced rate reaches every device as all do.
        rates = jax.tree.map(
            lambda ones: ones * now, per_matrix(points, 1.0, axes=axes)
        )
        difference = map_matrices(
            kernel,
            (points,),
            (rates,),
            axes=axes,
            orientation=orientation_of(ball_norm.transposable),
            placement=placement,
        )
        if callable(rate):
            state = ShrinkState(jnp.asarray(optax.safe_increment(state.count)))
        return _add(updates, difference, 1.0), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _updated_points(updates: ArrayTree, params: ArrayTree) -> ArrayTree:
    """The parameters that have an update."""

    def point(path: str, update: Array, param: Any) -> Array:
        require_present(param, path)
        require_same_shapes((update, param), path)
        return param

    return map_leaves(point, updates, params)


def _add(updates: ArrayTree, decay: ArrayTree, factor: Scalar) -> ArrayTree:
    """`updates + factor · decay`, in the dtype of the updates."""

    def total(path: str, update: Array, other: Array) -> Array:
        del path
        wide = jnp.promote_types(
            jnp.promote_types(update.dtype, other.dtype), "float32"
        )
        return (update.astype(wide) + factor * other.astype(wide)).astype(update.dtype)

    return map_leaves(total, updates, decay)


def _short_vectors(params: ArrayTree, axes: AxesLike) -> ArrayTree:
    """Zeros `[*batch, short]` per matrix; the blocks of a split share the longest."""

    def of_leaf(keys: Any, leaf: Any) -> Any:
        if is_absent(leaf):
            return leaf
        views = views_of(leaf, leaf_path(keys), axes)
        short = max(min(view.fan_in, view.fan_out) for view in views)
        return per_matrix(leaf, 0.0, axes=axes, tail=(short,))

    return jax.tree_util.tree_map_with_path(of_leaf, bare(params), is_leaf=is_absent)
