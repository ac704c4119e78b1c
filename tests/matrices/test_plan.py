import re

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec as P

import manifold_optax as mo
from matrices.views import Dims


def leaf(*shape, dtype=jnp.float32):
    return jnp.zeros(shape, dtype)


MODEL = {
    "attention": {"query": leaf(8, 4), "out": leaf(4, 8)},
    "experts": leaf(3, 8, 4),
    "mlp": [leaf(8, 8), leaf(8, 8, dtype=jnp.bfloat16)],
    "absent": None,
    "masked": optax.MaskedNode(),
    "empty": leaf(0, 4),
}


def rows(plan):
    """Stack, number of matrices, recipe and leaves of each line of a printed plan."""
    header, *lines = str(plan).splitlines()
    assert header.split() == [
        *("stack", "matrices", "recipe", "FLOPs", "bytes", "sent", "leaves")
    ]
    cells = [re.split(r" {2,}", line) for line in lines[:-1]]
    return [(stack, n, recipe, leaves) for stack, n, recipe, _, _, leaves in cells]


BOTH_ORIENTATIONS = [
    ("8 × 4 float32", "5", "local", "attention/out, attention/query, experts"),
    ("8 × 8 float32", "1", "local", "mlp/0"),
    ("8 × 8 bfloat16", "1", "local", "mlp/1"),
]

ONE_ORIENTATION = [
    ("8 × 4 float32", "1", "local", "attention/out"),
    ("4 × 8 float32", "4", "local", "attention/query, experts"),
    *BOTH_ORIENTATIONS[1:],
]

BLOCKS = [
    ("8 × 4 float32", "2", "local", "qkv"),
    ("8 × 2 float32", "2", "local", "qkv"),
    ("8 × 1 float32", "2", "local", "qkv"),
]


def test_a_plan_prints_one_line_per_stack():
    assert rows(mo.plan_matrices(MODEL, axes=mo.STACKED)) == BOTH_ORIENTATIONS


def test_without_transposition_orientations_have_stacks_of_their_own():
    assert (
        rows(mo.plan_matrices(MODEL, axes=mo.STACKED, orientation="fixed"))
        == ONE_ORIENTATION
    )


def test_a_leaf_with_several_blocks_is_named_once_per_stack():
    axes = mo.Split((4, 2, 1))
    assert rows(mo.plan_matrices({"qkv": leaf(2, 8, 7)}, axes=axes)) == BLOCKS


def test_equal_blocks_share_a_stack():
    plan = mo.plan_matrices({"qkv": leaf(8, 12)}, axes=mo.Split((4, 4, 4)))
    assert rows(plan) == [("8 × 4 float32", "3", "local", "qkv")]


def test_costs_are_printed_for_one_device():
    plan = str(mo.plan_matrices({"w": leaf(2, 64, 64)}, axes=mo.STACKED))
    # Two of five direct steps, each of three products of 64 × 64 matrices.
    assert plan.endswith("busiest device: 15.7M FLOPs, 0 bytes sent")


def test_shapes_have_the_plan_of_arrays():
    for axes in (mo.Split((4, 2, 1)), mo.Split((4, 3))):
        array = leaf(2, 8, 7)
        shape = jax.ShapeDtypeStruct(array.shape, array.dtype)
        plans = [str(mo.plan_matrices({"w": x}, axes=axes)) for x in (array, shape)]
        assert plans[0] == plans[1]


def test_many_leaves_are_counted():
    plan = str(mo.plan_matrices({f"w{i}": leaf(8, 4) for i in range(9)}))
    assert "w0, w1, w2, w3 and 5 more" in plan


def test_an_empty_tree_has_an_empty_plan():
    assert str(mo.plan_matrices({"absent": None})) == ""


def test_the_grouping_does_not_depend_on_how_often_it_is_made():
    first, second = (
        mo.plan_matrices(MODEL, axes=mo.STACKED),
        mo.plan_matrices(MODEL, axes=mo.STACKED),
    )
    assert first == second
    indices = [[member.index for member in group.members] for group in first.groups]
    # Leaves keep the order of the tree, so a stack is the same in every process.
    assert indices == [[0, 1, 2], [3], [4]]


def test_the_plan_is_the_same_inside_jit():
    printed = []

    @jax.jit
    def trace(tree):
        printed.extend(rows(mo.plan_matrices(tree, axes=mo.STACKED)))

    trace({"a": leaf(8, 4), "b": leaf(2, 4, 8)})
    assert printed == [("8 × 4 float32", "3", "local", "a, b")]


@pytest.mark.parametrize(
    ("shape", "axes", "line"),
    [
        ((2, 3, 8), Dims((0, 1), 2), ("8 × 6 float32", "1")),
        ((2, 3, 8), Dims(0, 2), ("8 × 2 float32", "3")),
        ((8, 2, 3), Dims(0, (1, 2)), ("8 × 6 float32", "1")),
    ],
)
def test_axes_decide_what_a_matrix_is(shape, axes, line):
    (found,) = rows(mo.plan_matrices({"w": leaf(*shape)}, axes=axes))
    assert found == (*line, "local", "w")


def test_a_mesh_axis_of_one_device_cuts_nothing():
    mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Auto,))
    tree, specs = {"w": leaf(8, 4)}, {"w": P("x", None)}
    for place in (mo.sharding.owned, mo.sharding.sliced):
        plan = mo.plan_matrices(tree, axes=mo.STACKED, placement=place(mesh, specs))
        assert [recipe for _, _, recipe, _ in rows(plan)] == ["local"]


def test_bytes_sent_count_the_gathering_over_replicas():
    mesh = AbstractMesh((4, 2), ("copy", "part"), axis_types=(AxisType.Auto,) * 2)
    tree = {str(i): leaf(16, 8) for i in range(8)}
    specs = dict.fromkeys(tree, P("part", None))
    placement = mo.sharding.owned(mesh, specs)
    plan = mo.plan_matrices(tree, axes=mo.STACKED, placement=placement)
    # Eight owners with a matrix each, in two pieces of 256 bytes. A device sends one
    # piece there and one back, and both to the three devices with copies.
    sent = 2 * 256 + 3 * 2 * 256
    line = str(plan).splitlines()[1]
    assert f"{sent / 1000:.3g}k" in line
