"""The collectives of the exchanges, over several mesh axes, in a narrow dtype."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


def device_index(names: tuple[str, ...]) -> Array | int:
    """Number of this device along the mesh axes `names`, the first one major."""
    return jax.lax.axis_index(names) if names else 0


def all_to_all(x: Array, names: tuple[str, ...], axis: int = 0) -> Array:
    """Entry `j` of `axis` goes to device `j`, whose entries count their senders."""
    if not names:
        return x
    return _as_words(
        lambda words: jax.lax.all_to_all(words, names, axis, axis, tiled=True), x
    )


def all_gather(x: Array, names: tuple[str, ...]) -> Array:
    """What all devices have, joined along the leading axis."""
    if not names:
        return x
    return _as_words(lambda words: jax.lax.all_gather(words, names, tiled=True), x)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _as_words(move: Callable[[Array], Array], x: Array) -> Array:
    """`move(x)`; numbers of 16 bits travel as integers: XLA widens them on CPUs."""
    if x.dtype.itemsize != 2:
        return move(x)
    words = jax.lax.bitcast_convert_type(x, jnp.uint16)
    return jax.lax.bitcast_convert_type(move(words), x.dtype)


@_as_words.defjvp
def _as_words_jvp(move: Any, primals: Any, tangents: Any) -> tuple[Array, Array]:
    # Integers have no derivative; a movement is linear, and its own.
    return _as_words(move, *primals), move(*tangents)
