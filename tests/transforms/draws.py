"""Points on manifolds by NumPy, and transformations compiled once for all tests."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import manifold_optax as mo
from conformance.steps import on_manifold


@functools.cache
def _compiled(factory: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    tx = factory(*arguments, **options)

    def update(update: jax.Array, point: jax.Array) -> jax.Array:
        params = {"w": point}
        updates, _ = tx.update({"w": update}, tx.init(params), params)
        return updates["w"]

    return jax.jit(update)


def apply(
    factory: Callable[..., Any],
    *arguments: Any,
    update: Any,
    point: Any = None,
    **options: Any,
) -> jax.Array:
    """First update of `factory(*arguments, **options)`, of one leaf `w`.

    Axes before the last two are batch axes, unless `axes` say otherwise.
    """
    point = update if point is None else point
    if "axes" in inspect.signature(factory).parameters:
        options = {"axes": mo.STACKED} | options
    return _compiled(factory, *arguments, **options)(update, point)


def draw(rng: np.random.Generator, *shape: int) -> jax.Array:
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def draw_pair(
    rng: np.random.Generator,
    manifold: mo.Manifold,
    shape: tuple[int, ...],
    axes: Any = mo.STACKED,
) -> tuple[jax.Array, jax.Array]:
    """A point on the manifold, block by block for a `Split`, and an update."""
    point = draw(rng, *shape)
    if isinstance(axes, mo.Split):
        blocks = [on_manifold(manifold, part) for part in blocks_of(point, axes)]
        point = jnp.concatenate(blocks, axis=axes.axis)
    elif axes == mo.STACKED:
        point = on_manifold(manifold, point)
    else:
        raise NotImplementedError(axes)
    return point, draw(rng, *shape)


def blocks_of(leaf: jax.Array, axes: mo.Split) -> list[jax.Array]:
    return jnp.split(leaf, list(np.cumsum(axes.sizes)[:-1]), axis=axes.axis)
