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
# anything outside: a polar factor by SVD has a norm of at most 1 + 4e-7 (observed).
INSIDE = 1 - 1e-6

# Singular values below this multiple of the largest are rounding: eps of float32 times
# the size of the matrices. The polar factor leaves them out.
RANK_TOLERANCE = 1e-6

# XLA's optimizations cost more here than they save: a search runs for 0.3 s.
COMPILER_OPTIONS = {"xla_backend_optimization_level": 0}


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
    """Where one leaf lies in the stacks: `count` entries from `first`.

    Attributes:
        path: the path of the leaf.
        shape: its shape.
        order: its batch, input and output axes, in this order; empty for a vector.
        sizes: the numbers of matrices, inputs and outputs; empty for a vector.
        first: its first entry in the stack.
    """

    path: str
    shape: tuple[int, ...]
    order: tuple[int, ...]
    sizes: tuple[int, ...]
    first: int

    @property
    def entries(self) -> slice:
        return slice(self.first, self.first + (self.sizes[0] if self.sizes else 1))

    @property
    def scale(self) -> float:
        """The RMS-to-RMS norm is at most 1 if the spectral norm is at most this."""
        return math.sqrt(self.sizes[2] / self.sizes[1])


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
    places = _places(network)
    paths = [place.path for place in places] if paths is None else list(paths)
    rng = np.random.default_rng(seed)
    starts = _starts(network, places, rng, restarts, move_params)
    search = partial(_search, network, places, move_params)
    search = jax.vmap(search, in_axes=(None, 0, None))  # over starts
    search = jax.vmap(search, in_axes=(0, None, None))  # over paths
    search = jax.jit(search, compiler_options=COMPILER_OPTIONS)
    found = np.asarray(search(_chosen(places, paths), starts, _rates(steps))).max(
        axis=1
    )
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
        direction, params = _unit_steps(slope.direction, slope.params)
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


def _unit_steps(*slopes: Packed) -> list[Packed]:
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
    places, matrices, vectors = [], 0, 0
    for path, leaf in leaves_by_path(network.params).items():
        axes = network.axes_by_path[path]
        if axes is None:
            places.append(Place(path, leaf.shape, (), (), vectors))
            vectors += 1
            continue
        fan_in = _counted(axes.reduction_axis, leaf.ndim)
        fan_out = _counted(axes.output_axis, leaf.ndim)
        batch = [axis for axis in range(leaf.ndim) if axis not in fan_in + fan_out]
        groups = (batch, fan_in, fan_out)
        sizes = tuple(math.prod(leaf.shape[axis] for axis in group) for group in groups)
        order = (*batch, *fan_in, *fan_out)
        places.append(Place(path, leaf.shape, order, sizes, matrices))
        matrices += sizes[0]
    return places


def _counted(axes: int | Sequence[int], rank: int) -> list[int]:
    """Axes as numbers from 0."""
    return [axis % rank for axis in ([axes] if isinstance(axes, int) else axes)]


def _empty(places: list[Place]) -> Packed:
    """Zeros, in NumPy."""
    kernels = [place.sizes for place in places if place.sizes]
    biases = [place.shape[0] for place in places if not place.sizes]
    count = sum(sizes[0] for sizes in kernels)
    rows, columns = (max(sizes[axis] for sizes in kernels) for axis in (1, 2))
    matrices = np.zeros((count, rows, columns), np.float32)
    return Packed(matrices, np.zeros((len(biases), max(biases, default=1)), np.float32))


def _packed(places: list[Place], tree: Any) -> Packed:
    """The stacks of a tree of arrays, in NumPy."""
    packed = _empty(places)
    for place, leaf in zip(places, jax.tree.leaves(tree), strict=True):
        if place.sizes:
            matrices = np.transpose(leaf, place.order).reshape(place.sizes)
            _, rows, columns = place.sizes
            packed.matrices[place.entries, :rows, :columns] = matrices / place.scale
        else:
            packed.vectors[place.first, : leaf.size] = leaf
    return packed


def _unpacked(network: RandomNetwork, places: list[Place], packed: Packed) -> Any:
    """The tree of arrays of the stacks."""
    leaves = []
    for place in places:
        if not place.sizes:
            leaves.append(packed.vectors[place.first, : place.shape[0]])
            continue
        _, rows, columns = place.sizes
        matrices = place.scale * packed.matrices[place.entries, :rows, :columns]
        shape = [place.shape[axis] for axis in place.order]
        back = np.argsort(place.order).tolist()
        leaves.append(matrices.reshape(shape).transpose(back))
    return jax.tree.unflatten(jax.tree.structure(network.params), leaves)


def _chosen(places: list[Place], paths: Sequence[str]) -> Packed:
    """For each path, 1 on its own entries of the stacks and 0 elsewhere."""
    masks = [_empty(places) for _ in paths]
    known = {place.path: place for place in places}
    for path, mask in zip(paths, masks, strict=True):
        place = known[path]
        (mask.matrices if place.sizes else mask.vectors)[place.entries] = 1
    return Packed(*[np.stack(parts) for parts in zip(*masks, strict=True)])


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

    own = _packed(places, network.params)
    points = [Point(drawn(), own, network.inputs)]
    for _ in range(restarts - 1):
        points.append(Point(drawn(), drawn() if move_params else own, inputs()))
    return jax.tree.map(lambda *x: (INSIDE * np.stack(x)).astype(np.float32), *points)
