"""The published schedules: their digits, images and slopes, and how they end."""

import numpy as np
import pytest

import oracles
from manifold_optax import linalg
from manifold_optax.linalg._coefficients import RANK_ROW, TAYLOR_ROW

SCHEDULES = {
    name: value
    for name, value in vars(linalg).items()
    if name.isupper() and name in linalg.__all__ and isinstance(value[0], tuple)
}
# Published unsafe above 1, so here divided by 1.01; undone for the published digits.
DIVIDED = ("CANS", "CUBIC")


def published(name):
    schedule = SCHEDULES[name]
    if name not in DIVIDED:
        return schedule
    return tuple((a * 1.01, b * 1.01**3, c * 1.01**5) for a, b, c in schedule)


def slope(schedule):
    return np.prod([a for a, _, _ in schedule])


def test_every_schedule_is_here():
    assert len(SCHEDULES) == 12


# Schedule, slope at 0, images of [1e-3, 1] and of [1e-2, 1]: computed once, the images
# to four decimals (for POLAR_EXPRESS_FAST it was 0.8466, which is the image of a value
# below 1e-3).
SLOPES_AND_IMAGES = """
    JORDAN              484.9 0.4705  1.2024  0.6818  1.1344
    DEEPSEEK            7.9e4 1.0     1.0005  1.0     1.0005
    YOU                 492.7 0.4750  1.1450  0.9778  1.0318
    MODULA               1137 0.8663  0.9993  0.9956  0.9993
    POLAR_EXPRESS        6363 1.0     1.0     1.0     1.0
    POLAR_EXPRESS_WIDE  803.9 0.7290  1.1236  0.8461  1.1236
    POLAR_EXPRESS_FAST  989.5 0.8589  1.1411  0.8589  1.1411
    CANS                 1049 0.8844  1.1198  0.8844  1.1198
    CUBIC               119.3 0.1191  1.3000  0.7741  1.3000
    SIMPLE               4096 1.0     1.0     1.0     1.0
    TAYLOR               1888 0.9808  1.0     1.0     1.0
    CLASSIC             437.9 0.4165  1.0     1.0     1.0
"""


@pytest.mark.promise(
    "Numbers",
    "Published schedules have their published images",
    on="JORDAN, DION, CANS and others",
)
@pytest.mark.parametrize("row", SLOPES_AND_IMAGES.strip().splitlines())
def test_published_slopes_and_images(row):
    name, *numbers = row.split()
    slope_at_zero, *images = map(float, numbers)
    schedule = published(name)
    # "7.9e4" has two digits, the others four.
    digits = 5e-3 if name == "DEEPSEEK" else 5e-4
    assert slope(schedule) == pytest.approx(slope_at_zero, rel=digits)
    for lowest, low, high in ((1e-3, *images[:2]), (1e-2, *images[2:])):
        image = oracles.schedule_image(schedule, np.geomspace(lowest, 1, 20001))
        assert image.min() == pytest.approx(low, abs=1e-4)
        assert image.max() == pytest.approx(high, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "image_of_one"),
    [
        ("JORDAN", 0.69644),
        ("YOU", 0.97835),
        ("MODULA", 0.99841),
        ("POLAR_EXPRESS_FAST", 0.85913),
        ("CANS", 1.00507),
    ],
)
def test_published_images_of_one(name, image_of_one):
    # Computed once, to five decimals. The four decimals of CANS's rows are steep at 1:
    # the division and its undoing move the image by rounding only.
    image = float(oracles.schedule_image(published(name), 1.0))
    assert image == pytest.approx(image_of_one, abs=1e-5)


# Measured, where the docstrings promise an image of the divided rows.
@pytest.mark.parametrize(
    ("name", "lowest", "low", "high"),
    [("CANS", 1e-3, 0.8567, 1.1134), ("CUBIC", 1e-2, 0.8077, 1.3000)],
)
def test_images_of_the_divided_rows(name, lowest, low, high):
    image = oracles.schedule_image(SCHEDULES[name], np.geomspace(lowest, 1, 20001))
    assert image.min() == pytest.approx(low, abs=1e-4)
    assert image.max() == pytest.approx(high, abs=1e-4)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_stay_tame_above_one(name):
    # Rows without safety blow up here: 2.8 at 1 + 1e-5.
    highest = 1.05 if name in ("JORDAN", "YOU", "POLAR_EXPRESS_WIDE") else 1.01
    above = oracles.schedule_image(SCHEDULES[name], np.linspace(1, highest, 2001))
    below = oracles.schedule_image(SCHEDULES[name], np.geomspace(1e-2, 1, 20001))
    # Inside of what values below 1 do, or near it (seen: JORDAN at 1.05 0.6669 against
    # 0.6818, CUBIC 0.748 against 0.808).
    assert above.min() >= below.min() - 0.1
    assert above.max() <= below.max() + 0.1


def test_rows_without_safety_do_not():
    # What the test above would catch.
    for name in DIVIDED:
        image = oracles.schedule_image(published(name), np.linspace(1, 1.01, 2001))
        assert image.min() < 0 or image.max() > 2.8


def test_sum_of_jordans_row():
    # Exact but for the rounding of two float64 additions.
    assert sum(linalg.JORDAN[0]) == pytest.approx(0.701, abs=1e-15)


def test_rows_that_polar_ends_with():
    def slope_of(row, s):
        return row[0] + 3 * row[1] * s**2 + 5 * row[2] * s**4

    def curvature_of(row, s):
        return 6 * row[1] * s + 20 * row[2] * s**3

    # Small integer fractions: exact in float64.
    assert [sum(TAYLOR_ROW), slope_of(TAYLOR_ROW, 1), curvature_of(TAYLOR_ROW, 1)] == [
        1,
        0,
        0,
    ]
    assert [sum(RANK_ROW), slope_of(RANK_ROW, 1), slope_of(RANK_ROW, 0)] == [1, 0, 0]
