"""A checkpoint written on one mesh continues on another one, and on one device."""

import functools
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

import manifold_optax as mo
from sharding.layouts import assert_close

pytestmark = pytest.mark.devices

SHAPES = {
    "up": {"kernel": (16, 32), "bias": (32,)},
    "down": {"kernel": (32, 16), "bias": (16,)},
}


def is_shape(node: Any) -> bool:
    return isinstance(node, tuple)


def optimizer() -> Any:
    """State of every kind: averages like the parameters, vectors per matrix, counts."""
    matrices = optax.chain(mo.add_spectral_weight_decay(0.1), mo.muon(0.02))
    return mo.hybrid(matrices)


class Layout(NamedTuple):
    """A mesh with Explicit axes, so that one optimizer serves all of them."""

    mesh: jax.sharding.Mesh
    kernel: P
    bias: P

    def of(self, leaves: Any) -> Any:
        """The sharding of each leaf."""
        return jax.tree_util.tree_map_with_path(
            lambda keys, _: NamedSharding(self.mesh, getattr(self, keys[-1].key)),
            leaves,
        )


def layout_of(name: str) -> Layout:
    if name == "eight devices":
        return Layout(jax.make_mesh((8,), ("x",)), P("x", None), P("x"))
    if name == "four by two":
        mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"))
        return Layout(mesh, P("tensor", "fsdp"), P())
    if name == "four devices":
        mesh = jax.make_mesh((4,), ("x",), devices=jax.devices()[:4])
        return Layout(mesh, P(None, "x"), P("x"))
    return Layout(jax.make_mesh((1,), ("x",)), P(), P())


def random_tree(layout: Layout, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    leaves = jax.tree.map(
        lambda shape: rng.standard_normal(shape).astype(np.float32),
        SHAPES,
        is_leaf=is_shape,
    )
    return jax.device_put(leaves, layout.of(leaves))


@functools.cache
def step_on(name: str) -> Any:
    """A compiled step on one mesh, shared by the tests."""
    tx, layout = optimizer(), layout_of(name)
    params = random_tree(layout, 0)
    shardings = layout.of(params), mo.sharding.state_shardings(tx, params)

    @functools.partial(jax.jit, out_shardings=shardings)
    def step(params: Any, state: Any, target: Any) -> Any:
        gradient = jax.tree.map(jnp.subtract, params, target)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    return lambda params, state: step(params, state, random_tree(layout, 1))


@pytest.fixture(scope="module")
def written(tmp_path_factory: Any) -> Iterator[Any]:
    """What training on eight devices has after two steps, and where it was saved."""
    tx, params = optimizer(), random_tree(layout_of("eight devices"), 0)
    shardings = mo.sharding.state_shardings(tx, params)
    state = jax.jit(tx.init, out_shardings=shardings)(params)
    for _ in range(2):
        params, state = step_on("eight devices")(params, state)
    directory: pathlib.Path = tmp_path_factory.mktemp("checkpoints")
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    with ocp.CheckpointManager(directory, options=options) as manager:
        manager.save(2, args=ocp.args.StandardSave((params, state)))
        yield params, state, manager


def restore(manager: Any, name: str) -> Any:
    """The checkpoint in the layout of another run; nothing is built in a third one."""
    tx, layout = optimizer(), layout_of(name)
    shapes = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), SHAPES, is_leaf=is_shape
    )
    laid_out = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        layout.of(shapes),
    )
    state = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(tx.init, shapes),
        mo.sharding.state_shardings(tx, laid_out),
    )
    return manager.restore(2, args=ocp.args.StandardRestore((laid_out, state)))


OTHERS = (
    "four by two",
    pytest.param("four devices", marks=pytest.mark.slow),
    "one device",
)


@pytest.mark.promise(
    "State and checkpoints",
    "A checkpoint restores on another mesh, to the bit",
    on="8 devices to 4 × 2, to 4 and to one",
)
@pytest.mark.parametrize("name", OTHERS)
def test_another_mesh_restores_bitwise_and_steps_alike(name: str, written: Any) -> None:
    params, state, manager = written
    restored = restore(manager, name)
    layout = layout_of(name)
    jax.tree.map(np.testing.assert_array_equal, restored, (params, state))
    assert jax.tree.map(lambda x: x.sharding, restored[0]) == layout.of(restored[0])
    # Sums over other parts round differently: the tolerance of one update.
    assert_close(step_on(name)(*restored), step_on("eight devices")(params, state))


@pytest.mark.promise(
    "State and checkpoints",
    "A checkpoint of a sharded state resumes to the bit on the same mesh",
    on="8 devices",
)
def test_the_same_mesh_resumes_bitwise(written: Any) -> None:
    params, state, manager = written
    resumed = restore(manager, "eight devices")
    for _ in range(2):
        params, state = step_on("eight devices")(params, state)
        resumed = step_on("eight devices")(*resumed)
        jax.tree.map(np.testing.assert_array_equal, resumed, (params, state))
