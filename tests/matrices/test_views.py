import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manifold_optax as mo
from matrices.views import Dims, Example, EXAMPLES

each_example = pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)


def draw(rng, shape):
    return rng.standard_normal(shape).astype(np.float32)


def identity(x, axis_name=None):
    return x


def cube(x, axis_name=None):
    """Commutes with transposition, and mixes all entries of one matrix."""
    return x @ (x.T @ x)


def mapped(kernel, leaf, axes, **options):
    def run(leaf):
        return mo.map_matrices(kernel, ({"w": leaf},), axes=axes, **options)["w"]

    return np.asarray(jax.jit(run)(leaf))


@pytest.mark.promise(
    "Layouts and devices",
    "Axes, stacks and blocks are views: the way there and back changes no bit",
    on="3 and 4 axes, scans, experts, heads, convolutions",
)
@each_example
@pytest.mark.parametrize("orientation", ["tall", "fixed"])
def test_the_way_there_and_back_changes_no_bit(rng, example: Example, orientation):
    leaf = draw(rng, example.shape)
    found = mapped(identity, leaf, example.axes, orientation=orientation)
    np.testing.assert_array_equal(found, leaf)


@each_example
def test_the_kernel_sees_whole_matrices_one_at_a_time(rng, example: Example):
    leaf = draw(rng, example.shape)
    expected = example.each(leaf, lambda m: m @ m.T @ m)
    # A few float32 roundings of sums of 6 · 6 products of order 1.
    np.testing.assert_allclose(
        mapped(cube, leaf, example.axes), expected, rtol=1e-5, atol=2e-5
    )


@each_example
def test_without_transposition_rows_are_outputs_in_the_order_named(
    rng, example: Example
):
    leaf = draw(rng, example.shape)

    def mark(x, axis_name=None):
        rows, columns = jnp.indices(x.shape)
        return x + 10.0 * rows + columns

    def mark_inputs_by_outputs(m):
        inputs, outputs = np.indices(m.shape)
        return m + 10.0 * outputs + inputs

    found = mapped(mark, leaf, example.axes, orientation="fixed")
    # One sum of numbers below 100.
    np.testing.assert_allclose(
        found, example.each(leaf, mark_inputs_by_outputs), rtol=0, atol=1e-5
    )


@each_example
@pytest.mark.parametrize("orientation", ["tall", "fixed"])
def test_the_kernel_sees_long_by_short_or_outputs_by_inputs(
    example: Example, orientation
):
    seen = []

    def record(x, axis_name=None):
        seen.append(x.shape)
        return x

    expected = []

    def remember(m):
        long, short = max(m.shape), min(m.shape)
        expected.append((long, short) if orientation == "tall" else m.shape[::-1])
        return m

    leaf = np.zeros(example.shape, np.float32)
    mapped(record, leaf, example.axes, orientation=orientation)
    example.each(leaf, remember)
    assert set(seen) == set(expected)
    # One stack, and so one trace of the kernel, per shape.
    assert len(seen) == len(set(expected))


@pytest.mark.parametrize(
    ("leaf", "axes", "message"),
    [
        ((6,), mo.STACKED, r"'w' of shape \(6,\).*at least 2 axes.*mo.hybrid"),
        ((), mo.STACKED, r"'w' of shape \(\).*at least 2 axes"),
        ((6, 4), Dims(-3, -1), r"'w' of shape \(6, 4\).*at least 3 axes"),
        ((6, 4), Dims(0, 2), r"'w' of shape \(6, 4\).*at least 3 axes"),
        ((6, 4), Dims(0, 0), r"all different; on the leaf 'w' .* \(0,\) and \(0,\)"),
        ((6, 4), Dims(-2, 0), r"all different; on the leaf 'w'"),
        ((6, 4), Dims((), 1), r"at least one input axis.*'w'"),
        ((6, 4), Dims((0, 1), ()), r"one output axis.*'w'"),
        ((6, 4), mo.Split((2, 1)), r"sums to 3, but the leaf 'w'.*has 4 there"),
        ((6, 4), mo.Split((4, 0)), r"the sizes must be positive and add up"),
        ((6, 4), mo.Split((5, -1)), r"the sizes must be positive and add up"),
        ((6, 4), mo.Split(()), r"\(\) of axis -1 sums to 0, but the leaf 'w'"),
        ((6, 4), mo.Split((6,), axis=2), r"Axis 2 does not exist in 'w', which has 2"),
        ((6,), mo.Split((3, 3)), r"'w' of shape \(6,\).*at least 2 axes"),
        (
            (4, 6, 4),
            mo.Split((2, 2), axis=0),
            r"axis 0 of the leaf 'w' is a batch axis.*split an input or an output",
        ),
    ],
)
def test_axes_that_do_not_fit_are_errors_that_name_the_leaf(
    unhooked, leaf, axes, message
):
    with pytest.raises(ValueError, match=message):
        mapped(identity, np.zeros(leaf, np.float32), axes)
