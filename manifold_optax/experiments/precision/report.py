"""What the report of the precision experiment says beside its tables of runs."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from manifold_optax.experiments.harness import Cell, format_spread
from manifold_optax.experiments.harness.table import format_rows
from manifold_optax.experiments.precision.results import Rounded, RunResult
from manifold_optax.experiments.rounding import (
    FORMAT_NAMES,
    FormatName,
    Scope,
    SCOPES,
)

Cells: TypeAlias = Sequence[Cell[RunResult]]

LEGEND = (
    "The error of the perceptron is the share of wrong decisions in percent, that of "
    "the language model its loss in nats per character; before rounding."
)

_EXPLAINED = (
    "Scales are those of a whole tensor or of each output channel. Lost is the error "
    "on the test set after rounding less that before. A change is the L2 norm of what "
    "is added to the logits: the bound for every input of the domain (pixels from 0 to "
    "1, or any characters), the largest that was found in it, and the largest on test "
    "data, each in units of the median norm of the logits on test data; means over the "
    "seeds. ∞: there is no bound."
)

Number: TypeAlias = Callable[[RunResult, Rounded], float | None]


def by_condition(cells: Cells) -> Mapping[str, list[Cell[RunResult]]]:
    """Returns the cells of each network."""
    grouped: dict[str, list[Cell[RunResult]]] = {}
    for cell in cells:
        grouped.setdefault(cell.condition, []).append(cell)
    return grouped


def lost(run: RunResult, one: Rounded) -> float | None:
    """Returns how much more error there is after rounding."""
    if one.error is None or run.test_error is None:
        return None
    return one.error - run.test_error


def relative(name: str) -> Number:
    """Returns a change in units of the median norm of the logits."""

    def of(run: RunResult, one: Rounded) -> float | None:
        change, size = getattr(one, name), run.logit_size
        return change / size if change is not None and size else None

    return of


def numbers(
    cell: Cell[RunResult], of: Number, place: tuple[FormatName, Scope]
) -> list[float]:
    """Returns a number of each seed for one way of rounding; nan where there is none.

    Args:
        cell: The runs.
        of: The number.
        place: Format and what shares a scale.
    """
    found = (of(run, run.after(*place)) for run in cell.results)
    return [math.nan if number is None else number for number in found]


def rounding_tables(cells: Cells) -> list[str]:
    """Returns for each network what every way of rounding costs and changes."""
    lines = ["", "## Rounded weights", "", _EXPLAINED]
    for condition, own in by_condition(cells).items():
        lines += ["", f"### {condition.capitalize()}: lost", "", _table(own, (lost,))]
        changes = tuple(map(relative, ("certified", "found", "on_data")))
        title = "change of the logits (certified / found / on data)"
        lines += ["", f"### {condition.capitalize()}: {title}", ""]
        lines += [_table(own, changes), "", _refuted(own)]
    return lines


def _table(cells: Cells, columns: Sequence[Number]) -> str:
    rows = [
        {
            "format": number_format,
            "scales": f"per {per}",
            **{
                cell.label.removeprefix(f"{cell.condition}: "): " / ".join(
                    _spread(numbers(cell, of, (number_format, per)), len(columns) == 1)
                    for of in columns
                )
                for cell in cells
            },
        }
        for number_format, per in itertools.product(FORMAT_NAMES, SCOPES)
    ]
    return format_rows(rows)


def _spread(values: Sequence[float], whole: bool) -> str:
    if any(map(math.isnan, values)):
        return "∞"
    if whole:
        return format_spread(values, digits=3)
    return f"{sum(values) / len(values):.3g}"


def _refuted(cells: Cells) -> str:
    """Whether a change was larger than its bound."""
    bounded = [
        (one.certified, max(one.found or 0.0, one.on_data or 0.0))
        for cell in cells
        for run in cell.results
        for one in run.rounded
        if one.certified is not None
    ]
    wrong = sum(found > certified for certified, found in bounded)
    if wrong:
        return f"A CERTIFICATE IS WRONG: {wrong} of {len(bounded)} bounds are exceeded."
    ways = sum(len(run.rounded) for cell in cells for run in cell.results)
    return f"No bound was refuted: 0 of {len(bounded)} (of {ways} ways of rounding)."
