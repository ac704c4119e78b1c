"""The table of passes, and its figure."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float64
from matplotlib.figure import Figure

from manifold_optax.experiments import harness
from manifold_optax.experiments.failures.tasks import Task, TASKS
from manifold_optax.experiments.harness.table import format_rows

Cells: TypeAlias = Sequence[harness.Cell[Any]]

_LEGEND = """\
Seeds that pass, of {seeds}, at the rate that was best by the mean of the decades. \
Bold: at least as many as the task asks for. Below: the median over the seeds of what \
is judged. "-": the optimizer does not take the task, because its matrices cannot \
reach the target, or have no heads to clip."""


def passes(cell: harness.Cell[Any]) -> int:
    """Returns how many seeds of a cell pass."""
    return sum(result.decades <= 0 for result in cell.results)


def format_passes(cells: Cells, optimizers: Sequence[str]) -> list[str]:
    """Formats the tables: seeds that pass, what is left, and what the tasks are.

    Args:
        cells: The best rate of each optimizer in each task.
        optimizers: Columns, in their order.

    Returns:
        The lines of sections of the report.
    """
    found = {(cell.condition, cell.optimizer): cell for cell in cells}
    tasks = list(dict.fromkeys(cell.condition for cell in cells))
    counts = [
        {"task": name, **{own: _count(found.get((name, own))) for own in optimizers}}
        for name in tasks
    ]
    medians = [
        {"task": name, **{own: _median(found.get((name, own))) for own in optimizers}}
        for name in tasks
    ]
    seeds = max(len(cell.results) for cell in cells)
    counts.append(_totals(found, tasks, optimizers))
    return [
        *("", "## Passes", "", format_rows(counts), ""),
        _LEGEND.format(seeds=seeds),
        *("", format_rows(medians), "", "## Tasks", ""),
        format_rows([_facts(name, TASKS[name]) for name in tasks]),
    ]


def draw_passes(cells: Cells, optimizers: Sequence[str]) -> Figure:
    """Draws the share of the seeds that pass: task by optimizer."""
    tasks = list(dict.fromkeys(cell.condition for cell in cells))
    shares: Float64[np.ndarray, "tasks optimizers"]
    shares = np.full((len(tasks), len(optimizers)), np.nan)
    for cell in cells:
        row, column = tasks.index(cell.condition), optimizers.index(cell.optimizer)
        shares[row, column] = passes(cell) / len(cell.results)
    size = (2.6 + 0.6 * len(optimizers), 1.6 + 0.28 * len(tasks))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="RdYlGn", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(optimizers)), list(optimizers), rotation=45, ha="right")
    axes.set_yticks(range(len(tasks)), tasks)
    figure.colorbar(image, label="seeds that pass")
    return figure


def _count(cell: harness.Cell[Any] | None) -> str:
    if cell is None:
        return "-"
    number = passes(cell)
    return f"**{number}**" if _is_passed(cell) else str(number)


def _median(cell: harness.Cell[Any] | None) -> str:
    if cell is None:
        return "-"
    left = [np.inf if one.left is None else one.left for one in cell.results]
    return f"{np.median(left):.2g}"


def _is_passed(cell: harness.Cell[Any]) -> bool:
    """Whether as many seeds pass, of ten, as the task asks for."""
    needed = TASKS[cell.condition].needed / 10
    return passes(cell) >= needed * len(cell.results)


def _totals(
    found: dict[tuple[str, str], harness.Cell[Any]],
    tasks: Sequence[str],
    optimizers: Sequence[str],
) -> dict[str, str]:
    row = {"task": "tasks passed"}
    for own in optimizers:
        cells = [found[name, own] for name in tasks if (name, own) in found]
        row[own] = f"{sum(map(_is_passed, cells))} of {len(cells)}"
    return row


def _facts(name: str, task: Task) -> dict[str, str]:
    return {
        "task": name,
        "what is hard": task.hard,
        "passes at": f"{task.threshold:g}",
        "because": task.reason,
        "seeds": f"{task.needed} of 10",
    }
