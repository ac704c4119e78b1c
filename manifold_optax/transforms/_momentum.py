"""Momentum: an exponential moving average of the updates."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

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
from manifold_optax.transforms._momentum_state import (
    AnyMomentumState,
    Keeping,
    keeping_of,
    STATES,
    zero_state,
)
from manifold_optax.transforms._start import check_layout
from manifold_optax.transforms._tangent import tangent_project
from manifold_optax.trees import fill_absent, map_leaves


@dataclasses.dataclass(frozen=True)
class Average:
    """A momentum for the presets: its decay, and in how many bytes it is kept.

    A preset takes it where it takes a decay, and keeps its own kind of average: with or
    without a look ahead, debiased or not.

    Example:
        >>> tx = mo.muon(0.02, momentum=mo.Average(0.95, dtype="int8"))
        >>> state = tx.init({"w": jnp.ones((4, 2))})
        >>> state["momentum"].codes["w"].dtype
        dtype('int8')
    """

    decay: Scalar
    """In [0, 1)."""
    dtype: Any = None
    """As for `momentum`."""

    def __post_init__(self) -> None:
        require_in_range("decay of Average", self.decay, "[0, 1)")
        keeping_of(self.dtype)


def momentum(
    decay: Scalar,
    *,
    nesterov: bool = True,
    debias: bool = False,
    dtype: Any = None,
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

    The average may be kept in fewer bytes. The update is made of the new average before
    it is rounded:

    | `dtype` | bytes an entry | state | rounding of an entry |
    |---|---|---|---|
    | `None` | 4 | `MomentumState` | that of float32 |
    | `"bfloat16+int8"` | 3 | `CorrectedMomentumState` | to nearest, 2⁻¹⁶ of it |
    | `"bfloat16"` | 2 | `MomentumState` | up or down, below 2⁻⁷ of it |
    | `"int8"` | 1.06 | `CodedMomentumState` | up or down, below 1/127 of its block |

    Rounding up or down is right on average: the nearer neighbour is the likelier one.
    Rounding to nearest would stall, since one step changes an average by less than half
    a unit of such a number. The random bits are a hash of the count, the path of the
    leaf and the position in it. So the state has no key, a resumed run is equal bit by
    bit, and so is one on another mesh. (Inside `jax.shard_map` each device counts
    positions from its own corner.)

    A scale of `"int8"` belongs to at most 64 neighbours along the last axis: the
    largest divisor of its length, so that 1.06 bytes are 1.25 for an axis of 16. Where
    a device holds no whole number of blocks, each device computes the rows as a whole,
    with the same result. A NaN or an infinity makes its block NaN.

    Args:
        decay: β in [0, 1); may be traced.
        nesterov: whether to look one step ahead.
        debias: whether to divide by the sum of the weights.
        dtype: in what the average is kept, see above; `jnp.bfloat16` and `jnp.int8` are
            taken, too.
        transport: manifold on which the parameters lie; the leaves must then be
            matrices. `None`: the average stays as it is.
        axes: for `transport`: which axes of a leaf are the matrix.
        placement: for `transport`: which device computes which matrix.

    Returns:
        A transformation with one of the states above; it needs `params` for `transport`
        only. Leaves of any shape and floating dtype; the average is computed in at
        least float32, so bfloat16 gradients do not stall it, and updates leave in the
        dtype in which they came. (float16 gradients below 1e-5 lose digits on the way
        out: cast them to float32 first.)

    Raises:
        ValueError: for a concrete decay outside [0, 1); at update, for an update and an
            average of different shapes, for a state that is kept otherwise, and with
            `transport` if `params` is None or a leaf is not a batch of matrices.
        TypeError: for another `dtype`; at init and update, for a leaf that is not real
            floating.

    Example:
        >>> tx = momentum(0.5, nesterov=False)
        >>> params = {"w": jnp.zeros(2)}
        >>> updates, state = tx.update({"w": jnp.ones(2)}, tx.init(params))
        >>> updates
        {'w': Array([0.5, 0.5], dtype=float32)}

    Source: T. Dozat, "Incorporating Nesterov momentum into Adam" (2016), for the
    debiased form; Absil, Mahony, Sepulchre (2008), section 8.1.3, for the transport by
    projection; "Effective Quantization of Muon Optimizer States" (arXiv 2509.23106) for
    8 bits with a linear code, and T. Dettmers et al. (arXiv 2110.02861) for the blocks.
    Both round to nearest.
    """
    require_in_range("decay", decay, "[0, 1)")
    require_flag("nesterov", nesterov)
    require_flag("debias", debias)
    keeping = keeping_of(dtype)
    check_layout(axes, placement)
    carrier = None
    if transport is not None:
        require_instance("transport of momentum", transport, Manifold)
        carrier = tangent_project(transport, axes=axes, placement=placement)

    def init_fn(params: ArrayTree) -> AnyMomentumState:
        if carrier is not None:
            carrier.init(params)
        return zero_state(params, keeping)

    def update_fn(
        updates: ArrayTree, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[ArrayTree, AnyMomentumState]:
        del extra_args
        _require_kept(state, keeping)
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

        average = state.read()
        if carrier is not None:
            require_params(params, "momentum with transport")
            # Only where there is an update: the others keep their average.
            held = map_leaves(_second_present, updates, average)
            average, _ = carrier.update(held, optax.EmptyState(), params)
        moved = map_leaves(advance, updates, average)
        state = state.written(moved, count)._replace(count=count)
        average = fill_absent(moved, average)
        return map_leaves(read, updates, average), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _require_kept(state: Any, keeping: Keeping) -> None:
    """Raises ValueError for a state whose average is kept in another way."""
    half = jnp.dtype(jnp.bfloat16)
    if isinstance(state, STATES[keeping]):
        kept = {leaf.dtype for leaf in jax.tree.leaves(state[1:])}
        if keeping == "bfloat16" and kept <= {half}:
            return
        if keeping != "bfloat16" and (keeping or half not in kept):
            return
    raise ValueError(
        f"The state of momentum is a {type(state).__name__} that is not kept as "
        f"dtype={keeping!r} says. Convert it: mo.states.momentum_to(state, "
        f"{keeping!r})."
    )


def _second_present(path: str, update: Array, average: Any) -> Array:
    del update
    require_present(average, path)
    return average
