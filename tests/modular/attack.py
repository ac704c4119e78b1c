"""The largest first-order change of a network's output, found by search.

A sensitivity bounds from above what a unit step of one parameter does to the output.
The search bounds the same supremum from below. It moves three things at once: the
direction of the step in the unit ball of the parameter's norm, the input within its
set, and all parameters within their unit balls. Each is replaced by a mixture of itself
and the point of its ball that is best to first order (the method of Frank and Wolfe),
so nothing ever leaves its ball.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jax import Array, lax, numpy as jnp
from optax.contrib import MuonDimensionNumbers

from manifold_optax.trees import leaves_by_path
from modular.networks import RandomNetwork

Axes = MuonDimensionNumbers | None

# Everything is drawn and kept this far inside its ball, so that float32 leaves nothing
# outside: a polar factor by SVD has a norm of at most 1 + 4e-7 (observed).
INSIDE = 1 - 1e-6

# Singular values below this multiple of the largest are rounding; the polar factor
# leaves them out.
RANK_TOLERANCE = 1e-6

# XLA's optimizations cost more here than they save: a program runs for milliseconds.
COMPILER_OPTIONS = {"xla_backend_optimization_level": 0}


class Point(NamedTuple):
    """What the search moves; leaves are in the order of `jax.tree.leaves`."""

    direction: list[Array]
    params: list[Array]
    inputs: list[Array]


def measured_sensitivity(
    network: RandomNetwork, path: str, seed: int = 0, steps: int = 30
) -> float:
    """The largest first-order change found for the parameter at `path`."""
    return measured_sensitivities(network, seed, steps, paths=[path])[path]


def measured_sensitivities(
    network: RandomNetwork,
    seed: int = 0,
    steps: int = 30,
    *,
    restarts: int = 4,
    paths: Sequence[str] | None = None,
    move_params: bool = True,
) -> dict[str, float]:
    """The largest first-order changes found, by path; one program finds all of them.

    A change is the maximum over positions of the RMS over the last axis.

    Args:
        network: the network.
        seed: of the starting points.
        steps: steps of each start.
        restarts: starts for each path. The first has the parameters and the inputs of
            the network; the others are random.
        paths: the parameters that are attacked; all by default.
        move_params: whether all parameters move too, within their unit balls.

    Raises:
        FloatingPointError: if a change is not finite.
    """
    known = list(leaves_by_path(network.params))
    paths = known if paths is None else list(paths)
    balls = [network.axes_by_path[path] for path in known]
    starts = _starts(network, balls, np.random.default_rng(seed), restarts, move_params)
    chosen = np.asarray([[one == path for one in known] for path in paths], np.float32)

    search = partial(_search, network, balls, move_params)
    search = jax.vmap(search, in_axes=(None, 0, None))  # over starts
    search = jax.vmap(search, in_axes=(0, None, None))  # over paths
    search = jax.jit(search, compiler_options=COMPILER_OPTIONS)
    found = np.asarray(search(chosen, starts, _rates(steps))).max(axis=1)
    if not np.isfinite(found).all():
        raise FloatingPointError(
            f"The changes {found} of the output are not all finite: "
            f"{network.description}."
        )
    return dict(zip(paths, found.tolist(), strict=True))


def _rates(steps: int) -> np.ndarray:
    """How far each step goes: from one half to a twentieth, geometrically."""
    return np.geomspace(0.5, 0.05, steps, dtype=np.float32)


def _search(
    network: RandomNetwork,
    balls: list[Axes],
    move_params: bool,
    chosen: Array,
    start: Point,
    rates: Array,
) -> Array:
    """The largest change on the way from one start."""
    change = partial(_change, network, chosen)

    def step(
        state: tuple[Point, Array], rate: Array
    ) -> tuple[tuple[Point, Array], None]:
        point, best = state
        value, slope = jax.value_and_grad(change)(point)
        count = len(balls)
        units = _unit_steps([*slope.direction, *slope.params], balls * 2)
        moved = Point(
            direction=_mixed(point.direction, units[:count], 1.0),
            params=_mixed(point.params, units[count:], rate if move_params else 0.0),
            inputs=_mixed(point.inputs, [_unit_rms(x) for x in slope.inputs], rate),
        )
        return (moved, jnp.maximum(best, value)), None

    (last, best), _ = lax.scan(step, (start, jnp.zeros(())), rates)
    return jnp.maximum(best, change(last))


def _change(network: RandomNetwork, chosen: Array, point: Point) -> Array:
    """The first-order change of the output for a step of the chosen parameter."""
    tree = jax.tree.structure(network.params)
    params = jax.tree.unflatten(tree, point.params)
    step = [choice * leaf for choice, leaf in zip(chosen, point.direction, strict=True)]
    step = jax.tree.unflatten(tree, step)
    _, change = jax.jvp(lambda p: network.forward(p, *point.inputs), (params,), (step,))
    return jnp.max(_rms(change))


def _mixed(points: list[Array], units: list[Array], rate: Array | float) -> list[Array]:
    """A part of the way to the units; points without a slope stay where they are."""
    return [
        jnp.where(jnp.any(unit != 0), (1 - rate) * point + rate * unit, point)
        for point, unit in zip(points, units, strict=True)
    ]


def _starts(
    network: RandomNetwork,
    balls: list[Axes],
    rng: np.random.Generator,
    restarts: int,
    move_params: bool,
) -> Point:
    """Points inside their balls, along a new first axis."""
    leaves = jax.tree.leaves(network.params)

    def normal(like: Array) -> Array:
        return jnp.asarray(rng.normal(size=(restarts, *like.shape)), jnp.float32)

    def from_point(like: Array) -> Array:
        return INSIDE * jnp.broadcast_to(like, (restarts, *like.shape))

    def unit(balls: list[Axes]) -> Callable[[list[Array]], list[Array]]:
        return jax.jit(jax.vmap(partial(_unit_steps, balls=balls)))

    directions, params = zip(
        *[(normal(leaf), normal(leaf)) for leaf in leaves], strict=True
    )
    units = unit(balls * 2)([*directions, *params])
    drawn = [
        from_point(leaf).at[1:].set(other[1:]) if move_params else from_point(leaf)
        for leaf, other in zip(leaves, units[len(leaves) :], strict=True)
    ]
    inputs = [
        from_point(x).at[1:].set(_unit_rms(normal(x))[1:]) for x in network.inputs
    ]
    return Point(units[: len(leaves)], drawn, inputs)


def _unit_steps(slopes: list[Array], balls: list[Axes]) -> list[Array]:
    """The point of each unit ball that goes furthest along its slope.

    Matrices: the polar factor times √(out/in). Biases, in the maximum norm: the signs.
    All matrices go through one decomposition, padded with zeros to one shape.
    """
    views = [
        _matrices(slope, ball) if ball is not None else slope
        for slope, ball in zip(slopes, balls, strict=True)
    ]
    stacks = [view for view, ball in zip(views, balls, strict=True) if ball is not None]
    rows = max(stack.shape[1] for stack in stacks)
    columns = max(stack.shape[2] for stack in stacks)
    padded = [
        jnp.pad(x, ((0, 0), (0, rows - x.shape[1]), (0, columns - x.shape[2])))
        for x in stacks
    ]
    polar = _polar(jnp.concatenate(padded))
    units, first = [], 0
    for slope, view, ball in zip(slopes, views, balls, strict=True):
        if ball is None:
            units.append(INSIDE * jnp.sign(slope))
            continue
        count, fan_in, fan_out = view.shape
        part = polar[first : first + count, :fan_in, :fan_out]
        first += count
        part = INSIDE * math.sqrt(fan_out / fan_in) * part
        units.append(_leaf(part, slope.shape, ball))
    return units


def _polar(x: Array) -> Array:
    """The polar factor of each matrix, without the directions that it maps to 0."""
    left, values, right = jnp.linalg.svd(x, full_matrices=False)
    large = values > RANK_TOLERANCE * values[..., :1]
    return (left * large[..., None, :]) @ right


def _order(
    ball: MuonDimensionNumbers, rank: int
) -> tuple[list[int], list[int], list[int]]:
    """The batch, input and output axes of a leaf, counted from 0."""

    def counted(axes: int | Sequence[int]) -> list[int]:
        axes = [axes] if isinstance(axes, int) else axes
        return [axis % rank for axis in axes]

    fan_in, fan_out = counted(ball.reduction_axis), counted(ball.output_axis)
    return [a for a in range(rank) if a not in fan_in + fan_out], fan_in, fan_out


def _matrices(leaf: Array, ball: MuonDimensionNumbers) -> Array:
    """[batch, in, out]"""
    groups = _order(ball, leaf.ndim)
    sizes = [math.prod(leaf.shape[axis] for axis in group) for group in groups]
    return leaf.transpose(sum(groups, [])).reshape(sizes)


def _leaf(matrices: Array, shape: tuple[int, ...], ball: MuonDimensionNumbers) -> Array:
    """The inverse of `_matrices`."""
    order = sum(_order(ball, len(shape)), [])
    matrices = matrices.reshape([shape[axis] for axis in order])
    return matrices.transpose(np.argsort(order).tolist())


def _unit_rms(x: Array) -> Array:
    """`x` with an RMS of 1 at every position; zeros stay."""
    rms = _rms(x)[..., None]
    return INSIDE * jnp.where(rms > 0, x / jnp.where(rms > 0, rms, 1), 0)


def _rms(x: Array) -> Array:
    """The RMS over the last axis; its slope at 0 is 0."""
    square = jnp.mean(jnp.square(x), axis=-1)
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)
