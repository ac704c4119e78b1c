"""The report of an experiment: its table and its figures."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from manifold_optax.experiments.harness.cells import best_cells, Cell, group_by_cell
from manifold_optax.experiments.harness.experiment import Experiment
from manifold_optax.experiments.harness.figures import (
    draw_metrics,
    draw_step_time,
    save_figure,
)
from manifold_optax.experiments.harness.output import REPORT
from manifold_optax.experiments.harness.records import RunResult
from manifold_optax.experiments.harness.table import format_rows, format_spread
from manifold_optax.experiments.harness.timing import StepTime

_SPREADS = "Numbers with ± are means and sample standard deviations over the seeds."
_RATIOS = "Ratios are times per step over those of {baseline}."


def write_report(
    experiment: Experiment[Any, Any, Any],
    results: Sequence[RunResult],
    times: Mapping[str, StepTime],
    output: pathlib.Path,
) -> str:
    """Writes `report.md` and the figures.

    Args:
        experiment: The experiment.
        results: Its finished runs, in the order of the table.
        times: Time per step, by optimizer; or empty.
        output: Directory to write to.

    Returns:
        The report.

    Raises:
        OSError: if a file cannot be written.
    """
    cells = group_by_cell(results)
    best = best_cells(cells, experiment.metrics()[0])
    table = format_table(experiment, cells, times)
    report = "\n".join([table, *experiment.appendix(best), ""])
    (output / REPORT).write_text(report, encoding="utf-8")
    save_figure(output, "learning_rates", draw_metrics(experiment, cells))
    for name, figure in experiment.figures(best).items():
        save_figure(output, name, figure)
    if times:
        save_figure(output, "step_time", draw_step_time(times))
    return report


def format_table(
    experiment: Experiment[Any, Any, Any],
    cells: Sequence[Cell[Any]],
    times: Mapping[str, StepTime],
) -> str:
    """Formats the table: one row per optimizer and learning rate.

    Args:
        experiment: Decides the columns and whether the best rows come first.
        cells: Results by optimizer and learning rate, at least one.
        times: Time per step, by optimizer; or empty.

    Returns:
        A Markdown table and how to read it.
    """
    if experiment.ranks_rows:
        selecting = experiment.metrics()[0]
        cells = sorted(cells, key=lambda cell: cell.score(selecting), reverse=True)
    baseline = experiment.config.optimizers[0]
    rows = [
        {
            **_measured(experiment, cell),
            **experiment.columns(cell),
            **_timed(cell, times, baseline),
        }
        for cell in cells
    ]
    legend = [experiment.legend] if experiment.legend else []
    if any(len(cell.results) > 1 for cell in cells):
        legend.append(_SPREADS)
    if times:
        legend.append(_RATIOS.format(baseline=baseline))
    below = ["", " ".join(legend)] if legend else []
    return "\n".join([format_rows(rows), *below])


def _measured(experiment: Experiment[Any, Any, Any], cell: Cell[Any]) -> dict[str, str]:
    row = {
        "optimizer": cell.optimizer,
        "learning rate": f"{cell.learning_rate:g}",
        "seeds": str(len(cell.results)),
    }
    for metric in experiment.metrics():
        numbers = cell.numbers(metric)
        known = not any(map(math.isnan, numbers))
        spread = format_spread(numbers, digits=metric.digits) if known else "not finite"
        row[metric.name] = spread
    return row


def _timed(
    cell: Cell[Any], times: Mapping[str, StepTime], baseline: str
) -> dict[str, str]:
    if not times:
        return {}
    time, unit = times[cell.optimizer], times[baseline]
    return {
        "wall ms/step": f"{1e3 * time.wall:.3g}",
        "CPU ms/step": f"{1e3 * time.cpu:.3g}",
        "wall ratio": f"{time.wall / unit.wall:.2f}",
        "CPU ratio": f"{time.cpu / unit.cpu:.2f}",
    }
