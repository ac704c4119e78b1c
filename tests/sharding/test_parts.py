"""Exchanges in parts: none waits for another, and the numbers stay the same."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import manifold_optax as mo
from manifold_optax.matrices import map_matrices
from sharding import kernels
from sharding.waits import waits

pytestmark = pytest.mark.devices

SPEC = P(None, "x", None)


def compiled_in(chunks: int, kernel: Any, shapes: dict[str, tuple[int, ...]]) -> Any:
    """The mapped kernel, its arguments and its program, in so many parts."""
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    rng = np.random.default_rng(0)
    tree = {
        name: jax.device_put(
            jnp.asarray(rng.standard_normal(shape), jnp.float32),
            NamedSharding(mesh, SPEC),
        )
        for name, shape in shapes.items()
    }
    returns = kernels.RETURNS[kernel]
    vectors = {
        name: jnp.asarray(rng.standard_normal((x.shape[0], min(x.shape[1:]))))
        for name, x in tree.items()
    }
    numbers = (vectors,) if "number" in returns else ()
    placement = mo.sharding.owned(mesh, dict.fromkeys(tree, SPEC), chunks=chunks)
    go = jax.jit(
        lambda tree, numbers: map_matrices(
            kernel,
            (tree,),
            numbers,
            returns=returns,
            axes=mo.STACKED,
            placement=placement,
        )
    )
    compiled = go.lower(tree, numbers).compile()
    return compiled(tree, numbers), compiled


@pytest.mark.promise(
    "Layouts and devices",
    "An exchange in parts sends the bytes of the whole, and no part waits for the "
    "products of another",
    on="owned(chunks=3), 8 devices; hybrid replicas",
)
def test_no_part_waits_for_another(measured: Any) -> None:
    # Two squares and one long matrix for each of eight owners.
    shapes = {"square": (16, 8, 8), "long": (8, 16, 8)}
    whole, once = compiled_in(1, kernels.newton_schulz, shapes)
    parts, program = compiled_in(3, kernels.newton_schulz, shapes)
    # Each matrix is computed by the same operations, whoever owns it.
    jax.tree.map(np.testing.assert_array_equal, parts, whole)

    sent, sent_once = map(mo.programs.collectives, (program, once))
    assert sent.inside_loops == 0
    assert sent.count("all-to-all") == 3 * sent_once.count("all-to-all") == 6
    assert sent.count("all-gather") == 3 * sent_once.count("all-gather") == 3
    measured(sent.wire() / sent_once.wire(), at_most=1)

    total = mo.programs.dot_flops(program)
    assert total == mo.programs.dot_flops(once)
    moves = [wait for wait in waits(program) if wait.kind == "all-to-all"]
    there = [wait for wait in moves if not wait.collectives]
    back = [wait for wait in moves if wait.collectives]
    assert [wait.flops for wait in there] == [0, 0, 0]
    # Each way back waits for one way there, and for the products of its own part.
    assert sorted(wait.collectives for wait in back) == sorted(
        (wait.name,) for wait in there
    )
    assert all(wait.flops > 0 for wait in back)
    assert sum(wait.flops for wait in back) == total


@pytest.mark.parametrize("chunks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_parts_of_uneven_stacks_give_the_same_numbers(chunks: int) -> None:
    shapes = {"a": (17, 16, 8), "b": (5, 8, 8), "c": (9, 8, 24)}
    whole, once = compiled_in(1, kernels.weigh, shapes)
    parts, program = compiled_in(chunks, kernels.weigh, shapes)
    jax.tree.map(np.testing.assert_array_equal, parts, whole)
    sent, sent_once = map(mo.programs.collectives, (program, once))
    assert sent.count("all-to-all") == 2 * chunks
    assert sent.wire() == sent_once.wire()
