"""Where the best learning rate lies at each size, and how it shifts between them.

Rates are compared on a scale of octaves: factors of 2.
"""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Curve:
    """Losses of one optimizer at one size.

    Attributes:
        rates: Learning rates, each twice the one before.
        losses: One row per seed, one column per rate; inf where not finite.
    """

    rates: tuple[float, ...]
    losses: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Mean loss over the seeds at each rate."""
        return self.losses.mean(axis=0)

    @property
    def best(self) -> int:
        """Place of the best rate of the grid."""
        return int(np.argmin(self.mean))

    @property
    def is_interior(self) -> bool:
        """Whether the best rate is neither the first nor the last of the grid."""
        return 0 < self.best < len(self.rates) - 1

    @property
    def optima(self) -> list[float]:
        """Logarithm (base 2) of the best rate of each seed."""
        return [_optimum(self.rates, row) for row in self.losses]

    def loss_at(self, octave: float) -> float:
        """Returns the mean loss at a rate, given by its logarithm (base 2).

        It is interpolated linearly between the rates of the grid, and nan outside.
        """
        places = np.log2(self.rates)
        # A rate of the grid is on it whatever the rounding of its logarithm.
        nearest = places[np.argmin(np.abs(places - octave))]
        octave = nearest if math.isclose(nearest, octave, abs_tol=1e-9) else octave
        return float(np.interp(octave, places, self.mean, math.nan, math.nan))


@dataclasses.dataclass(frozen=True)
class Shift:
    """How the best rate of an optimizer moves with the size.

    Attributes:
        optima: Logarithm (base 2) of the best rate at each size: mean over the seeds.
        slope: Octaves per doubling of the size: mean over the seeds of each one's
            least-squares slope.
        error: Standard error of the slope; nan for one seed.
    """

    optima: tuple[float, ...]
    slope: float
    error: float

    @property
    def span(self) -> float:
        """Octaves between the largest and the smallest best rate."""
        return max(self.optima) - min(self.optima)


def shift_of(
    curves: Mapping[int, Curve], added: Mapping[int, Sequence[float]] | None = None
) -> Shift:
    """Measures the shift of the best rate.

    Args:
        curves: Size → losses, at least two sizes.
        added: Size → octaves to add to the best rate of each seed, for a learning rate
            in other units.
    """
    rows = np.array([curve.optima for curve in curves.values()])
    if added is not None:
        rows = rows + np.array([added[size] for size in curves])
    doublings = np.log2(list(curves))
    slopes = [float(np.polyfit(doublings, seed, 1)[0]) for seed in rows.T]
    several = len(slopes) > 1
    error = statistics.stdev(slopes) / len(slopes) ** 0.5 if several else math.nan
    return Shift(tuple(rows.mean(axis=1).tolist()), statistics.fmean(slopes), error)


def transferred_loss(
    curves: Mapping[int, Curve], added: Mapping[int, Sequence[float]] | None = None
) -> float:
    """Returns the loss at the last size with the best rate of the first, of the grid.

    Args:
        curves: Size → losses, at least two sizes.
        added: As for `shift_of`.

    Returns:
        The mean over the seeds; nan if the rate lies outside the grid of the last size.
    """
    first, *_, last = curves.values()
    octave = math.log2(first.rates[first.best])
    if added is not None:
        start, *_, end = added.values()
        octave += statistics.fmean(start) - statistics.fmean(end)
    return last.loss_at(octave)


def _optimum(rates: Sequence[float], losses: np.ndarray) -> float:
    """The vertex of the parabola through the lowest loss and its neighbours."""
    place = int(np.argmin(losses))
    found = math.log2(rates[place])
    around = losses[max(0, place - 1) : place + 2]
    if len(around) < 3 or not np.isfinite(around).all():
        return found
    below, lowest, above = map(float, around)
    bend = below - 2 * lowest + above
    return found + (below - above) / (2 * bend) if bend > 0 else found
