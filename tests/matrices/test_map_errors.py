import jax.numpy as jnp
import numpy as np
import pytest

import manifold_optax as mo
from manifold_optax.matrices import per_matrix

X = {"layer": {"w": jnp.ones((6, 4))}}


def identity(x, *others, axis_name=None):
    return x


BOTH = ("matrix", "number")


@pytest.mark.parametrize(
    ("result", "returns", "message"),
    [
        (lambda x, c: x, BOTH, r"a tuple of 2 \(matrix, number\), got one array"),
        (lambda x, c: (x,), BOTH, r"a tuple of 2 .*got a tuple of 1"),
        (lambda x, c: (x, c, c), BOTH, r"a tuple of 2 .*got a tuple of 3"),
        (lambda x, c: (x,), ("matrix",), r"one array, a matrix, .*got a tuple of 1"),
        (lambda x, c: (x, c), ("number",), r"one array, a number, .*got a tuple of 2"),
    ],
)
def test_a_kernel_that_returns_the_wrong_number_is_an_error(result, returns, message):
    kernel = lambda x, c, axis_name=None: result(x, c)
    with pytest.raises(ValueError, match=f"must return {message}"):
        mo.map_matrices(kernel, (X,), (per_matrix(X, 0.0),), returns=returns)


@pytest.mark.parametrize(
    ("returns", "error"),
    [("matrix", TypeError), (2, TypeError), ((), ValueError), (("row",), ValueError)],
)
def test_what_a_kernel_returns_must_be_declared(unhooked, returns, error):
    with pytest.raises(error, match="returns must"):
        mo.map_matrices(identity, (X,), returns=returns)


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


def test_numbers_of_the_wrong_batch_are_an_error():
    stack = {"w": jnp.ones((3, 6, 4))}
    with pytest.raises(ValueError, match=r"'w' have the shape \(2,\).*\(3,\)"):
        mo.map_matrices(identity, (stack,), ({"w": jnp.ones((2,))},), axes=mo.STACKED)


@pytest.mark.parametrize("count", [1, 3])
def test_matrices_of_another_shape_are_an_error(count):
    x = {"w": jnp.ones((count, 6, 4))}
    with pytest.raises(ValueError, match=r"must return matrices.*\(6, 4\).*\(3, 4\)"):
        mo.map_matrices(lambda x, axis_name=None: x[:3], (x,), axes=mo.STACKED)


def test_numbers_that_are_integers_are_an_error():
    # They would become float32, and lose bits above 2²⁴.
    integers = {"w": jnp.zeros((), jnp.int32)}
    with pytest.raises(TypeError, match=r"'w'.*int32"):
        mo.map_matrices(identity, ({"w": jnp.ones((6, 4))},), (integers,))
    with pytest.raises(TypeError, match=r"numbers of a real floating dtype.*int32"):
        mo.map_matrices(
            lambda x, axis_name=None: jnp.argmax(x), (X,), returns=("number",)
        )


def test_an_unknown_orientation_is_an_error(unhooked):
    with pytest.raises(ValueError, match="orientation must be one of 'tall', 'either'"):
        mo.map_matrices(identity, (X,), orientation="wide")  # pyright: ignore[reportArgumentType]


def test_a_numpy_leaf_is_as_good_as_any(unhooked):
    leaf = np.ones((6, 4), np.float32)
    found = mo.map_matrices(identity, ({"w": leaf},))
    np.testing.assert_array_equal(found["w"], leaf)
