"""Mixed norms: ratios are bounds, and shapes change without changing the norm."""

import numpy as np
import pytest

from manifold_optax.modular._bounds._mixed_norm import (
    coarse,
    joined,
    mixed_norm,
    MixedNorm,
    natural_norm,
    ratio,
    reshaped,
    resized,
)
from manifold_optax.modular._bounds._sizes import constant_size
from modular.measured_norms import (
    largest_ratio,
    measured,
    norm_of,
    some_norm,
    starts_of,
    steepest,
)

# Rounding of float64 in sums of a few dozen terms and in small SVDs.
ROUNDING = 1 + 1e-9

# Marks of the given norm, by the last one of the wanted norm.
_GIVEN = {"s": "bos", "m": "bom"}


@pytest.mark.parametrize("shape", [(4,), (2, 3), (6, 4), (2, 2, 2), (2, 3, 4)])
@pytest.mark.parametrize("marks", ["bo", "bs", "boi", "bos", "bom"])
def test_a_ratio_is_never_exceeded(shape, marks, rng):
    for _ in range(12):
        wanted = some_norm(shape, rng, marks)
        given = some_norm(shape, rng, _GIVEN.get(marks[-1], "boi"))
        found = largest_ratio(wanted, given, starts_of(shape, rng), rounds=3)
        assert found <= ratio(wanted, given) * ROUNDING, (wanted, given)


@pytest.mark.parametrize(
    ("wanted", "given", "expected"),
    [
        ("b b", "b o", 1.0),
        ("b o", "b b", 2.0),
        ("o o", "b o", np.sqrt(6)),
        ("b s", "b o", 2.0),
        ("b s", "b b", 4.0),
        # The largest of each row of four, before and after the six rows are joined.
        ("o m", "o b", 2.0),
        ("o b", "o m", 1.0),
        ("o o", "o m", 2.0),
        ("o m", "o o", 1.0),
        ("o s", "o m", 4.0),
        # The Frobenius norm of a 6 × 4 matrix of norm 1, and the reverse.
        ("o o", "i o", 2.0),
        ("i o", "o o", 1.0),
        ("i o", "o i", 1.0),
        # An operator of one output is a vector: again the Frobenius norm.
        ("i i", "i o", 2.0),
        ("i o", "b o", np.sqrt(6)),
        # Two blocks of three rows, measured one by one and together.
        ("o o", "2b3o o", np.sqrt(2)),
        ("2b3o o", "o o", 1.0),
        # Blocks that cut each other: by way of the whole axis.
        ("2b3o o", "3b2o o", np.sqrt(3)),
    ],
)
def test_simple_ratios(wanted, given, expected, rng):
    shape = (6, 4)
    pair = norm_of(shape, wanted), norm_of(shape, given)
    assert ratio(*pair) == pytest.approx(expected)  # exact up to rounding
    # All but the last are attained; there the best is √2, as three entries lie in two
    # of the pairs.
    attained = largest_ratio(*pair, starts_of(shape, rng), rounds=8)
    assert attained >= expected / 1.3


def test_ratios_of_even_entries(rng):
    """Of arrays whose entries have one size, the conversions are equalities."""
    signs = np.where(rng.random((6, 4)) < 0.5, -1.0, 1.0)
    for _ in range(50):
        wanted, given = (some_norm((6, 4), rng, "bo") for _ in range(2))
        found = measured(wanted, signs) / measured(given, signs)
        bound = ratio(wanted, given, even=True)
        assert found <= bound * ROUNDING
        assert bound <= ratio(wanted, given) * ROUNDING


@pytest.mark.parametrize(
    ("shape", "other"),
    [((6, 4), (2, 3, 4)), ((2, 3, 4), (6, 4)), ((2, 6), (4, 3)), ((8,), (2, 1, 4))],
)
def test_reshaping_keeps_the_value(shape, other, rng):
    fitting = 0
    for _ in range(60):
        norm = some_norm(shape, rng)
        outer = reshaped(norm, other)
        if outer is None:
            continue
        fitting += 1
        array = rng.standard_normal(shape)
        found = measured(outer, array.reshape(other))
        assert found == pytest.approx(measured(norm, array))  # exact up to rounding
        assert reshaped(outer, shape) == norm
    assert fitting > 10


def test_reshaping_that_cuts_factors():
    assert reshaped(norm_of((6,), "2b3o"), (3, 2)) is None
    assert reshaped(norm_of((6,), "o"), (3, 2)) == norm_of((3, 2), "o o")


@pytest.mark.parametrize("text", ["b", "o", "s", "2b3o", "3o2b", "2i3o"])
@pytest.mark.parametrize(("size", "start"), [(12, 0), (12, 6), (9, 3), (7, 1), (6, 0)])
def test_a_piece_of_an_axis(text, size, start, rng):
    """A piece among zeros has the norm of the piece, if its blocks stay whole."""
    norm = norm_of((6,), text)
    inner = np.prod([n for n, _ in norm.axes[0][1:]], initial=1)
    aligned = bool(start % inner == 0)
    outer = MixedNorm((resized(norm.axes[0], size, aligned=aligned),))
    piece, whole = rng.standard_normal(6), np.zeros(size)
    whole[start : start + 6] = piece
    if aligned and size % inner == 0:
        # Exact up to rounding.
        assert measured(outer, whole) == pytest.approx(measured(norm, piece))
    else:
        assert outer == norm_of((size,), "o")


def test_names_and_shapes():
    norm = norm_of((6, 4, 1), "2b3o i b")
    assert str(norm) == "[2:max·3:2, 4:in, 1]"
    assert norm.shape == (6, 4, 1)
    assert (norm.count("o"), norm.count("bi"), norm.has("s")) == (3, 8, False)
    assert coarse(norm) == norm_of((6, 4, 1), "o i b")
    assert natural_norm((2, 3)) == mixed_norm((2, 3), "bo")
    assert natural_norm(()) == MixedNorm(())
    assert joined([(2, "b"), (1, "o"), (3, "b")]) == ((6, "b"),)


@pytest.mark.parametrize("marks", ["bo", "bos", "boi"])
def test_known_arrays(marks, rng):
    """A known array is measured exactly, or by the Frobenius norm of an operator."""
    for _ in range(20):
        norm, array = some_norm((2, 3, 4), rng, marks), rng.standard_normal((2, 3, 4))
        found, exact = constant_size(array, norm), measured(norm, array)
        assert found >= exact / ROUNDING
        if "i" not in marks:
            assert found == pytest.approx(exact)  # exact up to rounding


def test_the_steepest_array_is_the_best(rng):
    """The attacks of these tests are attacks: random directions gain less."""
    for _ in range(20):
        norm, gradient = some_norm((4, 6), rng), rng.standard_normal((4, 6))
        best = steepest(norm, gradient)
        assert measured(norm, best) <= ROUNDING
        for _ in range(5):
            other = rng.standard_normal((4, 6))
            other /= measured(norm, other)
            assert np.sum(gradient * other) <= np.sum(gradient * best) * ROUNDING
