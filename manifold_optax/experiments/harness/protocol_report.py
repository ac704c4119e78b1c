"""What a report says of an experiment with final seeds."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from manifold_optax.experiments.harness.cells import (
    best_cells,
    Cell,
    group_by_condition,
    Metric,
)
from manifold_optax.experiments.harness.protocol import (
    compare,
    Comparison,
    FALSE_POSITIVES,
)
from manifold_optax.experiments.harness.table import format_rows

NO_DIFFERENCE = "no difference beyond the seeds"


def describe_budgets(cells: Sequence[Cell[Any]], selecting: Metric[Any]) -> list[str]:
    """Returns what each optimizer could spend on its learning rate.

    Args:
        cells: The grid.
        selecting: The metric that chose the best rates.
    """
    grids: dict[str, list[Cell[Any]]] = {}
    for cell in cells:
        grids.setdefault(cell.name, []).append(cell)
    budgets = {
        name: (len(own), sum(len(cell.results) for cell in own))
        for name, own in grids.items()
    }
    chosen = f"The best rate is chosen by {selecting.name}. No run is stopped early."
    if len(set(budgets.values())) == 1:
        [(rates, runs)] = set(budgets.values())
        return [
            f"Equal tuning budgets: {_count(rates, 'learning rate')} and "
            f"{_count(runs, 'run')} for every optimizer. {chosen}"
        ]
    most = max(runs for _, runs in budgets.values())
    favored = [name for name, (_, runs) in budgets.items() if runs == most]
    listed = "; ".join(
        f"{name} {_count(rates, 'rate')} and {_count(runs, 'run')}"
        for name, (rates, runs) in budgets.items()
    )
    return [
        f"Unequal tuning budgets: {listed}. Most had {', '.join(favored)}. {chosen}"
    ]


def describe_edges(cells: Sequence[Cell[Any]], selecting: Metric[Any]) -> list[str]:
    """Returns a warning for every best rate at an end of its grid.

    Args:
        cells: The grid.
        selecting: The metric that chose the best rates.
    """
    warnings: list[str] = []
    for name, best in best_cells(cells, selecting).items():
        rates = [cell.learning_rate for cell in cells if cell.name == name]
        if len(rates) == 1:
            reason = "is the only one that was tried"
        elif best.learning_rate == max(rates):
            reason = "is the largest that was tried, so that a larger may be better"
        elif best.learning_rate == min(rates):
            reason = "is the smallest that was tried, so that a smaller may be better"
        else:
            continue
        warnings += [
            "",
            f"Warning: the learning rate of {name}, {best.learning_rate:g}, {reason}.",
        ]
    return warnings


def describe_comparisons(
    final: Sequence[Cell[Any]], selecting: Metric[Any]
) -> list[str]:
    """Returns which optimizers differ, within each condition.

    Args:
        final: The runs with fresh seeds at the best rates.
        selecting: The metric that is compared.
    """
    seeds = min(len(cell.results) for cell in final)
    if seeds < 2:
        return [
            f"No comparison is made: it needs at least 2 final seeds, got {seeds}, "
            f"because nothing else says how much seeds matter."
        ]
    by_condition = group_by_condition(final)
    rows: list[dict[str, str]] = []
    unknown: list[str] = []
    for condition, cells in by_condition.items():
        numbers = {
            cell.optimizer: cell.numbers(selecting)
            for cell in sorted(cells, key=lambda cell: -cell.score(selecting))
        }
        diverged = {name for name, own in numbers.items() if any(map(math.isnan, own))}
        unknown += [cell.name for cell in cells if cell.optimizer in diverged]
        known = {name: own for name, own in numbers.items() if name not in diverged}
        shown = {"condition": condition} if len(by_condition) > 1 else {}
        rows += [{**shown, **_row(pair, selecting)} for pair in compare(known)]
    lines = [format_rows(rows), "", _legend(selecting)] if rows else []
    if unknown:
        lines += ["", f"Not compared, because a run diverged: {', '.join(unknown)}."]
    return lines or ["There is one optimizer, so there is nothing to compare."]


def _row(pair: Comparison, metric: Metric[Any]) -> Mapping[str, str]:
    digits = metric.digits + 1
    better = (pair.difference < 0) == metric.lower_is_better
    return {
        "pair": f"{pair.first} - {pair.second}",
        f"difference Δ of {metric.name}": f"{pair.difference:+.{digits}f}",
        "Δ/√(1/n₁ + 1/n₂)": f"{pair.statistic:.{digits}f}",
        "threshold": f"{pair.threshold:.{digits}f}",
        "σ": f"{pair.deviation:.{digits}f}",
        "verdict": (
            f"{pair.first if better else pair.second} is better"
            if pair.differs
            else NO_DIFFERENCE
        ),
    }


def _legend(metric: Metric[Any]) -> str:
    return (
        f"Δ is the difference of the means of {metric.name} over n₁ and n₂ seeds. "
        f"|Δ|/√(1/n₁ + 1/n₂) is compared with the threshold. σ is the pooled sample "
        f"standard deviation within the rows that are compared. The threshold is 3 σ, "
        f"or more where σ is known from few runs, so that a pair without a difference "
        f"exceeds it with a probability of at most {FALSE_POSITIVES:.0%}."
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
