"""The report of an experiment: its tables and its figures, as files and as a page."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from manifold_optax.experiments.harness.cells import (
    best_cells,
    Cell,
    group_by_cell,
    group_by_condition,
)
from manifold_optax.experiments.harness.experiment import GridExperiment
from manifold_optax.experiments.harness.figures import (
    draw_metrics,
    draw_step_time,
    save_figure,
)
from manifold_optax.experiments.harness.output import PAGE, replace_file, REPORT
from manifold_optax.experiments.harness.page import format_page, Origin
from manifold_optax.experiments.harness.protocol_report import (
    describe_budgets,
    describe_comparisons,
    describe_edges,
)
from manifold_optax.experiments.harness.records import file_name, RunResult
from manifold_optax.experiments.harness.table import format_rows, format_spread
from manifold_optax.experiments.harness.timing import StepTime

_SPREADS = "Numbers with ± are means and sample standard deviations over the seeds."
_RATIOS = "Ratios are times per step over those of {baseline}."
_ODD = "backslashreplace"
"""Paths may hold bytes that are not UTF-8; hours of work do not end over one."""


def write_report(
    experiment: GridExperiment[Any, Any, Any],
    tuning: Sequence[RunResult],
    final: Sequence[RunResult],
    times: Mapping[str, StepTime],
    output: pathlib.Path,
    origin: Origin | None = None,
) -> str:
    """Writes `report.md`, the figures, and `report.html`, which holds both.

    Args:
        experiment: The experiment.
        tuning: The finished runs of its grid, in the order of the table.
        final: Those of the best rates with the final seeds; or empty.
        times: Time per step, by optimizer; or empty.
        output: Directory to write to.
        origin: The command that started the experiment, if one did.

    Returns:
        The report, as Markdown.

    Raises:
        OSError: if a file cannot be written.
    """
    cells = group_by_cell(tuning)
    selecting = experiment.metrics()[0]
    best = best_cells(cells, selecting)
    if final:
        tables = _protocol(experiment, cells, group_by_cell(final), times)
        best = best_cells(group_by_cell(final), selecting)
    else:
        tables = [format_table(experiment, cells, times)]
    further = [*experiment.grid_appendix(cells), *experiment.appendix(best)]
    report = "\n".join([*tables, *further, ""])
    replace_file(output / REPORT, report.encode(errors=_ODD))
    figures: dict[str, Figure] = {}
    for condition, own in group_by_condition(cells).items():
        name = "-".join(filter(None, ("learning_rates", file_name(condition))))
        figures[name] = draw_metrics(experiment, own)
    figures |= {**experiment.grid_figures(cells), **experiment.figures(best)}
    if times:
        figures["step_time"] = draw_step_time(times)
    pictures = [save_figure(output, name, each) for name, each in figures.items()]
    page = format_page(experiment, report, pictures, origin)
    replace_file(output / PAGE, page.encode(errors=_ODD))
    return report


def _protocol(
    experiment: GridExperiment[Any, Any, Any],
    cells: Sequence[Cell[Any]],
    final: Sequence[Cell[Any]],
    times: Mapping[str, StepTime],
) -> list[str]:
    """Returns the lines of the report of an experiment with final seeds."""
    selecting = experiment.metrics()[0]
    return [
        "## Choice of the learning rates",
        "",
        _format_cells(experiment, cells, {}),
        "",
        *describe_budgets(cells, selecting),
        *describe_edges(cells, selecting),
        "",
        "## Best rates with fresh seeds",
        "",
        format_table(experiment, final, times),
        "",
        "## Differences",
        "",
        *describe_comparisons(final, selecting),
    ]


def format_table(
    experiment: GridExperiment[Any, Any, Any],
    cells: Sequence[Cell[Any]],
    times: Mapping[str, StepTime],
) -> str:
    """Formats the table: one row per condition, optimizer and learning rate.

    Args:
        experiment: Decides the columns and whether the best rows come first.
        cells: Results by condition, optimizer and learning rate, at least one.
        times: Time per step, by optimizer; or empty.

    Returns:
        A Markdown table and how to read it.
    """
    legend = [experiment.legend] if experiment.legend else []
    if any(len(cell.results) > 1 for cell in cells):
        legend.append(_SPREADS)
    if times:
        legend.append(_RATIOS.format(baseline=experiment.config.optimizers[0]))
    below = ["", " ".join(legend)] if legend else []
    return "\n".join([_format_cells(experiment, cells, times), *below])


def _format_cells(
    experiment: GridExperiment[Any, Any, Any],
    cells: Sequence[Cell[Any]],
    times: Mapping[str, StepTime],
) -> str:
    """Formats the table without its legend."""
    by_condition = group_by_condition(cells)
    if experiment.ranks_rows:
        selecting = experiment.metrics()[0]
        for own in by_condition.values():
            own.sort(key=lambda cell: cell.score(selecting), reverse=True)
    baseline = experiment.config.optimizers[0]
    rows = [
        {
            **({"condition": condition} if len(by_condition) > 1 else {}),
            **_measured(experiment, cell),
            **experiment.columns(cell),
            **_timed(cell, times, baseline),
        }
        for condition, own in by_condition.items()
        for cell in own
    ]
    return format_rows(rows)


def _measured(
    experiment: GridExperiment[Any, Any, Any], cell: Cell[Any]
) -> dict[str, str]:
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
