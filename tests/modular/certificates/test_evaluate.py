"""Formulas of norms, by the compiled loop and in floats, against plain arithmetic."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from manifold_optax.modular._bounds._number import (
    hypot,
    largest,
    least,
    steps,
    symbol,
)
from manifold_optax.modular._certificates._evaluate import Evaluation

NORMS = {"a": 3.0, "b": 4.0, "zero": 0.0, "huge": math.inf}


@pytest.mark.slow
def test_every_kind_of_step_is_rounded_up_and_near():
    a, b, zero, huge = (symbol(name, 1.0) for name in NORMS)
    cases = [
        (a * b * 0.5, 6.0),
        (a + b + 0.25, 7.25),
        (hypot([a, b, 12.0]), 13.0),
        (largest([a, b, 2.0]), 4.0),
        (least([a, b, huge]), 3.0),
        # The first limit that is not exceeded, and beyond the last.
        (steps(a, [2.0, 3.5, 5.0], lambda limit: 2 * limit), 7.0),
        (steps(b, [2.0, 3.5], lambda limit: 2 * limit), math.inf),
        (zero * huge, 0.0),
        (huge * a + b, math.inf),
        (1.5, 1.5),
    ]
    sizes = [size for size, _ in cases]
    expected = np.array([value for _, value in cases])

    def norms_of(names):
        return [jnp.float32(NORMS[name]) for name in names]

    evaluation = Evaluation(norms_of, [])
    numbers = [evaluation.number(size) for size in sizes]
    for found in (np.asarray(evaluation.values(sizes), np.float64), numbers):
        # Not a tolerance: at or above. A step is raised by 8 eps · (|log2| + 1), which
        # is 3e-6 of a value of 13; there are at most 5 in a row.
        assert (expected <= found).all()
        np.testing.assert_allclose(found, expected, rtol=2e-5)


@pytest.mark.slow
def test_nothing_is_bounded_where_a_weight_is_not_finite():
    for bad in (np.nan, np.inf):
        evaluation = Evaluation(lambda names: [], [jnp.array([0.0, bad])])
        assert evaluation.value(0.0) == evaluation.number(0.0) == math.inf
