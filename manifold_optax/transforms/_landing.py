"""The end of a chain on a manifold, in one pass: direction, learning rate, retraction.

Each link by itself goes over all matrices: sharded, it sends them to their owners and
back. Here an owner keeps the point between direction and retraction, and one exchange
is enough. States, names and order are those of the chain.
"""

import collections
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from manifold_optax._checks import require_params
from manifold_optax._typing import ArrayTree, AxisName, Flops, Matrix
from manifold_optax.geometry import Manifold
from manifold_optax.linalg import newton_schulz_flops
from manifold_optax.matrices import AxesLike, Placement, Result
from manifold_optax.transforms._flops import of_retraction
from manifold_optax.transforms._leaves import orientation_of, unit_map
from manifold_optax.transforms._retract import adapted, retract, widened
from manifold_optax.transforms._stage import Stage
from manifold_optax.trees import map_leaves

Link: TypeAlias = tuple[str, optax.GradientTransformation]


class Joined(NamedTuple):
    """The links of a chain that are run together, by name."""

    names: tuple[str, ...]
    stages: tuple[Stage, ...]


def landing_chain(
    manifold: Manifold,
    links: Sequence[Link],
    rate: Link,
    *,
    axes: AxesLike = None,
    placement: Placement | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The chain `links → rate → retraction`, in as few passes as it can be.

    Args:
        manifold: the constraint of every leaf.
        links: what comes before the learning rate. Those at the end that have a
            `Stage`, and these axes and placement, are run together with the retraction.
        rate: a link that multiplies every update by the same number.
        axes: which axes of a leaf are the matrix.
        placement: which device computes which matrix.

    Returns:
        A transformation whose state is that of `optax.named_chain` of these links.
    """
    last = ("retraction", retract(manifold, axes=axes, placement=placement))
    chain = optax.named_chain(*links, rate, last)
    joined = joined_links(manifold, links, axes, placement)
    if not joined.stages:
        return chain
    before = optax.named_chain(*links[: len(links) - len(joined.names)])
    land = _landing(manifold, joined, axes, placement)
    rate_name, scale = rate[0], optax.with_extra_args_support(rate[1])
    names = [name for name, _ in (*links, rate, last)]

    def update_fn(
        updates: ArrayTree, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[ArrayTree, Any]:
        done: Any
        updates, done = before.update(updates, state, params, **extra_args)
        require_params(params, joined.stages[0].name)
        # Results come in the dtype of the first tree, which must hold a parameter's.
        updates = map_leaves(widened, updates, params)
        # The number by which it multiplies, learned from what it makes of a 1.
        dtypes = {leaf.dtype for leaf in jax.tree.leaves(updates)}
        one = jnp.ones((), jnp.result_type(jnp.float32, *dtypes))
        factor, new_rate = scale.update(one, state[rate_name], None, **extra_args)
        updates, states = land(updates, state, params, factor)
        ends = {rate_name: new_rate, last[0]: state[last[0]]}
        new: dict[str, Any] = {**done, **states, **ends}
        return updates, collections.OrderedDict((name, new[name]) for name in names)

    return optax.GradientTransformationExtraArgs(chain.init, update_fn)


def joined_links(
    manifold: Manifold,
    links: Sequence[Link],
    axes: AxesLike,
    placement: Placement | None,
) -> Joined:
    """The links at the end that can be run with the retraction; none where none can."""
    orientation = orientation_of(manifold.transposable)
    names: list[str] = []
    stages: list[Stage] = []
    for name, tx in reversed(links):
        stage: Stage | None = getattr(tx, "stage", None)
        if (
            stage is None
            or stage.axes is not axes
            or (stage.placed and stage.placement is not placement)
            or (stage.manifold is not None and stage.manifold is not manifold)
            # Plain updates until the last stage, which brings them into units.
            or stage.in_units != (not stages)
            or stage.orientation not in ("either", orientation)
        ):
            break
        names.insert(0, name)
        stages.insert(0, stage)
    return Joined(tuple(names), tuple(stages))


def _landing(
    manifold: Manifold,
    joined: Joined,
    axes: AxesLike,
    placement: Placement | None,
) -> Any:
    """`(updates, state, params, factor) -> (updates, {name: state})`."""
    unit, stages = manifold.unit(), joined.stages
    placement = adapted(placement, manifold)
    if placement is not None and any(stage.whole for stage in stages):
        placement = placement.whole()

    def kernel(
        update: Matrix, point: Matrix, factor: Array, axis_name: AxisName = None
    ) -> Any:
        numbers: list[Array] = []
        for stage in stages:
            found = stage.kernel(update, point, axis_name=axis_name)
            update, *new = found if isinstance(found, tuple) else (found,)
            numbers += new
        step = factor.astype(update.dtype) * update
        moved = unit.retract(point, step, axis_name=axis_name) - point
        return (moved, *numbers) if numbers else moved

    numbers = [stage.returns.count("number") for stage in stages]
    written: list[Result] = ["number"] * sum(numbers)
    land_all = unit_map(
        kernel,
        manifold,
        axes=axes,
        placement=placement,
        returns=("matrix", *written),
        flops=_flops(manifold, stages),
    )

    def land(
        updates: ArrayTree, state: Any, params: ArrayTree, factor: Array
    ) -> tuple[ArrayTree, dict[str, Any]]:
        found = land_all((updates,), (params,), like=params, shared=(factor,))
        updates, *written = found if sum(numbers) else (found,)
        states = {}
        for name, stage, count in zip(joined.names, stages, numbers, strict=True):
            own, written = written[:count], written[count:]
            old = state[name]
            states[name] = old if stage.state is None else stage.state(old, own)
        return updates, states

    return land


def _flops(manifold: Manifold, stages: Sequence[Stage]) -> Flops:
    """What all stages and the retraction cost together."""
    parts = [stage.flops or newton_schulz_flops for stage in stages]
    parts.append(of_retraction(manifold))
    return lambda short, long: sum(part(short, long) for part in parts)
