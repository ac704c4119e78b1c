"""What happens to each leaf that QK-clip rescales."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from manifold_optax._checks import require_floating
from manifold_optax._typing import ArrayTree
from manifold_optax.attention._beside import require_biases
from manifold_optax.attention._columns import columns_of, layer_axes, merge, spread
from manifold_optax.attention._factors import logit_factors, side_factors
from manifold_optax.attention._resolve import require_statistics, resolve
from manifold_optax.attention._spec import Attention, HeadPart, SIDES
from manifold_optax.trees import join_paths, leaves_by_path

_HINT = (
    "One number per layer and head is wanted, the largest over batch and positions; "
    "under shard_map over heads, gather the heads first."
)


class Located(NamedTuple):
    """Where the heads of one attention layer of a model lie."""

    spec: Attention
    layers: tuple[int, ...]
    """Numbers of stacked layers."""
    leaves: dict[str, tuple[np.ndarray, tuple[int, ...], float]]
    """Path → columns of the factors, axes of stacked layers, offset."""


class ClipReport(NamedTuple):
    """The leaves whose heads one transformation rescales."""

    name: str
    paths: tuple[str, ...]


class Rescaling(NamedTuple):
    """What happens to one leaf: `(leaf + offset) * factor - offset`."""

    factor: Array
    """Factor of each entry, to broadcast with the leaf."""
    offset: float
    """1 for a gain that is stored as its difference from 1."""

    def __call__(self, leaf: Any) -> Array:
        """The rescaled leaf, in at least float32; `leaf` itself where nothing is to do.

        A factor of 1 is not applied: `leaf + offset - offset` is another number.
        """
        wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        factor = self.factor.astype(wide.dtype)
        rescaled = (wide + self.offset) * factor - self.offset
        return jnp.where(factor == 1, wide, rescaled)


def locate(attention: Mapping[str, Attention], params: ArrayTree) -> dict[str, Located]:
    """Finds the attention layers of a model: path → where their heads lie.

    Raises:
        ValueError, TypeError: as `qk_clip`.
    """
    leaves = leaves_by_path(params)
    wanted = {
        pattern: [part.path for side in SIDES for part in spec.parts(side)]
        for pattern, spec in attention.items()
    }
    owner = resolve("attention", wanted, leaves)
    for module in owner:
        require_biases(module, attention[owner[module]], leaves)
    return {path: _located(path, attention[owner[path]], leaves) for path in owner}


def rescalings(
    located: Mapping[str, Located],
    max_logits: Any,
    *,
    threshold: Any,
    balance: Any,
    allow_missing: bool = False,
) -> dict[str, Rescaling]:
    """What happens to each leaf that QK-clip rescales, by path.

    Raises:
        ValueError, TypeError: as `qk_clip`, for the statistics.
    """
    require_statistics(
        "max_logits",
        max_logits,
        {path: (*found.layers, found.spec.heads) for path, found in located.items()},
        hint=_HINT,
        allow_missing=allow_missing,
    )
    result: dict[str, Rescaling] = {}
    for module, largest in max_logits.items():
        found = located[module]
        logits = _replicated(jnp.asarray(largest))
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        row = side_factors(found.spec, logit_factors(logits, threshold), balance)
        for path, (columns, axes, offset) in found.leaves.items():
            result[path] = Rescaling(spread(row, columns, axes), offset)
    return result


def _replicated(numbers: Array) -> Array:
    """`numbers`, whole on every device of an Explicit mesh."""
    mesh = jax.typeof(numbers).sharding.mesh
    if jax.sharding.AxisType.Explicit not in mesh.axis_types:
        return numbers
    return jax.sharding.reshard(numbers, NamedSharding(mesh, PartitionSpec()))


def _located(module: str, spec: Attention, leaves: Mapping[str, Any]) -> Located:
    parts: dict[str, list[tuple[str, HeadPart]]] = {}
    for side in SIDES:
        for part in spec.parts(side):
            parts.setdefault(join_paths(module, part.path), []).append((side, part))
    found, layers = {}, {}
    for path, of_leaf in parts.items():
        require_floating(leaves[path], path)
        shape = tuple(leaves[path].shape)
        columns = [columns_of(spec, side, part, shape, path) for side, part in of_leaf]
        facts = {
            (layer_axes(spec, part, len(shape), path), part.offset)
            for _, part in of_leaf
        }
        if len(facts) > 1:
            raise ValueError(
                f"The parts of {path!r} disagree about its axes of stacked layers or "
                f"its offset: {sorted(facts)}."
            )
        axes, offset = facts.pop()
        found[path] = merge(columns, sum(spec.counts), path), axes, offset
        layers[path] = tuple(shape[axis] for axis in axes)
    if len(set(layers.values())) > 1:
        raise ValueError(
            f"The leaves of the attention {module!r} disagree about the number of "
            f"stacked layers: {layers}; name their axes by layers=."
        )
    return Located(spec, next(iter(layers.values())), found)
