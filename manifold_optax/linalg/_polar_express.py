"""The generator of the Polar Express schedules."""

import math

import numpy as np

from manifold_optax._typing import Schedule
from manifold_optax.linalg._coefficients import TAYLOR_ROW

_CLOSE = 1 - 5e-6
"""Ratio of the ends of an interval above which its minimax row is TAYLOR_ROW's to 1e-8;
the equations of the exchange become singular there. Source: as for `polar_express`."""

_EXCHANGES = 100
"""Limit of the exchange steps; 5 to 15 of them are enough."""

_SETTLED = 1e-15
"""Change of the error, relative to values near 1, at which the exchange stops."""

_CUSHION = 0.02407327424182761
"""Smallest ratio of the ends of an interval. Below it the minimax row is so steep that
it sends part of the interval near 0. Source: as for `polar_express`."""


def polar_express(
    steps: int,
    *,
    lower: float = 1e-3,
    safety: float = 1.01,
    cushion: float = _CUSHION,
) -> Schedule:
    """Schedule of Polar Express: row by row the minimax odd quintic, for `steps` rows.

    The first row is the odd quintic nearest to 1 on `[lower, 1]`; each next one is
    nearest to 1 on the image of what came before. So no other quintics bring the worst
    singular value of `[lower, 1]` nearer to 1 in as many steps. (Where an interval is
    wider than `cushion`, the row is optimal from there on, and centred on the whole.)

    Args:
        steps: number of rows, ≥ 1.
        lower: smallest singular value, relative to the norm that `newton_schulz`
            divides by, that must arrive at 1; in (0, 1).
        safety: divisor of the input of every row but the last, ≥ 1. The schedule
            tolerates singular values somewhat above 1, as rounding makes them, only
            if it is above 1; 1 gives the published rows.
        cushion: smallest ratio of the ends of an interval, in [0, 1).

    Returns:
        `steps` rows `(a, b, c)`, computed in float64. The division happens inside the
        generation, so that each row accounts for those before it. `POLAR_EXPRESS` has
        rows that were divided afterwards, and differs.

    Raises:
        ValueError: for an argument out of its range.

    Cost: a few milliseconds, outside of any compiled program.

    Example:
        >>> [round(x, 4) for x in polar_express(1, safety=1.0, cushion=0.0)[0]]
        [8.4703, -25.1081, 18.6293]

    Source: N. Amsel, D. Persson, C. Musco, R. Gower, "The Polar Express" (arXiv
    2505.16932, 2025), algorithm 1 and its listing.
    """
    _check_ranges(steps, lower, safety, cushion)
    rows: list[tuple[float, float, float]] = []
    low, high = lower, 1.0
    for step in range(steps):
        row = _minimax_row(max(low, cushion * high), high)
        middle = (_value(row, low) + _value(row, high)) / 2
        divisor = safety if step + 1 < steps else 1.0
        a, b, c = (x / middle for x in row)
        row = (a / divisor, b / divisor**3, c / divisor**5)
        rows.append(row)
        low = _value(row, low)
        high = 2 - low
    return tuple(rows)


def _minimax_row(low: float, high: float) -> tuple[float, float, float]:
    """Odd quintic nearest to 1 on `[low, high]`, by the exchange of Remez."""
    if low / high > _CLOSE:
        a, b, c = TAYLOR_ROW
        return a / high, b / high**3, c / high**5
    inner, outer = (3 * low + high) / 4, (low + 3 * high) / 4
    row, error = (0.0, 0.0, 0.0), math.inf
    for _ in range(_EXCHANGES):
        # The error alternates in sign at both ends and the two extrema between.
        points = np.array([low, inner, outer, high])
        signs = np.array([1.0, -1.0, 1.0, -1.0])
        system = np.stack([points, points**3, points**5, signs], axis=1)
        a, b, c, found = np.linalg.solve(system, np.ones(4)).tolist()
        row, change = (a, b, c), abs(found - error)
        if change <= _SETTLED:
            break
        root = math.sqrt(9 * b**2 - 20 * a * c)
        inner = math.sqrt((-3 * b - root) / (10 * c))
        outer = math.sqrt((-3 * b + root) / (10 * c))
        error = found
    return row


def _value(row: tuple[float, float, float], s: float) -> float:
    a, b, c = row
    return a * s + b * s**3 + c * s**5


def _check_ranges(steps: int, lower: float, safety: float, cushion: float) -> None:
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps!r}.")
    if not 0 < lower < 1:
        raise ValueError(
            "lower must be above 0 and below 1, the largest singular value of a "
            f"normalized matrix; got {lower!r}."
        )
    if not 1 <= safety < math.inf:
        raise ValueError(f"safety must be at least 1 and finite, got {safety!r}.")
    if not 0 <= cushion < 1:
        raise ValueError(f"cushion must be in [0, 1), got {cushion!r}.")
