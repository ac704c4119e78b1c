import jax.numpy as jnp
import numpy as np
import pytest

import manifold_optax as mo
from manifold_optax.matrices import per_matrix

X = {"layer": {"w": jnp.ones((6, 4))}}


def identity(x, *others, axis_name=None):
    return (x,), ()


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (lambda x, c, axis_name=None: ((), (c,)), "got 0 and 1"),
        (lambda x, c, axis_name=None: ((x, x), (c,)), "got 2 and 1"),
        (lambda x, c, axis_name=None: ((x,), ()), "got 1 and 0"),
        (lambda x, c, axis_name=None: ((x,), (c, c)), "got 1 and 2"),
    ],
)
def test_a_kernel_that_returns_the_wrong_number_is_an_error(kernel, message):
    expected = f"must return 1 matrices and 1 carried arrays, {message}"
    with pytest.raises(ValueError, match=expected):
        mo.map_matrices(kernel, (X,), (per_matrix(X, 0.0),))


@pytest.mark.parametrize(
    "kernel",
    [
        lambda x, c, axis_name=None: ((x[:-1],), (c,)),
        lambda x, c, axis_name=None: ((x,), (jnp.zeros((2,)),)),
    ],
    ids=["matrix", "carried"],
)
def test_a_kernel_that_changes_a_shape_is_an_error(kernel):
    with pytest.raises((ValueError, TypeError)):
        mo.map_matrices(kernel, (X,), (per_matrix(X, 0.0),))


@pytest.mark.parametrize(
    "other",
    [{"layer": {}}, {"layer": {"v": jnp.ones((6, 4))}}, {}, [jnp.ones((6, 4))]],
)
def test_trees_of_different_structure_are_an_error(other):
    with pytest.raises(ValueError, match=r"must have one tree structure; .*'w'"):
        mo.map_matrices(identity, (X, other))
    with pytest.raises(ValueError, match=r"must have one tree structure; .*'w'"):
        mo.map_matrices(identity, (X,), (other,))


def test_shapes_that_differ_are_an_error_that_names_the_leaf():
    other = {"layer": {"w": jnp.ones((4, 6))}}
    message = r"'layer/w' differ in shape: \(6, 4\) and \(4, 6\)"
    with pytest.raises(ValueError, match=message):
        mo.map_matrices(identity, (X, other))


def test_an_absent_leaf_of_another_tree_is_an_error_that_names_the_leaf(unhooked):
    with pytest.raises((ValueError, TypeError), match="'layer/w'"):
        mo.map_matrices(identity, (X, {"layer": {"w": None}}))


@pytest.mark.parametrize("dtype", ["int32", "bool", "complex64", "uint8"])
@pytest.mark.parametrize("position", [0, 1])
def test_leaves_that_are_not_real_floating_are_errors(unhooked, dtype, position):
    trees = [X, X]
    trees[position] = {"layer": {"w": jnp.ones((6, 4), dtype)}}
    with pytest.raises(TypeError, match=f"'layer/w' has dtype {dtype}, but only real"):
        mo.map_matrices(identity, trees)


def test_carried_arrays_of_the_wrong_batch_are_an_error():
    stack = {"w": jnp.ones((3, 6, 4))}
    kernel = lambda x, c, axis_name=None: ((x,), (c,))
    with pytest.raises(ValueError, match=r"'w' has the shape \(2,\).*\(3,\)"):
        mo.map_matrices(kernel, (stack,), ({"w": jnp.ones((2,))},))


@pytest.mark.parametrize("count", [1, 3])
def test_results_of_other_shapes_are_an_error(count):
    x, c = {"w": jnp.ones((count, 6, 4))}, {"w": jnp.ones((count, 2))}
    fewer_rows = lambda x, c, axis_name=None: ((x[:3],), (c,))
    with pytest.raises(ValueError, match=r"must return matrices.*\(6, 4\).*\(3, 4\)"):
        mo.map_matrices(fewer_rows, (x,), (c,))
    a_number = lambda x, c, axis_name=None: ((x,), (c[0],))
    with pytest.raises(ValueError, match=r"must return carried arrays.*\(2,\).*\(\)"):
        mo.map_matrices(a_number, (x,), (c,))


def test_carried_integers_are_an_error():
    # They would travel as float32, and lose bits above 2²⁴.
    kernel = lambda x, c, axis_name=None: ((x,), (c,))
    with pytest.raises(TypeError, match=r"'w'.*int32"):
        mo.map_matrices(
            kernel, ({"w": jnp.ones((6, 4))},), ({"w": jnp.zeros((), jnp.int32)},)
        )


def test_a_numpy_leaf_is_as_good_as_any(unhooked):
    leaf = np.ones((6, 4), np.float32)
    (found,), _ = mo.map_matrices(identity, ({"w": leaf},))
    np.testing.assert_array_equal(found["w"], leaf)
