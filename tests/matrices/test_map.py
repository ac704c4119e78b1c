import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manifold_optax as mo
from manifold_optax.matrices import per_matrix
from matrices.views import EXAMPLES


def draw(rng, *shape):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def identity(x, axis_name=None):
    return x


def sum_and_difference(x, y, axis_name=None):
    return x + y, x - y


TWO = ("matrix", "matrix")


class Counting:
    """The identity, which remembers the shape and dtype of every trace."""

    def __init__(self):
        self.seen = []

    def __call__(self, *xs, axis_name=None):
        self.seen.append([(x.shape, x.dtype) for x in xs])
        return xs[0]


def test_one_stack_holds_all_matrices_of_a_shape_in_both_orientations(rng):
    tree = {"a": draw(rng, 6, 4), "b": draw(rng, 4, 6), "c": [draw(rng, 2, 3, 6, 4)]}
    kernel = Counting()
    found = mo.map_matrices(kernel, (tree,), axes=mo.STACKED)
    assert kernel.seen == [[((6, 4), jnp.float32)]]
    chex.assert_trees_all_equal(found, tree)
    kernel = Counting()
    mo.map_matrices(kernel, (tree,), axes=mo.STACKED, orientation="fixed")
    assert sorted(shape for [(shape, _)] in kernel.seen) == [(4, 6), (6, 4)]


def test_several_inputs_and_outputs_keep_their_places(rng):
    x = {"a": draw(rng, 6, 4), "b": draw(rng, 2, 4, 6), "c": draw(rng, 3, 3)}
    y = jax.tree.map(lambda leaf: draw(rng, *leaf.shape), x)
    plus, minus = mo.map_matrices(
        sum_and_difference, (x, y), returns=TWO, axes=mo.STACKED
    )
    chex.assert_trees_all_equal(plus, jax.tree.map(jnp.add, x, y))
    chex.assert_trees_all_equal(minus, jax.tree.map(jnp.subtract, x, y))


def test_blocks_of_several_inputs_keep_their_places(rng):
    x, y = {"w": draw(rng, 2, 4, 7)}, {"w": draw(rng, 2, 4, 7)}
    plus, minus = mo.map_matrices(
        sum_and_difference, (x, y), returns=TWO, axes=mo.Split((4, 2, 1))
    )
    np.testing.assert_array_equal(plus["w"], x["w"] + y["w"])
    np.testing.assert_array_equal(minus["w"], x["w"] - y["w"])


BATCHED = ("kernel", "layers", "interleaved", "split out", "split layers")
BATCHED += ("batches around", "split around a batch")
BATCHED += ("split repeated", "split repeated first")
each_batched = pytest.mark.parametrize("name", BATCHED)


@each_batched
@pytest.mark.parametrize("tail", [(), (3, 2)], ids=str)
def test_numbers_stand_along_the_batch_axes_then_the_blocks(rng, name, tail):
    example = EXAMPLES[name]
    leaf = draw(rng, *example.shape)
    sums = example.sums(np.asarray(leaf))
    numbers = draw(rng, *sums.shape, *tail)
    indices = jnp.arange(numbers.size, dtype=jnp.float16).reshape(numbers.shape)

    def total(x, number, index, axis_name=None):
        return jnp.sum(x) + number, index + 1

    found, counted = mo.map_matrices(
        total,
        ({"w": leaf},),
        ({"w": numbers}, {"w": indices}),
        axes=example.axes,
        returns=("number", "number"),
    )
    expected = numbers + np.reshape(sums, (*sums.shape, *(1 for _ in tail)))
    # A sum of at most 36 float32 numbers of order 1.
    np.testing.assert_allclose(found["w"], expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(counted["w"], indices + 1)
    assert counted["w"].dtype == jnp.float32


@each_batched
def test_per_matrix_has_one_entry_per_matrix(name):
    example = EXAMPLES[name]
    tree = {"w": jax.ShapeDtypeStruct(example.shape, jnp.bfloat16), "absent": None}
    found = per_matrix(tree, 2.0, axes=example.axes, tail=(5,))
    batch = example.sums(np.zeros(example.shape)).shape
    np.testing.assert_array_equal(found["w"], np.full((*batch, 5), 2.0))
    assert found["w"].dtype == jnp.float32
    assert not found["w"].weak_type
    assert found["absent"] is None


@pytest.mark.promise(
    "Numbers",
    "Half precision is computed in float32 and comes back as it was",
    on="`map_matrices`, on which all matrix links stand; bfloat16, float16",
)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_computed_in_float32_and_comes_back_as_it_was(dtype):
    tree = {"a": jnp.ones((6, 4), dtype), "b": jnp.ones((6, 4))}
    kernel = Counting()
    found = mo.map_matrices(kernel, (tree,))
    # One stack for each dtype of the leaves.
    assert kernel.seen == [[((6, 4), jnp.float32)]] * 2
    chex.assert_trees_all_equal_dtypes(found, tree)


def test_a_wider_input_widens_the_computation(x64):
    tree = {"w": jnp.ones((6, 4), jnp.bfloat16)}
    wider = {"w": jnp.ones((6, 4), jnp.float64)}
    kernel = Counting()
    found = mo.map_matrices(kernel, (tree, wider))
    assert kernel.seen == [[((6, 4), jnp.float64)] * 2]
    assert found["w"].dtype == jnp.bfloat16


def test_the_compute_dtype_can_be_chosen():
    kernel = Counting()
    tree = {"w": jnp.ones((6, 4))}
    found = mo.map_matrices(kernel, (tree,), dtype=jnp.bfloat16)
    assert kernel.seen == [[((6, 4), jnp.bfloat16)]]
    assert found["w"].dtype == jnp.float32


@pytest.mark.parametrize(
    "absent",
    [None, optax.MaskedNode(), jnp.zeros((0, 3)), jnp.zeros((3, 0)), jnp.zeros((0,))],
    ids=["none", "masked", "no rows", "no columns", "empty vector"],
)
def test_absent_and_empty_leaves_pass_through(rng, absent):
    tree = {"here": draw(rng, 6, 4), "away": absent}
    numbers = {"here": jnp.zeros(()), "away": absent}
    kernel = lambda x, c, axis_name=None: (2 * x, c + 1)
    found, counted = mo.map_matrices(
        kernel, (tree,), (numbers,), returns=("matrix", "number")
    )
    assert found["away"] is absent
    # A leaf without matrices has no numbers, as `per_matrix` makes it.
    if hasattr(absent, "shape"):
        chex.assert_trees_all_equal(counted["away"], per_matrix(absent, 0.0))
    else:
        assert counted["away"] is absent
    np.testing.assert_array_equal(found["here"], 2 * tree["here"])
    assert counted["here"] == 1


def test_the_first_tree_decides_which_leaves_exist(rng):
    params = {"a": draw(rng, 6, 4), "b": draw(rng, 6, 4)}
    updates = {"a": params["a"], "b": None}
    numbers = per_matrix(params, 5.0)
    kernel = lambda x, y, c, axis_name=None: (x + y, c + 1)
    found, counted = mo.map_matrices(
        kernel, (updates, params), (numbers,), returns=("matrix", "number")
    )
    assert found["b"] is None
    assert counted["b"] is None
    assert float(counted["a"]) == 6


@pytest.mark.parametrize("tree", [{}, {"a": None}, []])
def test_a_tree_without_matrices_comes_back(tree):
    found = mo.map_matrices(identity, (tree,))
    assert found == tree


@pytest.mark.parametrize("count", [1, 3])
def test_a_kernel_with_one_result_returns_it_and_so_does_the_map(rng, count):
    tree = {"w": draw(rng, count, 6, 4), "away": None}
    kernel = lambda x, axis_name=None: jnp.stack([jnp.min(x), jnp.max(x)])
    found = mo.map_matrices(kernel, (tree,), returns=("number",), axes=mo.STACKED)
    assert found["away"] is None
    ends = [tree["w"].min(axis=(1, 2)), tree["w"].max(axis=(1, 2))]
    np.testing.assert_array_equal(found["w"], np.stack(ends, axis=-1))


def test_results_come_back_in_the_order_declared(rng):
    tree = {"w": draw(rng, 6, 4)}
    kernel = lambda x, axis_name=None: (jnp.max(x), 2 * x, jnp.min(x))
    largest, double, smallest = mo.map_matrices(
        kernel, (tree,), returns=("number", "matrix", "number")
    )
    np.testing.assert_array_equal(double["w"], 2 * tree["w"])
    assert (largest["w"], smallest["w"]) == (tree["w"].max(), tree["w"].min())


def test_numbers_are_float32_whatever_the_kernel_computes_in(x64):
    tree = {"w": jnp.ones((2, 6, 4), jnp.float64)}
    kernel = lambda x, axis_name=None: jnp.sum(x)
    found = mo.map_matrices(kernel, (tree,), returns=("number",), axes=mo.STACKED)
    assert found["w"].dtype == jnp.float32


def test_matrices_of_one_shape_may_have_vectors_of_different_lengths(rng):
    tree = {"a": draw(rng, 6, 4), "b": draw(rng, 2, 4, 6)}
    vectors = {"a": draw(rng, 4), "b": draw(rng, 2, 7)}
    kernel = lambda x, v, axis_name=None: (x * v[0], 2 * v)
    found, doubled = mo.map_matrices(
        kernel, (tree,), (vectors,), returns=("matrix", "number"), axes=mo.STACKED
    )
    np.testing.assert_array_equal(found["b"], tree["b"] * vectors["b"][:, :1, None])
    chex.assert_trees_all_equal(doubled, jax.tree.map(lambda v: 2 * v, vectors))


def test_numbers_of_arrays_on_an_explicit_mesh_lie_on_it(rng):
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    where = jax.NamedSharding(mesh, jax.P(None, None, None))
    tree = {"w": jax.device_put(draw(rng, 3, 6, 4), where)}
    kernel = lambda x, axis_name=None: (x, jnp.sum(x))
    run = lambda tree: mo.map_matrices(
        kernel, (tree,), returns=("matrix", "number"), axes=mo.STACKED
    )
    _, sums = jax.jit(run)(tree)
    assert sums["w"].sharding.mesh == mesh
    # A sum of 24 numbers of order 1.
    np.testing.assert_allclose(sums["w"], tree["w"].sum(axis=(1, 2)), atol=1e-5)
