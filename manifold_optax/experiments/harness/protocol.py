"""When two optimizers differ by more than their seeds do.

Two means over n₁ and n₂ fresh seeds differ by Δ. If the optimizers do not differ and
each run deviates from its mean by σ, then Δ has the standard deviation
σ √(1/n₁ + 1/n₂). So Δ / √(1/n₁ + 1/n₂) is compared with a multiple of σ, as track 3 of
modded-nanogpt's speedrun does. There σ is known from many runs; here it is estimated
from the runs that are compared.

What it finds, of 4 rows: with 3 seeds each, a difference of 3 σ in 63 % and one of 4 σ
in 90 % of the cases; with 5 seeds, one of 3 σ in 94 %.
"""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence

from scipy.special import stdtrit

LEAST_FACTOR = 3.0
"""Threshold in units of σ, where σ is known well.

Track 3 of modded-nanogpt (github.com/KellerJordan/modded-nanogpt) accepts a record at
(3.28 - mean loss) · √n ≥ 0.004 with σ = 0.0013: 3 σ.
"""

FALSE_POSITIVES = 0.01
"""Largest probability that a pair without a difference exceeds the threshold.

With σ known, 3 σ is exceeded by chance in 0.27 % of the cases. With σ from 4 rows of 3
seeds it would be in 1.7 %, so that the threshold rises to 3.36 σ, the quantile of
Student's distribution with 8 degrees of freedom. From 14 degrees on it is 3 σ.
"""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two groups of runs, compared.

    Attributes:
        first: Name of one group.
        second: Name of the other.
        difference: Mean of the first group minus that of the second.
        statistic: |difference| / √(1/n₁ + 1/n₂).
        deviation: σ, the pooled standard deviation over the seeds.
        threshold: What the statistic must exceed.
    """

    first: str
    second: str
    difference: float
    statistic: float
    deviation: float
    threshold: float

    @property
    def differs(self) -> bool:
        """Whether the difference is larger than the seeds explain."""
        return self.statistic > self.threshold


def pooled_deviation(groups: Sequence[Sequence[float]]) -> float:
    """Returns the root of the mean of the sample variances within the groups.

    Args:
        groups: At least one group, each of at least two numbers.
    """
    return math.sqrt(statistics.fmean(map(statistics.variance, groups)))


def threshold_factor(freedom: int) -> float:
    """Returns the threshold in units of σ.

    Args:
        freedom: Degrees of freedom of σ: numbers less groups, at least 1.
    """
    return max(LEAST_FACTOR, float(stdtrit(freedom, 1 - FALSE_POSITIVES / 2)))


def compare(groups: Mapping[str, Sequence[float]]) -> list[Comparison]:
    """Compares every pair of groups, with one σ for all of them.

    It assumes that runs of all groups deviate alike from their means. A group that
    deviates much more than the others hides differences between these, and its own
    comparisons find more than there is.

    Args:
        groups: Finite numbers of a metric, one per seed, by the name of the group.

    Returns:
        The pairs, in the order of the groups.

    Raises:
        ValueError: if a group has fewer than two numbers: nothing says then how much
            seeds matter.

    Example:
        >>> [pair] = compare({"a": (1.0, 2.0, 3.0), "b": (11.0, 12.0, 13.0)})
        >>> pair.difference, pair.deviation, pair.differs
        (-10.0, 1.0, True)
    """
    for name, numbers in groups.items():
        if len(numbers) < 2:
            raise ValueError(
                f"A comparison needs at least 2 seeds per group, got {len(numbers)} of "
                f"{name}."
            )
    if len(groups) < 2:
        return []
    deviation = pooled_deviation(list(groups.values()))
    freedom = sum(len(numbers) - 1 for numbers in groups.values())
    threshold = threshold_factor(freedom) * deviation
    pairs: list[Comparison] = []
    for (first, ours), (second, theirs) in itertools.combinations(groups.items(), 2):
        difference = statistics.fmean(ours) - statistics.fmean(theirs)
        scale = math.sqrt(1 / len(ours) + 1 / len(theirs))
        statistic = abs(difference) / scale
        pairs.append(
            Comparison(first, second, difference, statistic, deviation, threshold)
        )
    return pairs
