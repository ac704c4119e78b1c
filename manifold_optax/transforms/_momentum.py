"""Momentum: an exponential moving average of the updates."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Int32

from manifold_optax._checks import (
    require_flag,
    require_in_range,
    require_instance,
    require_params,
    require_present,
    require_same_shapes,
)
from manifold_optax._typing import ArrayTree, Scalar
from manifold_optax.geometry import Manifold
from manifold_optax.matrices import AxesLike, Placement
from manifold_optax.transforms._start import check_layout
from manifold_optax.transforms._tangent import tangent_project
from manifold_optax.trees import fill_absent, map_leaves


class MomentumState(NamedTuple):
    """State of `momentum`."""

    count: Int32[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    """Number of updates so far."""
    average: ArrayTree
    """Like the parameters, in at least float32."""


def momentum(
    decay: Scalar,
    *,
    nesterov: bool = True,
    debias: bool = False,
    transport: Manifold | None = None,
    axes: AxesLike = None,
    placement: Placement | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Replaces each update by an exponential moving average of the updates.

    With `m ← β·m + (1−β)·g` at step `t = 1, 2, …`:

    | | plain | Nesterov |
    |---|---|---|
    | `debias=False` | `m` | `β·m + (1−β)·g` |
    | `debias=True` | `m/(1−βᵗ)` | `β·m/(1−βᵗ⁺¹) + (1−β)·g/(1−βᵗ)` |

    The last cell is the average of `optax.contrib.muon` (that of Nadam); `optax.trace`
    differs from it by 6 % in the second update. A leaf whose update is `None` keeps its
    average.

    On a manifold the average is a sum of vectors of many tangent spaces. With
    `transport` it is first projected onto the tangent space at the current parameters
    (vector transport by projection), so that what was normal once does not come back
    as a direction later.

    Args:
        decay: β in [0, 1); may be traced.
        nesterov: whether to look one step ahead.
        debias: whether to divide by the sum of the weights.
        transport: manifold on which the parameters lie; the leaves must then be
            matrices. `None`: the average stays as it is.
        axes: for `transport`: which axes of a leaf are the matrix.
        placement: for `transport`: which device computes which matrix.

    Returns:
        A transformation with state `MomentumState`; it needs `params` for `transport`
        only. Leaves of any shape and floating dtype; the average is kept in at least
        float32, so bfloat16 gradients do not stall it, and updates leave in the dtype
        in which they came. (float16 gradients below 1e-5 lose digits on the way out:
        cast them to float32 first.)

    Raises:
        ValueError: for a concrete decay outside [0, 1); at update, for an update and an
            average of different shapes, and with `transport` if `params` is None or a
            leaf is not a batch of matrices.
        TypeError: at init and update, for a leaf that is not real floating.

    Example:
        >>> tx = momentum(0.5, nesterov=False)
        >>> params = {"w": jnp.zeros(2)}
        >>> updates, state = tx.update({"w": jnp.ones(2)}, tx.init(params))
        >>> updates
        {'w': Array([0.5, 0.5], dtype=float32)}

    Source: T. Dozat, "Incorporating Nesterov momentum into Adam" (2016), for the
    debiased form; Absil, Mahony, Sepulchre (2008), section 8.1.3, for the transport by
    projection.
    """
    require_in_range("decay", decay, "[0, 1)")
    require_flag("nesterov", nesterov)
    require_flag("debias", debias)
    check_layout(axes, placement)
    carrier = None
    if transport is not None:
        require_instance("transport of momentum", transport, Manifold)
        carrier = tangent_project(transport, axes=axes, placement=placement)

    def init_fn(params: ArrayTree) -> MomentumState:
        if carrier is not None:
            carrier.init(params)
        return MomentumState(jnp.zeros((), jnp.int32), map_leaves(_zeros, params))

    def update_fn(
        updates: ArrayTree, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[ArrayTree, MomentumState]:
        del extra_args
        count = jnp.asarray(optax.safe_increment(state.count))
        following = jnp.asarray(optax.safe_increment(count))

        def advance(path: str, update: Array, average: Array) -> Array:
            require_present(average, path)
            require_same_shapes((update, average), path)
            moved = decay * average + (1 - decay) * update.astype(average.dtype)
            return moved.astype(average.dtype)

        def read(path: str, update: Array, average: Array) -> Array:
            del path
            now, ahead = average, average
            gradient = update.astype(average.dtype)
            if debias:
                now = average / (1 - decay**count)
                ahead = average / (1 - decay**following)
                gradient = gradient / (1 - decay**count)
            mixed = decay * ahead + (1 - decay) * gradient if nesterov else now
            return mixed.astype(update.dtype)

        average = state.average
        if carrier is not None:
            require_params(params, "momentum with transport")
            # Only where there is an update: the others keep their average.
            held = map_leaves(_second_present, updates, average)
            average, _ = carrier.update(held, optax.EmptyState(), params)
        average = fill_absent(map_leaves(advance, updates, average), state.average)
        return map_leaves(read, updates, average), MomentumState(count, average)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _zeros(path: str, param: Array) -> Array:
    del path
    return jnp.zeros_like(param, jnp.promote_types(param.dtype, jnp.float32))


def _second_present(path: str, update: Array, average: Any) -> Array:
    del update
    require_present(average, path)
    return average
