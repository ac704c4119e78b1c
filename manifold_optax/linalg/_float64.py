"""Float64 inside a function, whatever the precision of the program around it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._versions import with_float64


def in_float64(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` computed in float64, also where `jax_enable_x64` is off.

    For small problems whose accuracy the caller's dtype limits: the square of a float32
    matrix needs twice the digits. What goes in and out keeps the caller's dtype.

    Args:
        function: of arrays, which are given to it in float64; it returns a tree of
            floating arrays.

    Returns:
        A function of floating arrays of one dtype, in which the results come back. It
        may be jitted, batched, sharded and differentiated in reverse mode.

    Example:
        >>> third = in_float64(lambda x: x / 3)
        >>> third(jnp.ones(2)).dtype
        dtype('float32')
    """

    @jax.custom_batching.custom_vmap
    @with_float64
    def widened(*arrays: Array) -> Any:
        dtype = jnp.result_type(*arrays)
        found = function(*(array.astype(jnp.float64) for array in arrays))
        return jax.tree.map(lambda x: x.astype(dtype), found)

    # Without rules of their own a batched program and a gradient would be built outside
    # the context, where JAX truncates float64.
    @widened.def_vmap
    def batched(size: int, which: list[bool], *arrays: Array) -> tuple[Any, Any]:
        del size
        axes = [0 if is_batched else None for is_batched in which]
        found = in_float64(jax.vmap(function, in_axes=axes))(*arrays)
        return found, jax.tree.map(lambda _: True, found)

    @jax.custom_vjp
    def differentiable(*arrays: Array) -> Any:
        return widened(*arrays)

    def forward(*arrays: Array) -> tuple[Any, tuple[Array, ...]]:
        return widened(*arrays), arrays

    def backward(arrays: tuple[Array, ...], cotangents: Any) -> Any:
        leaves, structure = jax.tree.flatten(cotangents)

        def pull_back(*both: Array) -> Any:
            given, rest = both[: len(arrays)], both[len(arrays) :]
            return jax.vjp(function, *given)[1](jax.tree.unflatten(structure, rest))

        return in_float64(pull_back)(*arrays, *leaves)

    differentiable.defvjp(forward, backward)
    return differentiable
