"""The best rate of a curve, and its shift, against numbers by hand."""

import math

import numpy as np
import pytest

from manifold_optax.experiments.transfer.shifts import (
    Curve,
    shift_of,
    transferred_loss,
)

RATES = tuple(2.0**k for k in range(-6, 1))


def _parabola(*centers):
    """A curve whose loss is 1 + (octave − center)², a center per seed."""
    octaves = np.log2(RATES)
    return Curve(RATES, np.array([1 + (octaves - own) ** 2 for own in centers]))


def test_the_best_rate_of_a_parabola_is_its_vertex():
    # Exact but for rounding of float64: numbers of order 10, three differences.
    assert _parabola(-3.3, -2.8).optima == pytest.approx([-3.3, -2.8], abs=1e-13)


@pytest.mark.parametrize(
    ("losses", "octave", "interior"),
    [
        ((1, 2, 3, 4, 5, 6, 7), -6.0, False),
        ((7, 6, 5, 4, 3, 2, 1), 0.0, False),
        ((5, 4, math.inf, 1, math.inf, 9, 9), -3.0, True),
        ((2, 2, 2, 2, 2, 2, 2), -6.0, False),
        ((3, 3, 1, 1, 3, 3, math.inf), -3.5, True),
    ],
)
def test_the_best_rate_at_ends_and_beside_diverged_runs(losses, octave, interior):
    curve = Curve(RATES, np.array([losses], float))
    assert curve.optima == [octave]
    assert curve.is_interior == interior


def test_the_shift_is_a_slope_per_doubling_and_its_standard_error():
    # Seed 1 moves by -1 per doubling, seed 2 by -2.
    curves = {
        1: _parabola(-1.0, -1.0),
        2: _parabola(-2.0, -3.0),
        4: _parabola(-3.0, -5.0),
    }
    shift = shift_of(curves)
    assert shift.optima == pytest.approx((-1.0, -2.5, -4.0))
    assert shift.span == pytest.approx(3.0)
    assert shift.slope == pytest.approx(-1.5)
    # The sample standard deviation of -1 and -2 is √½; over √2 it is ½.
    assert shift.error == pytest.approx(0.5)


def test_another_unit_moves_each_size():
    curves = {1: _parabola(-1.0), 2: _parabola(-2.0)}
    shift = shift_of(curves, {1: [0.0], 2: [1.0]})
    assert shift.optima == pytest.approx((-1.0, -1.0))
    assert shift.slope == pytest.approx(0.0, abs=1e-12)
    assert math.isnan(shift.error)


def test_the_loss_with_the_rate_of_the_first_size():
    curves = {1: _parabola(-2.0), 8: _parabola(-4.0)}
    assert transferred_loss(curves) == pytest.approx(5.0)
    # In a unit in which the last size takes rates 1.5 octaves lower: between the
    # losses at -4 and -3 of the grid, 1 and 2.
    assert transferred_loss(curves, {1: [0.0], 8: [1.5]}) == pytest.approx(1.5)
    assert math.isnan(transferred_loss(curves, {1: [0.0], 8: [5.0]}))
