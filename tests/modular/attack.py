"""The largest first-order change of a network's output, found by search.

A sensitivity bounds from above what a unit step of one parameter does to the output.
The search bounds the same supremum from below. It moves three things at once: the
direction of the step in the unit ball of the parameter's norm, the inputs within their
set, and all parameters within their unit balls. Each goes a part of the way to the
point of its ball that is best to first order (the method of Frank and Wolfe), so
nothing ever leaves its ball.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array, lax, numpy as jnp
from jax.typing import ArrayLike

from manifold_optax.trees import leaves_by_path
from modular.networks import RandomNetwork

# Everything is kept this far inside its ball, so that no rounding of float32 leaves
# anything outside: polar factors by SVD have norms of at most 1 + 1.3e-6 (observed on
# 6,000 random matrices of up to 64 x 8).
INSIDE = 1 - 2e-6

# Singular values below this multiple of the largest are rounding: eps of float32 times
# the size of the matrices. The polar factor leaves them out.
RANK_TOLERANCE = 1e-6

# XLA's optimizations cost more here than they save: a search runs for 0.3 s.
COMPILER_OPTIONS = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
}


class Packed(NamedTuple):
    """Leaves as two stacks, padded with zeros; the unit balls are those of the entries.

    Attributes:
        matrices: [count, in, out], each in the spectral norm.
        vectors: [count, size], each in the maximum norm.
    """

    matrices: Array | np.ndarray
    vectors: Array | np.ndarray


class Point(NamedTuple):
    """What the search moves."""

    direction: Packed
    params: Packed
    inputs: tuple[Array | np.ndarray, ...]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where one leaf lies in the stacks.

    Attributes:
        path: the path of the leaf.
        shape: its shape.
        order: its axes in the order of the stack.
        sizes: its shape in the stack: [count, in, out] or [count, size].
        first: its first entry in the stack.
        slices: the layers of a scan that it holds; 1 for others.
    """

    path: str
    shape: tuple[int, ...]
    order: tuple[int, ...]
    sizes: tuple[int, ...]
    first: int
    slices: int

    @property
    def is_matrix(self) -> bool:
        return len(self.sizes) == 3

    @property
    def box(self) -> tuple[slice, ...]:
        """What the leaf fills of its stack."""
        entries = slice(self.first, self.first + self.sizes[0])
        return (entries, *map(slice, self.sizes[1:]))

    @property
    def scale(self) -> float:
        """A matrix of this spectral norm has the RMS-to-RMS norm 1."""
        return math.sqrt(self.sizes[2] / self.sizes[1]) if self.is_matrix else 1.0

    def entries(self, one: int) -> slice:
        """The entries of one slice."""
        count = self.sizes[0] // self.slices
        return slice(self.first + one * count, self.first + (one + 1) * count)


def measured_sensitivity(
    network: RandomNetwork, path: str, seed: int = 0, steps: int = 60
) -> tuple[float, ...]:
    """The largest first-order changes found for the parameter at `path`, by slice."""
    return measured_sensitivities(network, seed, steps, paths=[path])[path]


def measured_sensitivities(
    network: RandomNetwork,
    seed: int = 0,
    steps: int = 60,
    *,
    restarts: int = 3,
    paths: Sequence[str] | None = None,
    move_params: bool = True,
) -> dict[str, tuple[float, ...]]:
    """The largest first-order changes found, by path, one for each slice of the leaf.

    A change is the maximum over positions of the RMS over the last axis. One program
    finds all of them. A leaf that is not scanned has one slice.

    Args:
        network: the network.
        seed: of the starting points.
        steps: steps of each start.
        restarts: starts for each slice. The first has the parameters and the inputs of
            the network; the others are random.
        paths: the parameters that are attacked; all by default.
        move_params: whether all parameters move too, within their unit balls.

    Raises:
        FloatingPointError: if a change is not finite.
    """
    places = _places(network)
    attacked = [place for place in places if paths is None or place.path in paths]
    rng = np.random.default_rng(seed)
    starts = _starts(network, places, rng, restarts, move_params)
    search = partial(_search, network, places, move_params)
    search = jax.vmap(search, in_axes=(None, 0, None))  # over starts
    search = jax.vmap(search, in_axes=(0, None, None))  # over slices of leaves
    search = jax.jit(search, compiler_options=COMPILER_OPTIONS)
    found = search(_chosen(places, attacked), starts, _rates(steps))
    numbers = np.asarray(found).max(axis=1)
    if not np.isfinite(numbers).all():
        raise FloatingPointError(
            f"The changes {numbers} of the output are not all finite: "
            f"{network.description}."
        )
    last = np.cumsum([place.slices for place in attacked])[:-1]
    return {
        place.path: tuple(part.tolist())
        for place, part in zip(attacked, np.split(numbers, last), strict=True)
    }


def _rates(steps: int) -> np.ndarray:
    """How far each step goes.

    From one half to a fiftieth, geometrically: of seven schedules the one that found
    the largest changes of seven networks with the same number of steps.
    """
    return np.geomspace(0.5, 0.02, steps, dtype=np.float32)


def _search(
    network: RandomNetwork,
    places: list[Place],
    move_params: bool,
    chosen: Packed,
    start: Point,
    rates: Array,
) -> Array:
    """The largest change on the way from one start."""
    change = partial(_change, network, places, chosen)

    def step(state: tuple[Point, Array], rate: Array) -> tuple[Any, None]:
        point, best = state
        value, slope = jax.value_and_grad(change)(point)
        direction, params = unit_steps(slope.direction, slope.params)
        moved = Point(
            direction=_moved(point.direction, direction, 1.0),
            params=_moved(point.params, params, rate if move_params else 0.0),
            inputs=_moved(point.inputs, tuple(map(_unit_rms, slope.inputs)), rate),
        )
        return (moved, jnp.maximum(best, value)), None

    (_, best), _ = lax.scan(step, (start, jnp.zeros(())), rates)
    return best


def _change(
    network: RandomNetwork, places: list[Place], chosen: Packed, point: Point
) -> Array:
    """The first-order change of the output for a step of the chosen parameter."""
    step = jax.tree.map(jnp.multiply, chosen, point.direction)
    params, step = [_unpacked(network, places, part) for part in (point.params, step)]
    _, change = jax.jvp(lambda p: network.forward(p, *point.inputs), (params,), (step,))
    return jnp.max(_rms(change))


def _moved(points: Any, units: Any, rate: ArrayLike) -> Any:
    """A part of the way to the units; an entry without a slope stays where it is."""

    def one(point: Array, unit: Array) -> Array:
        axes = tuple(range(1, unit.ndim))
        sloping = jnp.any(unit != 0, axis=axes, keepdims=True)
        return jnp.where(sloping, (1 - rate) * point + rate * unit, point)

    return jax.tree.map(one, points, units)


def unit_steps(*slopes: Packed) -> list[Packed]:
    """The points of the unit balls that go furthest along their slopes.

    These are the polar factors of the matrices and the signs of the vectors.
    """
    left, values, right = jnp.linalg.svd(
        jnp.stack([slope.matrices for slope in slopes]), full_matrices=False
    )
    large = values > RANK_TOLERANCE * values[..., :1]
    polar = INSIDE * (left * large[..., None, :]) @ right
    return [
        Packed(matrices, INSIDE * jnp.sign(slope.vectors))
        for matrices, slope in zip(polar, slopes, strict=True)
    ]


def _unit_rms(x: Array) -> Array:
    """`x` with an RMS of 1 at every position; zeros stay."""
    rms = _rms(x)[..., None]
    return INSIDE * jnp.where(rms > 0, x / jnp.where(rms > 0, rms, 1), 0)


def _rms(x: Array) -> Array:
    """The RMS over the last axis; its slope at 0 is 0."""
    square = jnp.mean(jnp.square(x), axis=-1)
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


def _places(network: RandomNetwork) -> list[Place]:
    """The places of all leaves, in the order of `jax.tree.leaves`."""
    places: list[Place] = []
    first = {False: 0, True: 0}
    for path, leaf in leaves_by_path(network.params).items():
        axes = network.axes_by_path[path]
        fan_in = [] if axes is None else _counted(axes.reduction_axis, leaf.ndim)
        fan_out = [leaf.ndim - 1]
        if axes is not None:
            fan_out = _counted(axes.output_axis, leaf.ndim)
        batch = [axis for axis in range(leaf.ndim) if axis not in fan_in + fan_out]
        groups = [batch, fan_in, fan_out] if fan_in else [batch, fan_out]
        sizes = tuple(math.prod(leaf.shape[axis] for axis in group) for group in groups)
        order = (*batch, *fan_in, *fan_out)
        slices = network.slices_by_path.get(path, 1)
        place = Place(path, leaf.shape, order, sizes, first[bool(fan_in)], slices)
        first[place.is_matrix] += sizes[0]
        places.append(place)
    return places


def _counted(axes: int | Sequence[int], rank: int) -> list[int]:
    """Axes as numbers from 0."""
    return [axis % rank for axis in ([axes] if isinstance(axes, int) else axes)]


def _empty(places: list[Place]) -> Packed:
    """Zeros, in NumPy."""

    def zeros(sizes: list[tuple[int, ...]], rank: int) -> np.ndarray:
        count = sum(size[0] for size in sizes)
        largest = [max([1, *[s[axis] for s in sizes]]) for axis in range(1, rank)]
        return np.zeros((count, *largest), np.float32)

    kernels = [place.sizes for place in places if place.is_matrix]
    biases = [place.sizes for place in places if not place.is_matrix]
    return Packed(zeros(kernels, 3), zeros(biases, 2))


def _packed(places: list[Place], leaves: list[Any]) -> Packed:
    """The stacks of the leaves, in NumPy."""
    packed = _empty(places)
    for place, leaf in zip(places, leaves, strict=True):
        stack = packed.matrices if place.is_matrix else packed.vectors
        stack[place.box] = (
            np.transpose(leaf, place.order).reshape(place.sizes) / place.scale
        )
    return packed


def _unpacked(network: RandomNetwork, places: list[Place], packed: Packed) -> Any:
    """The tree of arrays of the stacks."""
    leaves = []
    for place in places:
        stack = packed.matrices if place.is_matrix else packed.vectors
        shape = [place.shape[axis] for axis in place.order]
        leaf = (place.scale * stack[place.box]).reshape(shape)
        leaves.append(leaf.transpose(np.argsort(place.order).tolist()))
    return jax.tree.unflatten(jax.tree.structure(network.params), leaves)


def _chosen(places: list[Place], attacked: list[Place]) -> Packed:
    """For each slice, 1 on its own entries of the stacks and 0 elsewhere."""
    masks = []
    for place in attacked:
        for one in range(place.slices):
            mask = _empty(places)
            stack = mask.matrices if place.is_matrix else mask.vectors
            stack[place.entries(one)] = 1
            masks.append(mask)
    return jax.tree.map(lambda *parts: np.stack(parts), *masks)


def _starts(
    network: RandomNetwork,
    places: list[Place],
    rng: np.random.Generator,
    restarts: int,
    move_params: bool,
) -> Point:
    """Points of the balls along a new first axis; the first is the network's own."""

    def drawn() -> Any:
        """Random matrices and vectors of norm 1."""
        packed = _packed(places, [rng.normal(size=place.shape) for place in places])
        left, values, right = np.linalg.svd(packed.matrices, full_matrices=False)
        large = values > RANK_TOLERANCE * values[..., :1]
        matrices = (left * large[..., None, :]) @ right
        return Packed(matrices, np.sign(packed.vectors))

    def inputs() -> tuple[np.ndarray, ...]:
        normal = [rng.normal(size=x.shape) for x in network.inputs]
        return tuple(
            x / np.sqrt(np.mean(np.square(x), -1, keepdims=True)) for x in normal
        )

    own = _packed(places, jax.tree.leaves(network.params))
    points = [Point(drawn(), own, network.inputs)]
    for _ in range(restarts - 1):
        points.append(Point(drawn(), drawn() if move_params else own, inputs()))
    return jax.tree.map(lambda *x: (INSIDE * np.stack(x)).astype(np.float32), *points)
