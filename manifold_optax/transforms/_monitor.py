"""What the steps of an optimizer are like, kept in its state."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int32

from manifold_optax._checks import (
    require_floating,
    require_instance,
    require_one_of,
    require_params,
    require_present,
    require_static_steps,
)
from manifold_optax._typing import ArrayTree
from manifold_optax.diagnostics import COUNTS, MEASURES, MonitorInfo, OF_WEIGHTS
from manifold_optax.geometry import Manifold
from manifold_optax.matrices import AxesLike, per_matrix, Placement
from manifold_optax.transforms._groups import (
    added,
    check_groups,
    filled,
    Groups,
    reduced,
)
from manifold_optax.transforms._leaves import matrices_of
from manifold_optax.transforms._measurement import marks_of, measurement
from manifold_optax.transforms._start import check_layout, start
from manifold_optax.trees import map_leaves


class MonitorState(NamedTuple):
    """State of `monitor`: that of what it watches, and apart from it what it saw."""

    inner: Any
    """State of the transformation that is watched."""
    count: Int32[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    """Number of updates so far."""
    info: MonitorInfo
    """What was measured last. No update depends on it. Zeros before the first one."""


def monitor(
    inner: optax.GradientTransformation | None = None,
    *,
    axes: AxesLike = None,
    manifold: Manifold | None = None,
    measures: Sequence[str] = MEASURES,
    every: int = 10,
    groups: Groups = None,
    placement: Placement | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Measures the steps of `inner` and passes them on as they are.

    The numbers are in the state: `diagnostics.collect(state)` finds them at any depth
    of wrappers, and `diagnostics.write` writes them to a file or to TensorBoard. What
    they mean and what is normal is on the page "Monitoring". Measured are, for each
    matrix:

    | name | what | needs |
    |---|---|---|
    | `residual` | relative distance of the weights from the manifold | `manifold` |
    | `update_spectral_norm` | `‖U‖₂`, an estimate from below | |
    | `update_rms` | `‖U‖_F / √(m·n)` | |
    | `weight_spectral_norm`, `weight_rms` | the same of the weights | |
    | `orthogonality_error` | `‖UᵀU/s² − I‖_F/√k`; 0: all singular values equal | |
    | `stable_rank` | `‖U‖_F²/‖U‖₂²` | |
    | `angle` | degrees between −U and the gradient: below 90 it descends | `inner` |
    | `applied` | number of updates that were finite and not zero | |
    | `skipped` | number of updates that were exactly zero | |
    | `nonfinite` | number of gradients with a NaN or an infinity | |

    The counts take every update, all else every `every`-th one. Around
    `optax.apply_if_finite` the counts see the bad steps; inside of it they are undone
    with the rest of the state.

    Args:
        inner: the transformation that is watched, around which `monitor` stands. Its
            update is the step: weights are measured after it. `None`: `monitor` is a
            link of a chain and measures what passes there, with the weights as they
            came and without `angle`.
        axes: which axes of a leaf are the matrix. With `mo.Roles` what is no matrix by
            its role is not measured, so that `monitor` may stand around the optimizer
            of a whole model.
        manifold: where the weights should be; `None`: no `residual`.
        measures: names of what is measured. By default all, without `residual` and
            `angle` where what they need is not given.
        every: the updates number 1, `1 + every`, … are measured, in a branch that the
            others do not take; a static int ≥ 1.
        groups: `{pattern of paths: name}`, or `mo.Roles`, whose labels are the names:
            numbers are kept per group, the mean and the worst of its matrices, for
            counts their total. `None`: per matrix.
        placement: which device measures which matrix; `None`: see `map_matrices`.

    Returns:
        A transformation with state `MonitorState`. Updates are those of `inner`, bit by
        bit. It needs `params` if a measure of weights is asked for.

    Raises:
        TypeError: for an `inner`, `manifold` or `groups` of another kind, and for
            `every` that is not a static int.
        ValueError: for measures that are unknown, none, or miss what they need; at
            init, for a leaf that is not a batch of matrices or that is in no group,
            naming it.

    Cost: at every update one pass over gradients and updates for the counts; at a
    measured one a Gram matrix of the update, `2·m·n·k` FLOPs, 17 products of the
    weights with a vector, and the residual of the manifold. Each number is an array of
    the state: for hundreds of leaves that are not stacked give `groups`, or fewer
    `measures`.

    Example:
        >>> params = {"w": jnp.ones((4, 2))}
        >>> gradient = {"w": jnp.arange(8.0).reshape(4, 2)}
        >>> tx = monitor(muon(0.1), every=1)
        >>> _, state = jax.jit(tx.update)(gradient, tx.init(params), params)
        >>> seen = diagnostics.collect(state)
        >>> float(seen["applied"]["w"]), bool(seen["angle"]["w"] < 90)
        (1.0, True)
    """
    check_layout(axes, placement)
    names = _names(measures, inner, manifold)
    _check_every(every)
    check_groups(groups)
    if inner is not None:
        require_instance("inner of monitor", inner, optax.GradientTransformation)
    watched = optax.with_extra_args_support(inner or optax.identity())
    measure = measurement(names, axes, manifold, placement)
    sampled = set(names) - set(COUNTS)
    weighed = bool(set(names) & set(OF_WEIGHTS))

    def unknown(params: ArrayTree) -> MonitorInfo:
        # Arrays of their own: a buffer that two fields share cannot be donated.
        zeros = {name: per_matrix(params, 0.0, axes=axes) for name in names}
        return MonitorInfo(**reduced(zeros, params, groups))

    begin = start("monitor", axes, placement=placement, planned=False, state=unknown)

    def init_fn(params: ArrayTree) -> MonitorState:
        state = watched.init(params)
        info = begin(matrices_of(params, axes))
        return MonitorState(state, jnp.zeros((), jnp.int32), info)

    def update_fn(
        updates: ArrayTree, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[ArrayTree, MonitorState]:
        if weighed:
            require_params(params, "monitor")
        # Before `inner`, whose message would not name the leaf.
        gradients = map_leaves(_checked, matrices_of(updates, axes))
        steps, inside = watched.update(updates, state.inner, params, **extra_args)
        seen = matrices_of(steps, axes)

        def merged(merge: Any, found: Any, old: MonitorInfo) -> MonitorInfo:
            kept = reduced(found, seen, groups)
            return old._replace(
                **{name: merge(kept[name], getattr(old, name)) for name in kept}
            )

        def now(old: MonitorInfo) -> MonitorInfo:
            points = None
            if weighed:
                weights = matrices_of(params, axes)
                points = map_leaves(_came if inner is None else _moved, seen, weights)
            return merged(filled, measure(seen, gradients, points), old)

        info = state.info
        if sampled:
            info = _now_and_then(now, state.count, every, info)
        marks = marks_of(names, seen, None if inner is None else gradients, axes)
        count = jnp.asarray(optax.safe_increment(state.count))
        return steps, MonitorState(inside, count, merged(added, marks, info))

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _names(measures: Any, inner: Any, manifold: Any) -> tuple[str, ...]:
    """The measures that can be taken, in the order of `MEASURES`."""
    if isinstance(measures, str) or not isinstance(measures, Sequence):
        raise TypeError(
            f"measures must be a tuple of names, some of {MEASURES}; got {measures!r}."
        )
    for name in measures:
        require_one_of("measures", name, MEASURES)
    if manifold is not None:
        require_instance("manifold of monitor", manifold, Manifold)
    names = tuple(name for name in MEASURES if name in measures)
    everything = names == MEASURES
    missing = {
        "residual": (manifold, "the manifold= where the weights should be"),
        "angle": (inner, "an inner transformation, the gradient of which it sees"),
    }
    for name, (given, what) in missing.items():
        if given is not None or name not in names:
            continue
        # Not an error by default: who asks for everything gets what there is.
        if not everything:
            raise ValueError(f"The measure {name!r} of monitor needs {what}.")
        names = tuple(other for other in names if other != name)
    if not names:
        raise ValueError(f"measures must name at least one of {MEASURES}; got none.")
    return names


def _now_and_then(
    now: Callable[[MonitorInfo], MonitorInfo],
    count: Array,
    every: int,
    info: MonitorInfo,
) -> MonitorInfo:
    """What is measured now, if it is time to measure, else `info`."""
    if every == 1:
        return now(info)
    # A branch, not a `where`: between two measured updates nothing is computed.
    return jax.lax.cond(count % every == 0, now, lambda old: old, info)


def _check_every(every: Any) -> None:
    require_static_steps("every", every)
    if not every:
        raise ValueError(f"every must be an int of at least 1, got {every!r}.")


def _checked(path: str, gradient: Any) -> Any:
    require_floating(gradient, path)
    return gradient


def _moved(path: str, update: Array, param: Any) -> Array:
    """The parameter after the step, rounded as `optax.apply_updates` rounds it."""
    require_present(param, path)
    return (param + update).astype(param.dtype)


def _came(path: str, update: Array, param: Any) -> Array:
    """The parameter before the step."""
    del update
    require_present(param, path)
    return param
