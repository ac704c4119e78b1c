"""Trees of numbers per matrix, as a state begins."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from manifold_optax._checks import require_floating
from manifold_optax._typing import ArrayTree
from manifold_optax.matrices._axes import AxesLike
from manifold_optax.matrices._view import per_matrix_shape, View, views_of
from manifold_optax.trees import bare, leaf_path


def per_matrix(
    tree: ArrayTree, fill: float, *, axes: AxesLike = None, tail: tuple[int, ...] = ()
) -> ArrayTree:
    """Tree of float32 arrays `[*batch, *tail]`, one entry per matrix; for `init`.

    Example:
        >>> per_matrix({"w": jnp.ones((3, 4, 2))}, 0.0, axes=STACKED)
        {'w': Array([0., 0., 0.], dtype=float32)}
    """

    def of_leaf(keys: Any, leaf: Any) -> Array:
        path = leaf_path(keys)
        require_floating(leaf, path)
        if not math.prod(leaf.shape):
            return jnp.full((0,), fill, jnp.float32)
        views = views_of(leaf, path, axes)
        shape = (*per_matrix_shape(leaf, views), *tail)
        return _like_batch(jnp.full(shape, fill, jnp.float32), leaf, views[0])

    return jax.tree_util.tree_map_with_path(of_leaf, bare(tree))


def _like_batch(numbers: Array, leaf: Any, view: View) -> Array:
    """`numbers` laid out as the batch axes of `leaf`, where its type says how."""
    sharding = jax.typeof(leaf).sharding
    batch = [sharding.spec[axis] for axis in view.leaf_batch_axes]
    if all(entry is None for entry in batch):
        return numbers
    spec = PartitionSpec(*batch)
    if isinstance(leaf, Tracer):
        return jax.sharding.reshard(numbers, NamedSharding(sharding.mesh, spec))
    # Outside of a trace only the array itself knows its devices.
    return jax.device_put(numbers, NamedSharding(leaf.sharding.mesh, spec))
