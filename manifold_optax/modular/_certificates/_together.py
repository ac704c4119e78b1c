"""The bounds of a skeleton in numbers: norms of its maps, and those of pairs."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from manifold_optax.modular._bounds._mixed_norm import mixed_norm
from manifold_optax.modular._certificates._evaluate import EPS, Evaluation
from manifold_optax.modular._certificates._live_norms import live_norms
from manifold_optax.modular._certificates._maps import (
    distances,
    Gram,
    grams,
    norm_of_gram,
)
from manifold_optax.modular._certificates._skeleton import (
    MapNorm,
    MOST_ENTRIES,
    Skeleton,
)
from manifold_optax.modular._computation._graph import Value

_MOST_PAIRS = 2**28
"""Entries of all differences of two rows of the maps: 0.1 s on two cores."""

_SMALL = 64
"""Matrices up to this side are padded to one size."""


def norms_of_maps(
    skeleton: Skeleton, names: Sequence[MapNorm], arrays: dict[Value, Array]
) -> dict[MapNorm, Float32[Array, ""]]:
    """Bounds of the norms of maps as they are computed.

    Of an output the norm is Euclidean over the last axis, the largest over others.
    """
    (output,) = skeleton.network.graph.outputs
    found: dict[MapNorm, Gram] = {}
    for target in dict.fromkeys(name.target for name in names):
        mine = [name for name in names if name.target is target]
        sources = [name.source for name in mine]
        rows = math.prod(target.shape[-1:] if target is output else target.shape)
        squares = grams(skeleton.region(target), sources, arrays, rows)
        found.update(zip(mine, squares, strict=True))
    sides = [x.square.shape[-1] for x in found.values()]
    small = max((side for side in sides if side <= _SMALL), default=0)
    squares = [_padded(x.square, small) for x in found.values()]
    norms = live_norms([(x, mixed_norm(x.shape, "boi")) for x in squares])
    pairs = zip(found.items(), norms, strict=True)
    return {name: norm_of_gram(x, norm) for (name, x), norm in pairs}


def _padded(square: Float[Array, "b n n"], side: int) -> Float[Array, "b m m"]:
    """A small matrix with zeros around it, so that one program measures all of them."""
    more = max(0, side - square.shape[-1])
    return jnp.pad(square, ((0, 0), (0, more), (0, more)))


def pairs_together(
    skeleton: Skeleton, arrays: dict[Value, Array], evaluation: Evaluation
) -> Float32[Array, "classes classes"] | None:
    """Bounds of the differences of every two outputs; `None` if they are not known.

    Of each map the difference of two rows counts.
    """
    (output,) = skeleton.network.graph.outputs
    if not output.shape or math.prod(output.shape[:-1]) != 1 or not skeleton.terms:
        return None
    classes = output.shape[-1]
    sizes = [classes * math.prod(term.source.shape) for term in skeleton.terms]
    if max(sizes) > MOST_ENTRIES or classes * sum(sizes) > _MOST_PAIRS:
        return None
    sources = [term.source for term in skeleton.terms]
    maps = distances(skeleton.region(output), sources, arrays)
    bounds = jnp.zeros((classes, classes))
    terms = skeleton.terms
    sizes_of = [size for term in terms for size in (term.product, term.radius)]
    values = evaluation.values(sizes_of).reshape(-1, 2)
    for term, found, (product, radius) in zip(terms, maps, values, strict=True):
        error = math.sqrt(2) * term.error * product
        norms = found + jnp.where(term.error > 0, error, 0.0)
        bounds += norms * radius
    bounds = bounds * (1 + (len(sizes) + 8) * EPS)
    return jnp.where(jnp.isnan(bounds), jnp.inf, bounds)
