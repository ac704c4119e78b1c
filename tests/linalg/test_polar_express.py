"""polar_express against the published rows, and the minimax property itself."""

import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from manifold_optax.linalg import (
    newton_schulz,
    POLAR_EXPRESS,
    polar_express,
    POLAR_EXPRESS_FAST,
)
from manifold_optax.linalg._coefficients import TAYLOR_ROW


def test_published_rows():
    # POLAR_EXPRESS has the published rows, the first seven divided by 1.01.
    published = [(a * 1.01, b * 1.01**3, c * 1.01**5) for a, b, c in POLAR_EXPRESS[:7]]
    found = polar_express(8, safety=1.0)
    # The last rows are published with the rounding of a difference, and the
    # eighth is the limit (seen: 1e-14, 1e-11, 5e-11, 4e-9).
    for row, expected, tolerance in zip(
        found, (*published, TAYLOR_ROW), (*(1e-12,) * 5, 1e-11, 1e-9, 1e-8), strict=True
    ):
        np.testing.assert_allclose(row, expected, rtol=0, atol=tolerance)


def test_rows_of_dion():
    found = polar_express(5, safety=1.02, cushion=0.02)
    # Rounding of some dozen operations on numbers of 20 (seen: 1.2e-14).
    np.testing.assert_allclose(found, POLAR_EXPRESS_FAST, rtol=0, atol=1e-12)


def test_the_first_row_is_the_minimax_quintic():
    (row,) = polar_express(1, safety=1.0, cushion=0.0)
    # As published, to its digits.
    np.testing.assert_allclose(row, (8.4703, -25.1081, 18.6293), atol=5e-5)
    at = np.array([1e-3, 0.3674, 0.8208, 1.0])
    errors = 1 - oracles.schedule_image((row,), at)
    np.testing.assert_allclose(errors, 0.9915 * np.array([1, -1, 1, -1]), atol=1e-4)
    # Nowhere else is the error larger: with four alternations it is optimal.
    image = oracles.schedule_image((row,), np.geomspace(1e-3, 1, 20001))
    assert np.abs(1 - image).max() <= errors[0] + 1e-12


@pytest.mark.parametrize("steps", [3, 8])
@pytest.mark.parametrize("lower", [1e-2, 1e-3, 1e-6])
def test_the_default_safety_tolerates_input_above_one(steps, lower):
    schedule = polar_express(steps, lower=lower)
    assert len(schedule) == steps
    below = oracles.schedule_image(schedule, np.geomspace(lower, 1, 20001))
    above = oracles.schedule_image(schedule, np.linspace(1, 1.01, 2001))
    assert above.min() > 0
    # By design the image of [lower, 1.01] is centred at 1 (rounding of float64).
    highest = max(below.max(), above.max())
    assert below.min() + highest == pytest.approx(2, abs=1e-6)


def test_more_steps_and_a_larger_lower_bound_come_nearer_to_one():
    def error(steps, lower):
        image = oracles.schedule_image(
            polar_express(steps, lower=lower), np.geomspace(lower, 1, 2001)
        )
        return np.abs(image - 1).max()

    assert error(5, 1e-3) < error(4, 1e-3) < error(3, 1e-3)
    assert error(5, 1e-2) < error(5, 1e-3)


def test_it_is_a_schedule_of_newton_schulz(rng):
    x = rng.standard_normal((12, 5)).astype(np.float32)
    schedule = polar_express(10)
    # Ten steps for [1e-3, 1] end at the polar factor, to the rounding of float32 times
    # the slope (seen: 1.3e-6).
    found = newton_schulz(jnp.asarray(x), schedule)
    np.testing.assert_allclose(found, oracles.polar(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"lower": 0.0}, r"lower must be above 0 and below 1.*got 0\.0"),
        ({"lower": 1.0}, r"lower must be above 0 and below 1.*got 1\.0"),
        ({"safety": 0.99}, r"safety must be at least 1.*got 0\.99"),
        ({"cushion": 1.0}, r"cushion must be in \[0, 1\), got 1\.0"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        polar_express(**({"steps": 5} | options))
