"""Parameters, gradients and steps of the cases of the table."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import manifold_optax as mo
from conformance.case import Case, Tree, Tx
from manifold_optax.geometry import SpectralSphere


def filled(like: Tree, seed: int, dtype: Any = jnp.float32) -> Tree:
    """Standard Gaussian tree of the shapes of `like`."""
    rng = np.random.default_rng(seed)

    def draw(leaf: Any) -> jax.Array:
        shape = leaf if isinstance(leaf, tuple) else leaf.shape
        return jnp.asarray(rng.standard_normal(shape), dtype)

    return jax.tree.map(draw, like, is_leaf=lambda node: isinstance(node, tuple))


def gradients(case: Case, seed: int = 1) -> Tree:
    return filled(case.shapes, seed)


def parameters(case: Case, seed: int = 0) -> Tree:
    """Parameters on the manifold of the case."""
    points = filled(case.shapes, seed)
    return jax.tree.map(functools.partial(on_manifold, case.manifold), points)


def on_manifold(manifold: mo.Manifold, leaf: jax.Array) -> jax.Array:
    """Nearest point, by NumPy; kernels are `[…, fan_in, fan_out]`."""
    anywhere = manifold in (mo.Euclidean(), mo.Sphere("kept"))
    if anywhere or leaf.ndim < 2 or leaf.size == 0:
        return leaf
    x = np.asarray(leaf, np.float64)
    fan_in, fan_out = x.shape[-2:]
    size = (fan_out / fan_in) ** 0.5 if manifold.size == "rms" else manifold.size
    if isinstance(manifold, mo.Stiefel):
        left, _, right = np.linalg.svd(x, full_matrices=False)
        unit = left @ right
    elif isinstance(manifold, SpectralSphere):
        unit = x / np.linalg.norm(x, 2, axis=(-2, -1), keepdims=True)
    else:
        unit = x / np.linalg.norm(x, axis=(-2, -1), keepdims=True)
    return jnp.asarray(size * unit, leaf.dtype)


class Counted:
    """A jitted `update` that counts how often it is traced."""

    def __init__(self, tx: Tx) -> None:
        self.traces = 0

        def update(updates: Tree, state: Tree, params: Tree) -> Any:
            self.traces += 1
            return tx.update(updates, state, params)

        self._jitted = jax.jit(update)

    def __call__(self, updates: Tree, state: Tree, params: Tree) -> Any:
        return self._jitted(updates, state, params)


@functools.cache
def update_of(case: Case) -> Counted:
    """The jitted update of a case, compiled once for all tests of `case.shapes`."""
    return Counted(case.make())


def steps_of(case: Case, count: int) -> tuple[Tree, Tree, list[Tree]]:
    """Parameters and state after `count` jitted steps, and the gradients they took."""
    params = parameters(case)
    state = case.make().init(params)
    taken = [gradients(case, seed) for seed in range(1, count + 1)]
    for gradient in taken:
        updates, state = update_of(case)(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params, state, taken
