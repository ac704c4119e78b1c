"""Points where a function is steep: a search by a population, in float32.

It needs no slope of the Jacobian, which is 0 for networks of ReLUs, and starts from
many more points than a gradient ascent can. What it finds are starts of `ascent`, which
measures pairs of inputs there in float64: at a kink the derivative of JAX may be that
of no pair.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array, lax, numpy as jnp

from modular.certificates.ascent import COMPILER_OPTIONS, Pair, SHORTEST
from modular.certificates.domains import Domain

# A trial moves by a part of the scale of the domain between these.
LEAST, MOST = 1e-4, 1.0

# Trials between two selections; with fewer, the descendants of one point take over
# before others are near their maxima.
GENERATION = 40


class Population(NamedTuple):
    """Points, for each a direction of input, and how steep it is there at least."""

    x: Array
    direction: Array
    slope: Array


def steep_pairs(
    forward: Callable[[Any, Array], Array],
    params: Any,
    domain: Domain,
    *,
    points: int,
    trials: int,
    count: int,
    seed: int = 0,
) -> Pair:
    """Points where the Jacobian is large, each with a direction: starts of the ascent.

    Args:
        forward: `forward(params, x)`, which treats examples independently.
        params: its parameters, taken as float32: these are only starts.
        domain: the points lie in it.
        points: where the search begins, drawn.
        trials: of every point.
        count: of pairs.
        seed: of all that is drawn.

    Returns:
        [count, examples, ...] points and directions, in float64.
    """
    rng = np.random.default_rng(seed)
    shape = domain.like.shape
    drawn = [domain.drawn(rng) for _ in range(-(-points // shape[0]))]
    xs = np.concatenate(drawn).astype(np.float32)
    margin = 10 * SHORTEST * domain.scale
    inside = functools.partial(domain.nearest, margin=margin)

    def search(params: Any, xs: Array, key: Array) -> Population:
        function = lambda x: forward(params, x)
        return steepest(function, inside, domain.scale, xs, key, trials=trials)

    compiled = jax.jit(search, compiler_options=COMPILER_OPTIONS)
    found = compiled(params, xs, jax.random.key(seed))
    chosen = np.arange(count * shape[0]) % len(xs)
    ends = (np.asarray(leaf, np.float64)[chosen] for leaf in found[:2])
    return Pair(*(end.reshape(count, *shape) for end in ends))


def steepest(
    function: Callable[[Array], Array],
    inside: Callable[[Array], Array],
    scale: float,
    xs: Array,
    key: Array,
    *,
    trials: int,
) -> Population:
    """Where the Jacobian is large, from the steepest on.

    Args:
        function: from [examples, ...] to [examples, ..., features]; treats examples
            independently. Of its change the L2 norm over the last axis counts, at the
            position where that is largest.
        inside: to a point of the domain.
        scale: of the domain.
        xs: [points, ...], where the search begins.
        key: of the random moves.
        trials: of every point.
    """
    first, second = jax.random.split(key)
    start = _turned(function, inside(xs), jax.random.normal(first, xs.shape))

    def step(old: Population, given: tuple[Array, Array]) -> tuple[Population, None]:
        index, key = given
        moved = _turned(function, inside(_moved(old.x, scale, key)), old.direction)
        better = moved.slope > old.slope
        kept = jax.tree.map(lambda a, b: jnp.where(_wide(better, a), a, b), moved, old)
        return lax.cond(index % GENERATION == 0, _selected, lambda x: x, kept), None

    keys = jax.random.split(second, trials)
    found, _ = lax.scan(step, start, (jnp.arange(1, trials + 1), keys))
    return jax.tree.map(lambda leaf: leaf[jnp.argsort(-found.slope)], found)


def _turned(
    function: Callable[[Array], Array], x: Array, direction: Array
) -> Population:
    """Each direction one step of the power iteration on, and what it attains.

    With u the change of the output by the direction, of norm 1, `‖Jᵀu‖` is between
    that change and the norm of the Jacobian.
    """
    out, back = jax.vjp(function, x)
    _, change = jax.jvp(function, (x,), (direction,))
    size = jnp.sum(jnp.square(change), axis=-1, keepdims=True)
    positions = tuple(range(1, out.ndim - 1))
    largest = jnp.max(size, axis=positions, keepdims=True)
    (turned,) = back(jnp.where(size == largest, change / _root(size), 0))
    square = jnp.sum(jnp.square(turned), axis=tuple(range(1, x.ndim)))
    norm = _wide(_root(square), turned)
    turned = jnp.where(_wide(square, turned) > 0, turned / norm, direction)
    return Population(x, turned, jnp.sqrt(square))


def _root(square: Array) -> Array:
    return jnp.sqrt(jnp.where(square > 0, square, 1))


def _moved(x: Array, scale: float, key: Array) -> Array:
    """Random moves of all lengths, and parts of the difference of two other points."""
    noise_key, length_key, other_key, kind_key = jax.random.split(key, 4)
    noise = jax.random.normal(noise_key, x.shape)
    noise /= jnp.sqrt(noise[0].size)
    random = jax.random.uniform(length_key, (len(x),))
    length = LEAST * (MOST / LEAST) ** random
    a, b = jax.random.randint(other_key, (2, len(x)), 0, len(x))
    between = _wide(1.2 * random, x) * (x[a] - x[b])
    shorter = -_wide(length, x) * x
    kind = jax.random.randint(kind_key, (len(x),), 0, 5)
    by_noise = _wide(length, x) * scale * noise
    return x + jnp.where(
        _wide(kind == 0, x), shorter, jnp.where(_wide(kind < 3, x), between, by_noise)
    )


def _selected(old: Population) -> Population:
    """The steeper half twice: the second one moves on by other moves."""
    best = jnp.argsort(-old.slope)[: (len(old.slope) + 1) // 2]
    chosen = jnp.concatenate([best, best])[: len(old.slope)]
    return jax.tree.map(lambda leaf: leaf[chosen], old)


def _wide(x: Array, like: Array) -> Array:
    return x.reshape(-1, *[1] * (like.ndim - 1))
