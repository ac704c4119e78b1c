"""A small network with atoms of all kinds, written by hand, and its first step."""

from typing import Any

import jax
import jax.numpy as jnp

import manifold_optax as mo
from manifold_optax.modular._algebra._module import Atom
from manifold_optax.modular._budgets._optimizer import project_parameters
from modular.handmade import gaussian, Handmade, handmade

SHAPES = {
    "bias": (8,),
    "embed": (10, 8),
    "head": (8, 4),
    "layers": (2, 8, 16),
    "table": (10, 4),
    "up": (16, 8),
}
NUMBERS = {"head": 0.5, "layers": [3.0, 2.0], "up": 4.0, "embed": 7.0, "bias": 2.0}
SPHERE = mo.Sphere(2.0)
ATOMS = (
    Atom("bias", "vector", norm=mo.Max()),
    Atom("embed", "embedding", norm=mo.RowRms()),
    Atom("head", "readout"),
    Atom("layers", axes=mo.STACKED, manifold=SPHERE, norm=mo.Frobenius()),
    Atom("table", "embedding", axes=mo.STACKED, norm=mo.ColumnRms()),
    Atom("up"),
)
# Those whose directions compile in no time.
CHEAP = tuple(atom for atom in ATOMS if atom.norm != mo.RmsToRms())
FREE = tuple(atom.path for atom in ATOMS if atom.manifold == mo.Euclidean())
RATE = 0.1
Tree = Any


def network(atoms: Any = ATOMS, shapes: Any = None) -> Handmade:
    own = {atom.path: SHAPES[atom.path] for atom in atoms}
    return handmade(gaussian(own if shapes is None else shapes), atoms, NUMBERS)


def start(module: Handmade, dtype: Any = jnp.float32) -> Tree:
    params = jax.tree.map(lambda x: x / 4, gaussian(dict(module.shapes), 0, dtype))
    return project_parameters(module, params)


def gradients(module: Handmade, seed: int = 1, dtype: Any = jnp.float32) -> Tree:
    return gaussian(dict(module.shapes), seed, dtype)


def step(tx: Any, params: Tree, gradient: Tree) -> Tree:
    """The updates of the first step."""
    return jax.jit(tx.update)(gradient, tx.init(params), params)[0]
