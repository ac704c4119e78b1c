"""Figures of the robustness experiment."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from manifold_optax.experiments.harness import add_legend, Cell, panels
from manifold_optax.experiments.robustness.report import shown_radius
from manifold_optax.experiments.robustness.results import RunResult


def draw_robustness(
    cells: Sequence[Cell[RunResult]], color: Callable[[str], str]
) -> Figure:
    """Draws certified and attacked accuracy against the radius.

    Lines are means over the seeds, bands reach from the least to the largest. The true
    accuracy lies between the two lines of a color.
    """
    figure, [axes] = panels(1)
    radii = np.array([0.0, *cells[0].results[0].settings.attack.radii])
    for cell in cells:
        for name, style in (("certified", "-"), ("attacked", "--")):
            percent = 100 * np.array([getattr(run, name) for run in cell.results])
            label = cell.label if name == "certified" else None
            shade = color(cell.optimizer)
            axes.plot(radii, percent.mean(0), style, color=shade, label=label)
            axes.fill_between(
                radii, percent.min(0), percent.max(0), color=shade, alpha=0.2, lw=0
            )
    axes.plot([], [], "-", color="0.4", label="certified")
    axes.plot([], [], "--", color="0.4", label="attacked")
    axes.set(xlabel="L2 distance in pixels from 0 to 1", ylabel="test images, %")
    # The radii are narrow near 0 and wide behind.
    axes.set_xscale("symlog", linthresh=0.1)
    axes.set_xticks(radii, [f"{radius:.2g}" for radius in radii], fontsize=7)
    axes.set_xticks([], minor=True)
    add_legend(figure, axes)
    return figure


def draw_frontier(
    cells: Sequence[Cell[RunResult]], color: Callable[[str], str]
) -> Figure:
    """Draws robustness at one radius against clean accuracy, a point for each rate."""
    figure, all_axes = panels(2)
    radius = shown_radius(cells[0].results[0].settings.attack)
    for optimizer in dict.fromkeys(cell.optimizer for cell in cells):
        own = [cell for cell in cells if cell.optimizer == optimizer]
        own.sort(key=lambda cell: cell.learning_rate)
        for axes, of in (
            (all_axes[0], lambda run: run.certified_percent(radius)),
            (all_axes[1], lambda run: run.attacked_percent(radius)),
        ):
            _draw_path(axes, own, of, color(optimizer))
    for axes, name in zip(all_axes, ("certified", "attacked"), strict=True):
        axes.set(xlabel="clean test accuracy, %", ylabel=f"{name} at {radius:.3g}, %")
    add_legend(figure, all_axes[0])
    return figure


def _draw_path(
    axes: Axes,
    cells: Sequence[Cell[RunResult]],
    number_of: Callable[[RunResult], float],
    color: str,
) -> None:
    clean = [100 * np.mean([run.test_accuracy for run in c.results]) for c in cells]
    robust = [np.mean([number_of(run) for run in c.results]) for c in cells]
    name = cells[0].optimizer
    axes.plot(clean, robust, "o-", color=color, markersize=4, linewidth=1, label=name)
