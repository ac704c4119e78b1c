"""The bounds of a skeleton in numbers: norms of its maps, and those of pairs."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float32

from manifold_optax.modular._certificates._evaluate import Evaluation
from manifold_optax.modular._certificates._maps import linear_maps, map_norms
from manifold_optax.modular._certificates._pairs import row_differences
from manifold_optax.modular._certificates._skeleton import (
    MapNorm,
    MOST_ENTRIES,
    Skeleton,
)
from manifold_optax.modular._computation._graph import Value

_MOST_PAIRS = 2**28
"""Entries of all differences of two rows of the maps: 0.1 s on two cores."""

_EPS = 2.0**-23


def norms_of_maps(
    skeleton: Skeleton, names: Sequence[MapNorm], arrays: dict[Value, Array]
) -> dict[MapNorm, Float32[Array, ""]]:
    """The norm of every map, those to one value at once."""
    (output,) = skeleton.network.graph.outputs
    found: dict[MapNorm, Array] = {}
    for target in dict.fromkeys(name.target for name in names):
        mine = [name for name in names if name.target is target]
        sources = [name.source for name in mine]
        norms = map_norms(
            skeleton.region(target), sources, arrays, is_output=target is output
        )
        found.update(zip(mine, norms, strict=True))
    return found


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
    maps = linear_maps(skeleton.region(output), sources, arrays)
    bounds = jnp.zeros((classes, classes))
    for term, rows in zip(skeleton.terms, maps, strict=True):
        error = math.sqrt(2) * term.error * evaluation.value(term.product)
        radius = evaluation.value(term.radius)
        norms = row_differences(rows) + jnp.where(term.error > 0, error, 0.0)
        # Nothing moves by nothing, whatever the map is.
        bounds += jnp.where(radius > 0, norms * radius, 0.0)
    bounds = bounds * (1 + (len(sizes) + 8) * _EPS)
    return jnp.where(jnp.isnan(bounds), jnp.inf, bounds)
