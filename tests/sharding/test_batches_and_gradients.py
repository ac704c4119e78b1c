"""Gradients through the exchange, and its kernels batched as on accelerators."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import manifold_optax as mo
from manifold_optax.matrices import _kernel, map_matrices
from sharding import kernels
from sharding.layouts import assert_close

pytestmark = pytest.mark.devices

BF16_EPS = 2.0**-8


@pytest.mark.parametrize("recipe", ["owned", "sliced"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_pass_the_wire(
    recipe: str, dtype: Any, rng: np.random.Generator
) -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    x = jnp.asarray(rng.standard_normal((16, 32)), dtype)
    placement = getattr(mo.sharding, recipe)(mesh, {"w": P("x")}, wire=jnp.bfloat16)

    def square(x: Any, axis_name: Any = None) -> Any:
        return x * x

    def loss(x: Any, placement: Any) -> Any:
        tree = map_matrices(square, ({"w": x},), placement=placement)
        return jnp.sum(tree["w"].astype(jnp.float32))

    sharded = jax.device_put(x, NamedSharding(mesh, P("x")))
    found = jax.jit(jax.grad(lambda x: loss(x, placement)))(sharded)
    # 2·x, rounded to bfloat16 on the way there and on the way back.
    np.testing.assert_allclose(
        np.asarray(found, np.float32), 2 * np.asarray(x, np.float32), rtol=2 * BF16_EPS
    )


@jax.jit
def orthogonalized(tree: Any) -> Any:
    """On one device, compiled once."""
    return map_matrices(kernels.newton_schulz, (tree,), axes=mo.STACKED)


# Two 16 × 8 matrices at once, with a rest, or all of a stack.
@pytest.mark.parametrize("chunk_bytes", [2 * 8 * 512, 1 << 28])
def test_batches_of_an_accelerator_give_the_same(
    chunk_bytes: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = {"a": (9, 16, 8), "b": (5, 8, 8), "c": (8, 16)}
    tree = {
        name: jnp.asarray(rng.standard_normal(shape), jnp.float32)
        for name, shape in shapes.items()
    }
    expected = orthogonalized(tree)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    specs = {name: P(*(None,) * (x.ndim - 1), "x") for name, x in tree.items()}
    put = {
        name: jax.device_put(x, NamedSharding(mesh, specs[name]))
        for name, x in tree.items()
    }
    monkeypatch.setattr(_kernel, "_CHUNK_BYTES", chunk_bytes)
    for arrays, placement in ((tree, None), (put, mo.sharding.owned(mesh, specs))):
        go = jax.jit(
            lambda x, placement=placement: map_matrices(
                kernels.newton_schulz, (x,), axes=mo.STACKED, placement=placement
            )
        )
        with mo.programs.arithmetic_for("cuda"):
            assert_close(go(arrays), expected)
