"""Attacks on certificates: projected gradient ascent with restarts, in float64.

What an attack finds bounds a supremum from below. It is computed in float64, from the
parameters as they are, so that its rounding is far below any that is allowed.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array, lax, numpy as jnp

from modular.certificates.domains import at_most, Domain, lengths, norms

Forward = Callable[[Any, Array], Array]

# XLA's optimizations cost more than they save on networks of this size.
COMPILER_OPTIONS = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
}

# How long the differences of inputs are, relative to the scale of the domain. The
# shortest stand for the derivative: rounding of float64 changes such a ratio by 1e-11
# (1e-16 / 1e-5), curvature by 1e-5 of it.
DISTANCES = (1e-5, 1e-2, 0.1, 1e-3, 0.5, 1e-5, 1.5, 1e-5)

# Differences up to this part of the scale fit into the domain as a whole.
SMALL = 0.01

# Pairs that a projection moved closer than this part of their distance do not count.
COLLAPSED = 1e-3


# At given starts differences are as short as rounding of float64 allows (it changes
# such a ratio by 1e-10), so that no kink lies between the two, and steps are this part
# of those from drawn ones, so that the start is not lost.
SHORTEST, NEAR = 1e-6, 0.05


class Pair(NamedTuple):
    """An input and the direction to a second one."""

    x: Any
    direction: Any


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """Float64 for what is traced inside."""
    before: bool = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def doubled(tree: Any) -> Any:
    """The floats of a tree in float64, the same numbers."""
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def ascended(
    values: Callable[[Any], Array],
    moved: Callable[[Any, Any, Array, Array], Any],
    start: Any,
    rates: np.ndarray,
) -> Array:
    """The largest values on the way from a start, one for each example.

    Args:
        values: what is maximised, for each example.
        moved: the next point, from a point, the slope of the sum of the values, the
            values and a rate.
        start: the first point.
        rates: one for each step.
    """

    def total(point: Any) -> tuple[Array, Array]:
        found = values(point)
        return jnp.sum(found), found

    def step(state: Any, rate: Array) -> Any:
        point, best = state
        (_, found), slope = jax.value_and_grad(total, has_aux=True)(point)
        return (moved(point, slope, found, rate), jnp.maximum(found, best)), None

    best = jnp.full(jax.eval_shape(values, start).shape, -jnp.inf)
    (_, best), _ = lax.scan(step, (start, best), jnp.asarray(rates))
    return best


def unit(x: Array) -> Array:
    """Every example divided by its L2 norm; zeros stay."""
    size = lengths(x)
    return jnp.where(size > 0, x / jnp.where(size > 0, size, 1), 0)


def rates_of(steps: int, last: int) -> np.ndarray:
    """From one half of the scale to a two hundredth, then `last` steps of 0.

    In the last steps the input rests, and the direction follows the power iteration of
    the Jacobian there.
    """
    return np.concatenate([np.geomspace(0.5, 0.005, steps - last), np.zeros(last)])


def attacked_ratios(
    forward: Forward,
    params: Any,
    domain: Domain,
    readers: np.ndarray | None = None,
    *,
    seed: int = 0,
    starts: int = 16,
    steps: int = 60,
    further: Pair | None = None,
) -> np.ndarray:
    """The largest ratios of differences of outputs to differences of inputs found.

    Args:
        forward: `forward(params, x)`, which treats examples independently.
        params: its parameters.
        domain: both inputs lie in it.
        readers: [count, rows, features], what is read of a difference of outputs; the
            difference itself by default.
        seed: of the starts.
        starts: starts for every reader.
        steps: steps from every start.
        further: starts beside the drawn ones, for every reader: [starts, examples, …],
            where the function is known to be steep.

    Returns:
        One number for each reader: the L2 norm over the last axis of what is read, the
        largest over other axes, over the L2 norm of the difference of that example.
    """
    rng = np.random.default_rng(seed)
    pairs = _pairs_drawn(domain, rng, starts)
    distances, reach = np.resize(DISTANCES, starts), np.ones(starts)
    if further is not None:
        pairs = jax.tree.map(lambda *x: np.concatenate(x), pairs, further)
        distances = np.append(distances, np.full(len(further.x), SHORTEST))
        reach = np.append(reach, np.full(len(further.x), NEAR))

    def search(
        params: Any, reader: Array | None, distance: Array, reach: Array, start: Pair
    ) -> Any:
        inside = partial(domain.nearest, margin=_margin(domain, distance))

        def values(pair: Pair) -> Array:
            return _ratios(forward, params, domain, reader, distance, pair)

        def moved(pair: Pair, slope: Pair, ratios: Array, rate: Array) -> Pair:
            x = inside(pair.x + rate * reach * domain.scale * unit(slope.x))
            # The slope of a ratio has no part along the direction. With this part it
            # is Jᵀ(change of the output): a step of the power iteration.
            wide = ratios.reshape(-1, *[1] * (x.ndim - 1))
            turned = unit(slope.direction + wide * pair.direction)
            return Pair(x, jnp.where(turned == 0, pair.direction, turned))

        first = Pair(inside(start.x), start.direction)
        return ascended(values, moved, first, rates_of(steps, steps // 3))

    with double_precision():
        over_starts = jax.vmap(search, in_axes=(None, None, 0, 0, 0))
        axis = None if readers is None else 0
        count = 1 if readers is None else len(readers)
        axes = (None, axis, None, None, None)
        both = jax.vmap(over_starts, in_axes=axes, axis_size=count)
        found = jax.jit(both, compiler_options=COMPILER_OPTIONS)(
            doubled(params), readers, domain.scale * distances, reach, pairs
        )
        return _finite(np.asarray(found)).max(axis=(1, 2))


def _margin(domain: Domain, distance: Array) -> Array:
    """Room for short differences; long ones are projected."""
    return jnp.where(distance <= SMALL * domain.scale, distance, 0)


def _pairs_drawn(domain: Domain, rng: np.random.Generator, starts: int) -> Pair:
    xs = np.stack([domain.drawn(rng) for _ in range(starts)])
    directions = rng.normal(size=xs.shape)
    axes = tuple(range(2, xs.ndim))
    size = np.sqrt(np.sum(np.square(directions), axis=axes, keepdims=True))
    return Pair(xs, directions / size)


def _ratios(
    forward: Forward,
    params: Any,
    domain: Domain,
    reader: Array | None,
    distance: Array,
    pair: Pair,
) -> Array:
    """The ratio of each example, the largest over positions of its output."""
    y = domain.nearest(pair.x + distance * pair.direction)
    change = forward(params, y) - forward(params, pair.x)
    if reader is not None:
        change = change @ reader.T
    apart = lengths(y - pair.x).reshape(-1)
    counts = apart > COLLAPSED * distance
    return jnp.where(counts, _largest(change) / jnp.where(counts, apart, 1), 0)


def _largest(outputs: Array) -> Array:
    """For each example the L2 norm over the last axis, the largest over positions."""
    return jnp.max(norms(outputs).reshape(len(outputs), -1), axis=1)


def pair_readers(classes: int) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Readers of f_i − f_j, and the pairs i < j."""
    pairs = [(i, j) for i in range(classes) for j in range(i + 1, classes)]
    readers = np.zeros((len(pairs), 1, classes))
    for index, (i, j) in enumerate(pairs):
        readers[index, 0, i], readers[index, 0, j] = 1, -1
    return readers, pairs


def attacked_changes(
    forward: Forward,
    params: Any,
    updates: Sequence[Any],
    domain: Domain,
    *,
    seed: int = 0,
    starts: int = 8,
    steps: int = 40,
) -> np.ndarray:
    """The largest changes of the output by each of the updates, over inputs found.

    A change is the L2 norm over the last axis, the largest over other axes.
    """
    rng = np.random.default_rng(seed)
    xs = np.stack([domain.drawn(rng) for _ in range(starts)])

    def search(params: Any, update: Any, start: Array) -> Any:
        after = jax.tree.map(jnp.add, params, update)

        def values(x: Array) -> Array:
            return _largest(forward(after, x) - forward(params, x))

        def moved(x: Array, slope: Array, changes: Array, rate: Array) -> Array:
            del changes
            return domain.nearest(x + rate * 2 * domain.scale * unit(slope))

        return ascended(values, moved, domain.nearest(start), rates_of(steps, 0))

    with double_precision():
        over_starts = jax.vmap(search, in_axes=(None, None, 0))

        # One update after the other: convolutions with many kernels at once are slow.
        def each(params: Any, updates: Any, xs: Array) -> Array:
            return lax.map(lambda one: over_starts(params, one, xs), updates)

        stacked = jax.tree.map(lambda *x: np.stack(x), *map(doubled, updates))
        found = jax.jit(each, compiler_options=COMPILER_OPTIONS)(
            doubled(params), stacked, xs
        )
        return _finite(np.asarray(found)).max(axis=(1, 2))


def attacked_margins(
    forward: Forward,
    params: Any,
    x: np.ndarray,
    labels: np.ndarray,
    radii: np.ndarray,
    *,
    box: tuple[float, float] | None = None,
    seed: int = 0,
    starts: int = 8,
    steps: int = 40,
) -> np.ndarray:
    """The smallest margins found within the radius of each example.

    A margin is the logit of the label less the largest other one; a negative margin is
    a changed decision. With a box, inputs stay in it.
    """
    rng = np.random.default_rng(seed)
    examples = np.asarray(x, np.float64)
    directions = rng.normal(size=(starts, *examples.shape))
    axes = tuple(range(2, directions.ndim))
    wide_radii = np.reshape(np.float64(radii), (-1, *[1] * (examples.ndim - 1)))
    size = np.sqrt(np.sum(np.square(directions), axis=axes, keepdims=True))
    directions *= wide_radii / size
    label = np.asarray(labels)

    def search(params: Any, around: Array, radius: Array, start: Array) -> Any:
        def inside(x: Array) -> Array:
            x = around + at_most(x - around, lengths(x - around), radius)
            # The projection onto the box brings no point further from the example.
            return x if box is None else jnp.clip(x, *box)

        def values(x: Array) -> Array:
            return -_margins(forward(params, x), label)

        def moved(x: Array, slope: Array, margins: Array, rate: Array) -> Array:
            del margins
            return inside(x + 2 * rate * radius * unit(slope))

        return ascended(values, moved, inside(start), rates_of(steps, 0))

    with double_precision():
        over_starts = jax.vmap(search, in_axes=(None, None, None, 0))
        found = jax.jit(over_starts, compiler_options=COMPILER_OPTIONS)(
            doubled(params), examples, wide_radii, examples + directions
        )
        return -_finite(np.asarray(found)).max(axis=0)


def _margins(logits: Array, label: Any) -> Array:
    """The logit of each label less the largest other one."""
    is_own = jax.nn.one_hot(label, logits.shape[-1], dtype=bool)
    own = jnp.sum(jnp.where(is_own, logits, 0), axis=-1)
    return own - jnp.max(jnp.where(is_own, -jnp.inf, logits), axis=-1)


def _finite(numbers: np.ndarray) -> np.ndarray:
    """The numbers.

    Raises:
        FloatingPointError: if one is not finite.
    """
    if not np.isfinite(numbers).all():
        raise FloatingPointError(f"The attack found numbers that are not: {numbers}.")
    return numbers
