"""A few sharded steps in one process, or one of several.

`worker.py ID COUNT PORT OUT NAME [START]`: each process has its own CPU devices;
together they make one mesh of eight. They write the parameters that the optimizer
`NAME` gives, and its state, as one checkpoint to the directory `OUT`. With `START` they
go on from the checkpoint in that directory.
"""

import functools
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import manifold_optax as mo

# Every matrix lies on all eight devices, so both all-to-alls cross the processes.
SPECS = {
    "up": {"kernel": P("x", "y"), "bias": P("y")},
    "down": {"kernel": P("y", "x"), "bias": P()},
}
SHAPES = {
    "up": {"kernel": (16, 32), "bias": (32,)},
    "down": {"kernel": (32, 16), "bias": (16,)},
}


def optimizers(placement: Any) -> dict[str, Any]:
    return {
        "muon": mo.hybrid(mo.muon(0.02, placement=placement)),
        "manifold_muon": mo.hybrid(mo.manifold_muon(0.1, steps=2, placement=placement)),
    }


def random_tree(mesh: jax.sharding.Mesh, seed: int) -> Any:
    """The same numbers in every process, each device holding its own part of them.

    Matrices have orthonormal columns or rows, as manifold Muon wants them.
    """
    rng = np.random.default_rng(seed)

    def leaf(spec: P, shape: tuple[int, ...]) -> jax.Array:
        values = rng.standard_normal(shape).astype(np.float32)
        if len(shape) == 2:
            left, _, right = np.linalg.svd(values, full_matrices=False)
            values = left @ right
        sharding = NamedSharding(mesh, spec)
        return jax.make_array_from_callback(shape, sharding, lambda part: values[part])

    return jax.tree.map(leaf, SPECS, SHAPES)


def train(name: str, start: pathlib.Path | None = None) -> Any:
    """Parameters and state after three steps towards a target."""
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    tx = optimizers(mo.sharding.owned(mesh, SPECS))[name]
    target = random_tree(mesh, 1)

    params = random_tree(mesh, 0)
    layout = jax.tree.map(lambda x: x.sharding, params)
    state_layout = mo.sharding.state_shardings(tx, params)

    @functools.partial(jax.jit, out_shardings=(layout, state_layout))
    def step(params: Any, state: Any, target: Any) -> Any:
        # Entry by entry, so that no sum depends on how the processes are wired.
        gradient = jax.tree.map(jnp.subtract, params, target)
        updates, state = tx.update(gradient, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    state = jax.jit(tx.init, out_shardings=state_layout)(params)
    if start is not None:
        params, state = restore(start, (params, state))
    for _ in range(3):
        params, state = step(params, state, target)
    return params, state


def restore(directory: pathlib.Path, like: Any) -> Any:
    """The checkpoint in the layout of `like`, whoever wrote it."""
    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    with open_checkpoint(directory) as manager:
        return manager.restore(0, args=ocp.args.StandardRestore(shapes))


def save(directory: pathlib.Path, tree: Any) -> None:
    with open_checkpoint(directory) as manager:
        manager.save(0, args=ocp.args.StandardSave(tree))


def open_checkpoint(directory: pathlib.Path) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    return ocp.CheckpointManager(directory, options=options)


def main() -> None:
    identity, count, port, out, name, *start = sys.argv[1:]
    # XLA's own collectives of the CPU stay inside one process.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        f"127.0.0.1:{port}",
        num_processes=int(count),
        process_id=int(identity),
        # No look at SLURM or Kubernetes, on which these tests may run.
        cluster_detection_method="deactivate",
        coordinator_bind_address=f"127.0.0.1:{port}",
        initialization_timeout=60,
    )
    save(pathlib.Path(out), train(name, *map(pathlib.Path, start)))


if __name__ == "__main__":
    main()
