"""How small functions use their parameters."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from manifold_optax.modular._computation._trace import trace
from manifold_optax.modular._uses._use import Use, uses

BATCH, LENGTH, WIDTH, HEADS, SIZE = 2, 5, 8, 2, 4
X = jax.ShapeDtypeStruct((BATCH, LENGTH, WIDTH), np.float32)
TOKENS = jax.ShapeDtypeStruct((BATCH, LENGTH), np.int32)


Shapes: TypeAlias = dict[str, tuple[int, ...]]


def used(
    function: Callable[..., Any], shapes: Shapes, *inputs: Any
) -> dict[str, tuple[Use, ...]]:
    """The uses of the parameters of these shapes in `function(params, *inputs)`."""
    params = {k: jax.ShapeDtypeStruct(s, np.float32) for k, s in shapes.items()}
    with jax.numpy_rank_promotion("allow"):
        graph, paths, _ = trace(function, params, *inputs)
    return uses(graph, paths)


def kinds(found: dict[str, tuple[Use, ...]]) -> dict[str, list[str]]:
    """The kinds of the uses of each path."""
    return {path: [use.kind for use in some] for path, some in found.items()}


def the_axes(found: dict[str, tuple[Use, ...]], path: str) -> Any:
    """The axes of the one use of a path."""
    (use,) = found[path]
    return use.axes


def mixed(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Attention of `[batch, length, heads, size]`."""
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key)
    weights = jax.nn.softmax(logits, axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(BATCH, LENGTH, -1)


def in_heads(x: jax.Array) -> jax.Array:
    """`[batch, length, heads, size]`."""
    return x.reshape(BATCH, LENGTH, -1, SIZE)
