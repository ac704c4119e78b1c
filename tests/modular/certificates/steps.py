"""Steps of the parameters, of stated sizes relative to them."""

from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from modular.certificates.ascent import COMPILER_OPTIONS, Forward

SIZES = (1e-3, 1e-2, 0.1, 1.0)
"""The Frobenius norm of a step over that of its leaf."""


def steps_of(
    forward: Forward, params: Any, x: Any, rng: np.random.Generator
) -> list[Any]:
    """Random steps, steps along the parameters, and along a gradient, of every size.

    Steps along the parameters make all layers larger at once, or smaller, where the
    products of the layers' bounds are attained best. The gradient is that of the
    square of the output at `x`. One more step moves a single leaf.
    """
    random = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params)
    squares = lambda params: jnp.sum(jnp.square(forward(params, x)))
    slope = jax.jit(jax.grad(squares), compiler_options=COMPILER_OPTIONS)(params)
    directions = [random, params, jax.tree.map(lambda leaf: -leaf, params), slope]
    steps = [
        jax.tree.map(
            lambda leaf, step, size=size: _sized(leaf, step, size), params, one
        )
        for one in directions
        for size in SIZES
    ]
    leaves, tree = jax.tree.flatten(steps[2])
    chosen = rng.integers(len(leaves))
    single = [leaf * (index == chosen) for index, leaf in enumerate(leaves)]
    return [*steps, jax.tree.unflatten(tree, single)]


def _sized(leaf: Any, step: Any, size: float) -> np.ndarray:
    """The step with `size` times the norm of the leaf; zeros stay."""
    length = np.linalg.norm(np.asarray(step, np.float64))
    if not length:
        return np.zeros(leaf.shape, np.float32)
    largest = size * np.linalg.norm(np.asarray(leaf, np.float64))
    return np.asarray(step * (largest / length), np.float32)
