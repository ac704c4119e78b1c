"""The table of an experiment, as Markdown, and the files around it."""

import pathlib
from collections.abc import Mapping, Sequence

from manifold_optax.experiments.figures import write_figures
from manifold_optax.experiments.markdown import format_rows, format_spread
from manifold_optax.experiments.results import (
    Cell,
    group_by_cell,
    RunResult,
    selection_score,
)
from manifold_optax.experiments.timing import StepTime

_MISSING = "-"
_BASELINE = "adamw"
_LEGEND = (
    "Accuracies are means ± sample standard deviations over the seeds. The residual is "
    "the largest relative distance of any matrix from its manifold after any step. "
    "Ratios are times per step over those of AdamW."
)


def write_report(
    results: Sequence[RunResult], times: Mapping[str, StepTime], output: pathlib.Path
) -> str:
    """Writes `report.md` and the figures.

    Args:
        results: Finished runs, in the order of the table.
        times: Time per step of every optimizer; or empty.
        output: Directory to write to.

    Returns:
        The report.
    """
    cells = group_by_cell(results)
    report = format_table(cells, times)
    (output / "report.md").write_text(report, encoding="utf-8")
    write_figures(cells, times, output)
    return report


def format_table(cells: Sequence[Cell], times: Mapping[str, StepTime]) -> str:
    """Formats the table: one row per optimizer and learning rate.

    With a validation set, rows are ranked by the accuracy on it; otherwise they keep
    their order. Accuracies are means ± sample standard deviations over the seeds.

    Args:
        cells: Results by optimizer and learning rate.
        times: Time per step of every optimizer; or empty.

    Returns:
        A Markdown table and how to read it.
    """
    validated = all(cell.accuracies("validation") for cell in cells)
    if validated:
        cells = sorted(cells, key=selection_score, reverse=True)
    rows = [_row(cell, times, validated=validated) for cell in cells]
    return "\n".join([format_rows(rows), "", _LEGEND, ""])


def _row(
    cell: Cell, times: Mapping[str, StepTime], *, validated: bool
) -> dict[str, str]:
    row = {"optimizer": cell.optimizer, "learning rate": f"{cell.learning_rate:g}"}
    if validated:
        row["validation %"] = _spread(cell.accuracies("validation"))
    row["test %"] = _spread(cell.accuracies("test"))
    row["train %"] = _spread(cell.accuracies("train"))
    row["seeds"] = str(len(cell.results))
    row["singular values by layer"] = _singular_values(cell)
    row["residual"] = _residual(cell)
    return row | _times(cell.optimizer, times)


def _spread(accuracies: Sequence[float]) -> str:
    return format_spread([100 * accuracy for accuracy in accuracies])


def _singular_values(cell: Cell) -> str:
    """Smallest and largest singular value of each layer, over all seeds."""
    ranges: list[str] = []
    for layer in zip(*(result.singular_values for result in cell.results), strict=True):
        values = [value for seed in layer for value in seed]
        known = [value for value in values if value is not None]
        diverged = len(known) < len(values)
        ranges.append(
            "not finite" if diverged else f"{min(known):.3g}-{max(known):.3g}"
        )
    return " / ".join(ranges)


def _residual(cell: Cell) -> str:
    known = [r.residual for r in cell.results if r.residual is not None]
    return f"{max(known):.1e}" if known else _MISSING


def _times(optimizer: str, times: Mapping[str, StepTime]) -> dict[str, str]:
    if optimizer not in times:
        return {}
    time, columns = times[optimizer], {}
    columns["wall ms/step"] = f"{1e3 * time.wall:.3g}"
    columns["CPU ms/step"] = f"{1e3 * time.cpu:.3g}"
    if baseline := times.get(_BASELINE):
        columns["wall ratio"] = f"{time.wall / baseline.wall:.2f}"
        columns["CPU ratio"] = f"{time.cpu / baseline.cpu:.2f}"
    return columns
