"""Attacks: searches that try to refute a certificate, and so bound it from below.

`attack_decisions` looks for inputs nearby that change a classifier's decision,
`largest_ratio` for two inputs between which the output changes most, and
`largest_change` for the input at which a change of the parameters shows most. Whatever
they find is true of the network: a certificate that says less is wrong.

The attack is written here rather than taken from a package. Of those that run on JAX,
Foolbox (last release in March 2024, over EagerPy of August 2021) steps in Python,
outside `jit`, and CleverHans has had no release since July 2021. Either would replace a
hundred lines.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, Key

from manifold_optax.experiments.input_sets import (
    aligned,
    Domain,
    InBox,
    normalized,
    norms,
    shrinking,
)

Function: TypeAlias = Callable[[Any, Any], Any]
"""(parameters, inputs `[n, ...]`) → outputs; hashable, for it keys the compilation."""

# The difference of logits ratio divides by a difference that may be 0.
_LEAST_GAP = 1e-12

# Lengths of the pairs of `largest_ratio`, one a restart: long ones cross the kinks of
# the network, short ones see its steepest place.
_PAIR_SIZES = (0.01, 0.1, 1.0)

# Parts of the way to the extreme point that `largest_change` goes, one a restart. The
# whole way is best for a change that is convex in the input, as that of one layer is.
_STRIDES = (1.0, 0.3, 0.1)


class Attacked(NamedTuple):
    """What an attack found.

    Attributes:
        inputs: The inputs, moved.
        changed: Whether the function decides against the label there.
    """

    inputs: Float[Array, "n ..."]
    changed: Bool[Array, " n"]


@dataclasses.dataclass(frozen=True)
class Effort:
    """How hard an attack tries.

    Attributes:
        steps: Steps per restart.
        restarts: Number of restarts, at least 1.
    """

    steps: int = 40
    restarts: int = 4


class Found(NamedTuple):
    """The largest number that a search found, and the input where it is."""

    value: Float[Array, ""]
    inputs: Float[Array, "n ..."]


class _Start(NamedTuple):
    """One restart of the attack."""

    shift: Float[Array, "n ..."]
    by_logits: Bool[Array, ""]


@functools.partial(jax.jit, static_argnames=("function", "effort", "box"))
def attack_decisions(
    function: Function,
    params: Any,
    inputs: Float[Array, "n ..."],
    labels: Int32[Array, " n"],
    radius: Float[Array, ""],
    key: Key[Array, ""],
    *,
    effort: Effort = Effort(),
    box: InBox | None = None,
) -> Attacked:
    """Looks for inputs within an L2 distance that a classifier decides differently.

    Projected gradient ascent. Steps go in the direction of the gradient; their length
    falls linearly from the radius to zero. Restarts ascend the cross entropy and the
    difference of logits ratio in turn. The first two start at the inputs, the others at
    random points of the ball.

    Args:
        function: (params, inputs) → logits `[n, classes]`; hashable.
        params: Its parameters.
        inputs: The inputs.
        labels: The right class of each; that of the function, to see whether the
            decision changes at all.
        radius: Largest L2 distance, over all axes but the first.
        key: Of the random starts.
        effort: How many steps and restarts.
        box: Where all inputs must lie; those given must.

    Returns:
        The moved inputs and whether the decision is against the label. Where no
        restart succeeds, the input with the smallest margin.

    Source: A. Madry et al. (arXiv:1706.06083), section 2.1; for the difference of
    logits ratio F. Croce and M. Hein (arXiv:2003.01690), equation 6.
    """

    def climb(start: _Start) -> tuple[Array, Array]:
        return _climb(
            function, params, inputs, labels, radius, start, effort.steps, box
        )

    numbers = jnp.arange(effort.restarts)
    draw = lambda number: _random_shift(jax.random.fold_in(key, number), inputs)
    random = jax.vmap(draw)(numbers)
    shifts = jnp.where(aligned(numbers >= 2, random), radius * random, 0)
    moved, margins = jax.vmap(climb)(_Start(shifts, numbers % 2 == 1))
    best = jnp.argmin(margins, 0)
    chosen = jnp.take_along_axis(moved, aligned(best, inputs)[None], 0)[0]
    return Attacked(chosen, jnp.argmax(function(params, chosen), -1) != labels)


@functools.partial(jax.jit, static_argnames=("function", "steps", "domain"))
def largest_ratio(
    function: Function,
    params: Any,
    inputs: Float[Array, "n ..."],
    key: Key[Array, ""],
    *,
    steps: int = 60,
    domain: Domain | None = None,
) -> Found:
    """Looks for two inputs between which the output changes most for their distance.

    Every input is the first of pairs of three lengths. The second point of a pair
    follows the gradient all the way, as in power iteration; the first climbs by steps
    that fall to zero.

    Args:
        function: (params, inputs) → outputs `[n, ...]`, floating; hashable.
        params: Its parameters.
        inputs: Where to start.
        key: Of the second points.
        steps: Steps per pair.
        domain: Where both points must lie; None: anywhere.

    Returns:
        The largest ‖f(x + d) − f(x)‖ / ‖d‖, a lower bound of the Lipschitz constant,
        and the first points of the pairs at which each input ended. Norms are over the
        last axis of the output, largest over its others, and over all axes of the
        input but the first.
    """
    keep = (lambda points: points) if domain is None else domain.nearest
    scale = jnp.maximum(jnp.max(norms(inputs)), 1.0)

    def ratios(x: Array, y: Array) -> Array:
        change = function(params, y) - function(params, x)
        return _lengths(change) / jnp.maximum(norms(y - x), _LEAST_GAP * scale)

    def pair(x: Array, shift: Array) -> tuple[Array, Array]:
        # At the boundary the first point gives way, so that the direction is kept.
        y = keep(x + shift)
        return keep(y - shift), y

    def search(size: Array, direction: Array) -> tuple[Array, Array]:
        def step(carried: Any, time: Array) -> tuple[Any, None]:
            x, y, best, at = carried
            value, pull = jax.vjp(ratios, x, y)
            toward_x, toward_y = pull(jnp.ones_like(value))
            better = value > best
            best = jnp.where(better, value, best)
            at = jnp.where(aligned(better, x), x, at)
            # The gradient of the numerator: at a fixed length that is where to turn.
            shift = y - x
            squares = jnp.maximum(norms(shift), _LEAST_GAP * scale) ** 2
            ascent = toward_y + shift * aligned(value / squares, x)
            stride = 0.1 * scale * (1 - time)
            x = x + stride * normalized(toward_x + toward_y)
            return (*pair(x, size * normalized(ascent)), best, at), None

        first = (*pair(keep(inputs), size * direction), jnp.zeros(len(inputs)), inputs)
        times = jnp.linspace(0, 1, steps, endpoint=False)
        (_, _, best, at), _ = jax.lax.scan(step, first, times)
        return best, at

    sizes = scale * jnp.array(_PAIR_SIZES)
    draw = lambda own: normalized(jax.random.normal(own, inputs.shape, inputs.dtype))
    directions = jax.vmap(draw)(jax.random.split(key, len(_PAIR_SIZES)))
    best, at = jax.vmap(search)(sizes, directions)
    chosen = aligned(jnp.argmax(best, 0), inputs)[None]
    return Found(jnp.max(best), jnp.take_along_axis(at, chosen, 0)[0])


@functools.partial(jax.jit, static_argnames=("function", "steps", "domain"))
def largest_change(
    function: Function,
    params: Any,
    updates: Any,
    inputs: Float[Array, "n ..."],
    *,
    domain: Domain,
    steps: int = 40,
) -> Found:
    """Looks for the input of a set at which a change of the parameters shows most.

    Every input goes a part of the way towards the point of the set that is best to
    first order, again and again (the method of Frank and Wolfe): once the whole way,
    once 0.3 and once 0.1 of it.

    Args:
        function: (params, inputs) → outputs `[n, ...]`, floating; hashable.
        params: Its parameters.
        updates: What is added to them; a tree like them.
        inputs: Where to start.
        domain: The set of inputs.
        steps: Steps per start.

    Returns:
        The largest ‖f(params + updates, x) − f(params, x)‖ over the last axis of the
        output, and the inputs at which each start was largest.
    """
    moved = jax.tree.map(lambda leaf, update: leaf + update, params, updates)

    def changes(x: Array) -> Array:
        return _lengths(function(moved, x) - function(params, x))

    def search(stride: Array) -> tuple[Array, Array]:
        def step(carried: Any, _: None) -> tuple[Any, None]:
            x, best, at = carried
            value, pull = jax.vjp(changes, x)
            [gradient] = pull(jnp.ones_like(value))
            better = value > best
            best = jnp.where(better, value, best)
            at = jnp.where(aligned(better, x), x, at)
            return (x + stride * (domain.extreme(gradient) - x), best, at), None

        x = domain.nearest(inputs)
        first = (x, jnp.zeros(len(x)), x)
        (_, best, at), _ = jax.lax.scan(step, first, length=steps)
        return best, at

    best, at = jax.vmap(search)(jnp.array(_STRIDES))
    chosen = aligned(jnp.argmax(best, 0), inputs)[None]
    return Found(jnp.max(best), jnp.take_along_axis(at, chosen, 0)[0])


def _climb(
    function: Function,
    params: Any,
    inputs: Array,
    labels: Array,
    radius: Array,
    start: _Start,
    steps: int,
    box: InBox | None,
) -> tuple[Array, Array]:
    """Returns where one restart ends, and the margins there; below 0: it succeeded."""

    def keep(points: Array) -> Array:
        shift = points - inputs
        near = inputs + shift * shrinking(shift, radius)
        return near if box is None else box.nearest(near)

    def loss(x: Array) -> tuple[Array, Array]:
        logits = function(params, x)
        by_logits, entropy = _ratio_loss(logits, labels), _cross_entropy(logits, labels)
        chosen = jnp.where(start.by_logits, by_logits, entropy)
        return chosen.sum(), _margins(logits, labels)

    def step(carried: tuple[Array, ...], time: Array) -> tuple[tuple[Array, ...], None]:
        x, best, at = carried
        gradient, margins = jax.grad(loss, has_aux=True)(x)
        best, at = _better(margins, x, best, at)
        return (keep(x + radius * (1 - time) * normalized(gradient)), best, at), None

    x = keep(inputs + start.shift)
    first = (x, jnp.full(len(x), jnp.inf, jnp.float32), x)
    times = jnp.linspace(0, 1, steps, endpoint=False)
    (x, best, at), _ = jax.lax.scan(step, first, times)
    best, at = _better(_margins(function(params, x), labels), x, best, at)
    return at, best


def _better(margins: Array, x: Array, best: Array, at: Array) -> tuple[Array, Array]:
    less = margins < best
    return jnp.where(less, margins, best), jnp.where(aligned(less, x), x, at)


def _margins(logits: Array, labels: Array) -> Array:
    """The logit of the label less the largest other one."""
    own, other = _own_and_other(logits, labels)
    return own - other


def _own_and_other(logits: Array, labels: Array) -> tuple[Array, Array]:
    is_own = jnp.arange(logits.shape[-1])[None, :] == labels[:, None]
    own = jnp.sum(jnp.where(is_own, logits, 0), -1)
    return own, jnp.max(jnp.where(is_own, -jnp.inf, logits), -1)


def _cross_entropy(logits: Array, labels: Array) -> Array:
    own, _ = _own_and_other(logits, labels)
    return jax.nn.logsumexp(logits, -1) - own


def _ratio_loss(logits: Array, labels: Array) -> Array:
    """The difference of logits ratio; the plain difference for two classes."""
    own, other = _own_and_other(logits, labels)
    if logits.shape[-1] < 3:
        return other - own
    ordered = jnp.sort(logits, -1)
    return (other - own) / (ordered[:, -1] - ordered[:, -3] + _LEAST_GAP)


def _random_shift(key: Array, like: Array) -> Array:
    """Points of the unit ball, one for each input, uniform in it."""
    of_direction, of_length = jax.random.split(key)
    direction = normalized(jax.random.normal(of_direction, like.shape, like.dtype))
    size = like[0].size
    lengths = jax.random.uniform(of_length, like.shape[:1]) ** (1 / size)
    return direction * aligned(lengths, like)


def _lengths(outputs: Array) -> Array:
    """Norms over the last axis, the largest of each example."""
    rows = outputs.reshape(-1, outputs.shape[-1])
    return norms(rows).reshape(len(outputs), -1).max(-1)
