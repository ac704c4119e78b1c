"""Results by condition, optimizer and learning rate, and each optimizer's best rate."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from manifold_optax.experiments.harness.records import RunResult

Result = TypeVar("Result", bound=RunResult)


@dataclasses.dataclass(frozen=True)
class Metric(Generic[Result]):
    """A number of a finished run: a column of the table and an axis of the figure.

    Attributes:
        name: Title of the column and of the axis.
        of: Result → number; None where it is not finite.
        digits: Digits behind the point in the table.
        lower_is_better: Whether a lower number is the better one.
    """

    name: str
    of: Callable[[Result], float | None]
    digits: int = 2
    lower_is_better: bool = False


@dataclasses.dataclass(frozen=True)
class Cell(Generic[Result]):
    """All seeds of one optimizer at one learning rate, in one condition.

    Attributes:
        optimizer: The optimizer.
        learning_rate: Its peak learning rate.
        results: One result per seed.
        condition: The condition; empty where the experiment has a single one.
    """

    optimizer: str
    learning_rate: float
    results: tuple[Result, ...]
    condition: str = ""

    @property
    def name(self) -> str:
        """The optimizer, behind the condition if there is one."""
        return ": ".join(filter(None, (self.condition, self.optimizer)))

    @property
    def label(self) -> str:
        """The name of the cell in figures."""
        return f"{self.name} at {self.learning_rate:g}"

    def numbers(self, metric: Metric[Result]) -> list[float]:
        """Returns a metric of each seed; nan where it is not finite."""
        found = map(metric.of, self.results)
        return [math.nan if number is None else number for number in found]

    def score(self, metric: Metric[Result]) -> float:
        """Returns the mean of a metric over the seeds, turned so that high is good.

        It is -inf where a seed has no finite number.
        """
        mean = statistics.fmean(self.numbers(metric))
        if math.isnan(mean):
            return -math.inf
        return -mean if metric.lower_is_better else mean


def group_by_cell(results: Sequence[Result]) -> list[Cell[Result]]:
    """Groups results by condition, optimizer and rate, in the order they appear."""
    grouped: dict[tuple[str, str, float], list[Result]] = {}
    for result in results:
        of = result.settings
        key = (of.condition, of.optimizer, of.learning_rate)
        grouped.setdefault(key, []).append(result)
    return [
        Cell(optimizer, rate, tuple(members), condition)
        for (condition, optimizer, rate), members in grouped.items()
    ]


def group_by_condition(cells: Sequence[Cell[Result]]) -> dict[str, list[Cell[Result]]]:
    """Groups cells by their condition, in the order they appear."""
    grouped: dict[str, list[Cell[Result]]] = {}
    for cell in cells:
        grouped.setdefault(cell.condition, []).append(cell)
    return grouped


def best_cells(
    cells: Sequence[Cell[Result]], metric: Metric[Result]
) -> dict[str, Cell[Result]]:
    """Returns the best learning rate of each optimizer by one metric.

    Args:
        cells: Results by condition, optimizer and learning rate.
        metric: What decides; the first cell wins a tie.

    Returns:
        One cell per optimizer and condition, in the order they appear, by its `name`:
        that of the optimizer where the experiment has a single condition.
    """
    best: dict[str, Cell[Result]] = {}
    for cell in cells:
        rival = best.get(cell.name)
        if rival is None or cell.score(metric) > rival.score(metric):
            best[cell.name] = cell
    return best
