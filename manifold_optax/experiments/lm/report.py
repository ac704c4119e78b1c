"""The table and the samples of the language model, as Markdown."""

import math
import pathlib
from collections.abc import Mapping, Sequence

from manifold_optax.experiments.lm.config import OptimizerName
from manifold_optax.experiments.lm.figures import write_figures
from manifold_optax.experiments.lm.results import (
    best_cells,
    Cell,
    group_by_cell,
    RunResult,
)
from manifold_optax.experiments.markdown import format_rows, format_spread

_LEGEND = (
    "Losses are in nats per character at the end of training: means ± sample standard "
    "deviations over the seeds. Rows are ranked by that on the validation part; the "
    "test part selects nothing. The largest logit is that of any head in any step of "
    "any seed, before a clip; in the steps above it exceeded the threshold, "
    "{threshold:g}: with MuonClip, a clip fired."
)


def write_report(results: Sequence[RunResult], output: pathlib.Path) -> str:
    """Writes `report.md` and the figures.

    Args:
        results: Finished runs of one problem, at least one.
        output: Directory to write to.

    Returns:
        The report.
    """
    cells = group_by_cell(results)
    best = best_cells(cells)
    report = "\n".join([format_table(cells), *_samples(best), ""])
    (output / "report.md").write_text(report, encoding="utf-8")
    write_figures(cells, best, output)
    return report


def format_table(cells: Sequence[Cell]) -> str:
    """Formats the table: one row per optimizer and learning rate, the best first.

    Args:
        cells: Results by optimizer and learning rate, at least one.

    Returns:
        A Markdown table and how to read it.
    """
    ranked = sorted(cells, key=lambda cell: cell.validation_loss)
    threshold = cells[0].results[0].settings.training.threshold
    table = format_rows([_row(cell) for cell in ranked])
    return "\n".join([table, "", _LEGEND.format(threshold=threshold)])


def _row(cell: Cell) -> dict[str, str]:
    results = cell.results
    steps = sum(len(result.loss) for result in results)
    row = {
        "optimizer": cell.optimizer,
        "learning rate": f"{cell.learning_rate:g}",
        "validation loss": _spread([r.final_validation_loss for r in results]),
        "test loss": _spread([r.final_test_loss for r in results]),
        "largest logit": _largest_logit(cell),
        "steps above": f"{sum(r.steps_above_threshold for r in results)} of {steps}",
        "seeds": str(len(results)),
    }
    if any(result.imbalance for result in results):
        row["imbalance"] = _spread([_late_imbalance(result) for result in results])
    return row


def _spread(values: Sequence[float]) -> str:
    if not all(map(math.isfinite, values)):
        return "not finite"
    return format_spread(values, digits=4)


def _largest_logit(cell: Cell) -> str:
    largest = [x for result in cell.results for x in result.largest_logits]
    if any(map(math.isnan, largest)):
        return "not finite"
    return f"{max(largest):.4g}"


def _late_imbalance(result: RunResult) -> float:
    """Mean over the last tenth of the steps: the bias has had time to settle."""
    late = result.imbalance[-max(1, len(result.imbalance) // 10) :]
    known = [value for value in late if value is not None]
    return sum(known) / len(known) if len(known) == len(late) else math.nan


def _samples(best: Mapping[OptimizerName, Cell]) -> list[str]:
    """One sample per optimizer: at its best rate, with the first seed."""
    lines: list[str] = []
    for optimizer, cell in best.items():
        sample = cell.results[0].sample
        if sample:
            # Four spaces make Markdown show the characters as they are.
            quoted = ["    " + line for line in sample.split("\n")]
            rate = f"{cell.learning_rate:g}"
            lines += ["", f"Sampled after {optimizer}, learning rate {rate}:", ""]
            lines += quoted
    return lines
