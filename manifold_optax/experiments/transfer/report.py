"""The table and the figure of the shifts of the best rates."""

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from matplotlib.figure import Figure

from manifold_optax.experiments import harness
from manifold_optax.experiments.harness.table import format_rows
from manifold_optax.experiments.transfer.records import Result
from manifold_optax.experiments.transfer.shifts import (
    Curve,
    Shift,
    shift_of,
    transferred_loss,
)

Cells: TypeAlias = Sequence[harness.Cell[Result]]
Curves: TypeAlias = dict[int, Curve]

_ABSOLUTE = "measured, absolute"

_LEGEND = """\
Best rates are logarithms of base 2, from the smallest {sweep} to the largest: the \
lowest point of a parabola through the three lowest losses, mean over the seeds. `*`: \
the best rate of the grid is its first or last. The span is the distance of the largest \
from the smallest; the shift is the least-squares slope per doubling of the {sweep}, ± \
its standard error over the seeds. Losses are those of the best rate of the grid. "With \
the first rate" is the loss at the largest {sweep} with the best rate of the smallest; \
"-" where that is not on the grid. "{absolute}" is the budget "measured" in other \
units: the change of the output itself, not over the size of the output at the start."""


def format_shifts(cells: Cells, sweep: str) -> list[str]:
    """Formats the table: one row per family and optimizer.

    Args:
        cells: All cells of the grid.
        sweep: What changes, "width" or "depth".

    Returns:
        The lines of a section of the report.
    """
    rows = []
    for (family, optimizer), curves in _curves(cells, sweep).items():
        shift = shift_of(curves)
        best = [curve.mean[curve.best] for curve in curves.values()]
        kept = transferred_loss(curves)
        rows.append(
            {
                "family": family,
                "optimizer": optimizer,
                **_columns(shift, curves),
                "best loss": " / ".join(f"{loss:.3f}" for loss in best),
                "with the first rate": "-" if math.isnan(kept) else f"{kept:.3f}",
            }
        )
        if optimizer == "measured":
            absolute = shift_of(curves, _output_octaves(cells, family, sweep))
            alike = {**rows[-1], "optimizer": _ABSOLUTE}
            rows.append({**alike, **_columns(absolute, curves)})
    legend = _LEGEND.format(sweep=sweep, absolute=_ABSOLUTE)
    title = f"## Shift of the best rate with the {sweep}"
    return ["", title, "", format_rows(rows), "", legend]


def draw_shifts(cells: Cells, sweep: str, color: Callable[[str], str]) -> Figure:
    """Draws the best rate over that of the smallest size, one panel per family."""
    found = _curves(cells, sweep)
    families = list(dict.fromkeys(family for family, _ in found))
    figure, all_axes = harness.panels(len(families))
    for family, axes in zip(families, all_axes, strict=True):
        for (own, optimizer), curves in found.items():
            if own == family:
                optima = np.array([curve.optima for curve in curves.values()])
                moved = optima - optima[0].mean()
                axes.errorbar(
                    list(curves),
                    moved.mean(axis=1),
                    moved.std(axis=1, ddof=1) if moved.shape[1] > 1 else None,
                    marker="o",
                    markersize=4,
                    capsize=3,
                    color=color(optimizer),
                    label=optimizer,
                )
        axes.set_xscale("log", base=2)
        axes.set(xlabel=sweep, ylabel="shift of the best rate, octaves", title=family)
    harness.add_legend(figure, all_axes[0])
    return figure


def _columns(shift: Shift, curves: Curves) -> dict[str, str]:
    marks = ["" if curve.is_interior else "*" for curve in curves.values()]
    optima = zip(shift.optima, marks, strict=True)
    error = "" if math.isnan(shift.error) else f" ± {shift.error:.2f}"
    return {
        "best rate": " / ".join(f"{octave:.1f}{mark}" for octave, mark in optima),
        "span": f"{shift.span:.1f}",
        "shift": f"{shift.slope:+.2f}{error}",
    }


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


def _output_octaves(cells: Cells, family: str, sweep: str) -> dict[int, list[float]]:
    """Size → logarithm (base 2) of the RMS of the output at the start, per seed."""
    found = {}
    for cell in cells:
        settings = cell.results[0].settings
        if settings.family == family:
            sizes = [r.output_rms for r in cell.results]
            found[getattr(settings, sweep)] = [math.log2(x or math.nan) for x in sizes]
    return found
