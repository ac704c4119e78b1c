"""Meshes, trees and layouts that the sharding tests share."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import manifold_optax as mo
from conformance.steps import on_manifold

TOLERANCE = 1e-5
"""The issue's bound; sums over eight parts differ from whole sums by about 1e-6."""

SHAPES = {"square": (32, 32), "tall": (64, 16), "wide": (16, 64), "batch": (3, 64, 16)}
LAYOUTS = {
    "rows": P(None, "x", None),
    "columns": P(None, None, "x"),
    "both axes on rows": P(None, ("x", "y"), None),
    "two-dimensional": P(None, "x", "y"),
    "two-dimensional turned": P(None, "y", "x"),
    "minor axis first": P(None, ("y", "x"), None),
    "replicated": P(None, None, None),
}


def mesh_of(kind: AxisType) -> jax.sharding.Mesh:
    return jax.make_mesh((2, 4), ("x", "y"), axis_types=(kind, kind))


def trees(rng: np.random.Generator) -> tuple[dict[str, Any], dict[str, Any]]:
    gradients = {
        name: jnp.asarray(rng.standard_normal(shape), jnp.float32)
        for name, shape in SHAPES.items()
    }
    points = {
        name: jnp.asarray(rng.standard_normal(shape), jnp.float32)
        for name, shape in SHAPES.items()
    }
    # By NumPy: outside `jit` each projection compiles anew.
    return gradients, points_on(mo.Stiefel(), points)


def points_on(manifold: mo.Manifold, tree: Any) -> Any:
    """The nearest points of kernels `[…, fan_in, fan_out]`, without compiling."""
    return jax.tree.map(functools.partial(on_manifold, manifold), tree)


def spec_for(layout: P, array: Any) -> P:
    return P(*layout[3 - array.ndim :])


def shard(tree: Any, mesh: jax.sharding.Mesh, layout: P) -> Any:
    return jax.tree.map(
        lambda x: jax.device_put(x, NamedSharding(mesh, spec_for(layout, x))), tree
    )


def replicate(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, P())), tree)


def assert_close(actual: Any, expected: Any) -> None:
    def close(a: Any, b: Any) -> None:
        scale = max(float(jnp.abs(b).max()), 1.0)
        np.testing.assert_allclose(
            np.asarray(a), np.asarray(b), rtol=0, atol=TOLERANCE * scale
        )

    jax.tree.map(close, actual, expected)


def counts_outside_loops(compiled: Any) -> dict[str, int]:
    """Number of collectives of each kind that one device executes, none in a loop."""
    found = mo.programs.collectives(compiled)
    assert not found.inside_loops
    return {kind.name: kind.outside.count for kind in found.kinds}
