import jax
import jax.numpy as jnp
import optax
import pytest

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

BOTH_ORIENTATIONS = """\
8 × 4 float32: 5 matrices, local: attention/out, attention/query, experts
8 × 8 float32: 2 matrices, local: mlp/0, mlp/1"""

ONE_ORIENTATION = """\
8 × 4 float32: 1 matrices, local: attention/out
4 × 8 float32: 4 matrices, local: attention/query, experts
8 × 8 float32: 2 matrices, local: mlp/0, mlp/1"""

BLOCKS = """\
8 × 4 float32: 2 matrices, local: qkv
8 × 2 float32: 2 matrices, local: qkv
8 × 1 float32: 2 matrices, local: qkv"""


def test_a_plan_prints_one_line_per_stack():
    assert str(mo.plan_matrices(MODEL)) == BOTH_ORIENTATIONS


def test_without_transposition_orientations_have_stacks_of_their_own():
    assert str(mo.plan_matrices(MODEL, transposable=False)) == ONE_ORIENTATION


def test_a_leaf_with_several_blocks_is_named_once_per_stack():
    axes = mo.Split((4, 2, 1))
    assert str(mo.plan_matrices({"qkv": leaf(2, 8, 7)}, axes=axes)) == BLOCKS


def test_equal_blocks_share_a_stack():
    plan = mo.plan_matrices({"qkv": leaf(8, 12)}, axes=mo.Split((4, 4, 4)))
    assert str(plan) == "8 × 4 float32: 3 matrices, local: qkv"


def test_an_empty_tree_has_an_empty_plan():
    assert str(mo.plan_matrices({"absent": None})) == ""


def test_the_grouping_does_not_depend_on_how_often_it_is_made():
    first, second = mo.plan_matrices(MODEL), mo.plan_matrices(MODEL)
    assert first == second
    indices = [[member.index for member in group.members] for group in first.groups]
    # Leaves keep the order of the tree, so a stack is the same in every process.
    assert indices == [[0, 1, 2], [3, 4]]


def test_the_plan_is_the_same_inside_jit():
    printed = []

    @jax.jit
    def trace(tree):
        printed.append(str(mo.plan_matrices(tree)))

    trace({"a": leaf(8, 4), "b": leaf(2, 4, 8)})
    assert printed == ["8 × 4 float32: 3 matrices, local: a, b"]


@pytest.mark.parametrize(
    ("shape", "axes", "line"),
    [
        ((2, 3, 8), Dims((0, 1), 2), "8 × 6 float32: 1 matrices, local: w"),
        ((2, 3, 8), Dims(0, 2), "8 × 2 float32: 3 matrices, local: w"),
        ((8, 2, 3), Dims(0, (1, 2)), "8 × 6 float32: 1 matrices, local: w"),
    ],
)
def test_axes_decide_what_a_matrix_is(shape, axes, line):
    assert str(mo.plan_matrices({"w": leaf(*shape)}, axes=axes)) == line
