"""The table and the figure of the shifts of the best rates."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from matplotlib.figure import Figure

from manifold_optax.experiments import harness
from manifold_optax.experiments.harness.table import format_rows
from manifold_optax.experiments.transfer.networks import Network
from manifold_optax.experiments.transfer.records import Result
from manifold_optax.experiments.transfer.shifts import (
    Curve,
    Shift,
    shift_of,
    transferred_loss,
)

Cells: TypeAlias = Sequence[harness.Cell[Result]]
Curves: TypeAlias = dict[int, Curve]
Added: TypeAlias = dict[int, list[float]]
"""Size → octaves to add to the best rate, per seed."""

_LARGE_LOSS = 10
"""Above it a run is as good as diverged: guessing among 65 characters has 4.2."""

_SHOWN_OCTAVES = 3
_STYLES = {"": "-", "absolute": ":", "root": "--"}

_LEGEND = """\
Best rates are logarithms of base 2, from the smallest {sweep} to the largest: the \
lowest point of a parabola through the three lowest losses, mean over the seeds. A `*` \
stands where the best rate of the grid is its first or last. The span is the distance \
of the largest from the smallest; the shift is the least-squares slope per doubling of \
the {sweep}, ± its standard error over the seeds. Losses are those of the best rate of \
the grid. "With the first rate" is the loss at the largest {sweep} with the best rate \
of the smallest, "-" where that is outside the grid. Rows named with a comma restate \
the same runs in another unit of the learning rate, and interpolate that loss: \
"absolute" takes the change of the output itself, not over the size of the output at \
the start; "root" adds up the squares of the changes of the M matrices, so that the \
steps of a budget, which adds up the changes, are √M times as long, and those of Muon, \
which adds up nothing, are divided by √M."""


_WORST = """\
Over the families: the largest span, the largest shift, and the largest loss that the \
best rate of the smallest size adds to the best loss at the largest, "-" where it is \
outside the grid."""

_GRID_LEGEND = """\
The same losses, means over the seeds, at the rates of each grid from the smallest to \
the largest, which are given by their logarithms of base 2; the best is bold."""


def format_shifts(cells: Cells, sweep: str) -> list[str]:
    """Formats the tables of shifts: one row per family and unit; the worst family.

    Args:
        cells: All cells of the grid.
        sweep: What changes, "width" or "depth".

    Returns:
        The lines of a section of the report.
    """
    lines = _lines(cells, sweep)
    legend = _LEGEND.format(sweep=sweep)
    title = f"## Shift of the best rate with the {sweep}"
    table = ["", title, "", format_rows([_row(line) for line in lines]), "", legend]
    families = dict.fromkeys(line.family for line in lines)
    if len(families) < 2:
        return table
    worst = []
    for name in dict.fromkeys(line.name for line in lines):
        own = [line for line in lines if line.name == name]
        extra = max(line.extra_loss for line in own)
        worst.append(
            {
                "optimizer": name,
                "largest span": f"{max(line.shift.span for line in own):.1f}",
                "largest shift": f"{max((a.shift.slope for a in own), key=abs):+.2f}",
                "largest extra loss": "-" if math.isinf(extra) else _loss(extra),
            }
        )
    return [*table, "", _WORST, "", format_rows(worst)]


def format_grid(cells: Cells) -> list[str]:
    """Formats all losses in one row per condition and optimizer.

    Args:
        cells: All cells of the grid.

    Returns:
        The lines of a section of the report.
    """
    rows = []
    for condition, own in harness.group_by_condition(cells).items():
        for optimizer in dict.fromkeys(cell.optimizer for cell in own):
            curve = _curve([cell for cell in own if cell.optimizer == optimizer])
            losses = [_loss(loss) for loss in curve.mean]
            losses[curve.best] = f"**{losses[curve.best]}**"
            ends = [f"{math.log2(curve.rates[k]):.0f}" for k in (0, -1)]
            rows.append(
                {
                    "condition": condition,
                    "optimizer": optimizer,
                    "rates": " … ".join(ends),
                    "validation losses": " / ".join(losses),
                }
            )
    return ["", "## Losses", "", format_rows(rows), "", _GRID_LEGEND]


def draw_shifts(cells: Cells, sweep: str, color: Callable[[str], str]) -> Figure:
    """Draws the best rate over that of the smallest size, one panel per family.

    Other units of the rate are dashed or dotted. The axis ends at a shift of 3 octaves.
    """
    lines = _lines(cells, sweep)
    families = list(dict.fromkeys(line.family for line in lines))
    figure, all_axes = harness.panels(len(families))
    for family, axes in zip(families, all_axes, strict=True):
        for line in (line for line in lines if line.family == family):
            moved = np.array(line.shift.optima) - line.shift.optima[0]
            axes.plot(
                np.log2(list(line.curves)),
                moved,
                marker="o",
                markersize=4,
                linestyle=_STYLES[line.name.partition(", ")[2]],
                color=color(line.optimizer),
                label=line.name,
            )
        sizes = list(lines[0].curves)
        axes.set_xticks(np.log2(sizes), [str(size) for size in sizes])
        axes.set(xlabel=sweep, ylabel="shift of the best rate, octaves", title=family)
        axes.set_ylim(-_SHOWN_OCTAVES, _SHOWN_OCTAVES)
    harness.add_legend(figure, all_axes[0])
    return figure


@dataclasses.dataclass(frozen=True)
class _Line:
    """The best rates of one optimizer in one family, in one unit of the rate."""

    family: str
    optimizer: str
    name: str
    curves: Curves
    shift: Shift
    transferred_loss: float

    @property
    def extra_loss(self) -> float:
        """What the rate of the smallest size costs at the largest; inf if unknown."""
        last = self.curves[max(self.curves)]
        extra = self.transferred_loss - float(last.mean.min())
        return math.inf if math.isnan(extra) else extra


def _lines(cells: Cells, sweep: str) -> list[_Line]:
    lines = []
    for (family, optimizer), curves in _curves(cells, sweep).items():
        units = {optimizer: None, **_restated(cells, family, optimizer, sweep)}
        for name, added in units.items():
            shift, loss = shift_of(curves, added), transferred_loss(curves, added)
            lines.append(_Line(family, optimizer, name, curves, shift, loss))
    return lines


def _row(line: _Line) -> dict[str, str]:
    curves, shift, kept = line.curves.values(), line.shift, line.transferred_loss
    marks = ["" if curve.is_interior else "*" for curve in curves]
    optima = zip(shift.optima, marks, strict=True)
    error = "" if math.isnan(shift.error) else f" ± {shift.error:.2f}"
    return {
        "family": line.family,
        "optimizer": line.name,
        "best rate": " / ".join(f"{octave:.1f}{mark}" for octave, mark in optima),
        "span": f"{shift.span:.1f}",
        "shift": f"{shift.slope:+.2f}{error}",
        "best loss": " / ".join(_loss(curve.mean.min()) for curve in curves),
        "with the first rate": "-" if math.isnan(kept) else _loss(kept),
    }


def _loss(loss: float | np.floating) -> str:
    return f"{loss:.3f}" if loss < _LARGE_LOSS else f"> {_LARGE_LOSS}"


def _curves(cells: Cells, sweep: str) -> dict[tuple[str, str], Curves]:
    """(family, optimizer) → size → losses."""
    grouped: dict[tuple[str, str], dict[int, list[harness.Cell[Result]]]] = {}
    for cell in cells:
        settings = cell.results[0].settings
        sizes = grouped.setdefault((settings.family, cell.optimizer), {})
        sizes.setdefault(getattr(settings, sweep), []).append(cell)
    return {
        key: {size: _curve(own) for size, own in sorted(sizes.items())}
        for key, sizes in grouped.items()
    }


def _curve(cells: list[harness.Cell[Result]]) -> Curve:
    cells = sorted(cells, key=lambda cell: cell.learning_rate)
    losses = [
        [
            math.inf if r.validation_loss is None else r.validation_loss
            for r in c.results
        ]
        for c in cells
    ]
    return Curve(tuple(c.learning_rate for c in cells), np.array(losses).T)


def _restated(
    cells: Cells, family: str, optimizer: str, sweep: str
) -> dict[str, Added]:
    """Returns other units of the learning rate, by their names."""
    absolute: Added = {}
    root: Added = {}
    for cell in cells:
        own = cell.results[0].settings
        if (own.family, cell.optimizer) == (family, optimizer):
            size = getattr(own, sweep)
            outputs = [result.output_rms or math.nan for result in cell.results]
            absolute[size] = [math.log2(output) for output in outputs]
            matrices = Network(own.family, own.width, own.depth, 1, 1).matrices
            octaves = 0.5 * math.log2(matrices)
            own_root = octaves if optimizer.startswith("muon") else -octaves
            root[size] = [own_root] * len(outputs)
    # The number of matrices does not change with the width.
    rooted = {f"{optimizer}, root": root} if sweep == "depth" else {}
    match optimizer:
        case "adamw" | "derived" | "tared":
            return {}
        case "measured":
            return {"measured, absolute": absolute, **rooted}
        case _:
            return rooted
