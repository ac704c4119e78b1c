"""Figures, drawn without a display, and the one that every experiment has."""

import io
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from manifold_optax.experiments.harness.cells import Cell
from manifold_optax.experiments.harness.experiment import GridExperiment
from manifold_optax.experiments.harness.output import replace_file
from manifold_optax.experiments.harness.timing import StepTime

_DOTS_PER_INCH = 150
_PANEL_INCHES = (4.2, 3.4)
_LEGEND_INCHES = 1.9


class Picture(NamedTuple):
    """A figure as it was written.

    Attributes:
        name: File name without its ending.
        png: The file.
        inches: Width at which its letters have the size of text.
        says: What its axes show, for those who do not see it; or empty.
    """

    name: str
    png: bytes
    inches: float
    says: str


def panels(count: int) -> tuple[Figure, list[Axes]]:
    """Returns a figure of panels side by side, with room for a legend beside them."""
    width, height = _PANEL_INCHES
    size = (count * width + _LEGEND_INCHES, height)
    figure = Figure(figsize=size, layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def add_legend(figure: Figure, axes: Axes) -> None:
    """Puts the legend of one panel outside of all, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False)


def save_figure(output: pathlib.Path, name: str, figure: Figure) -> Picture:
    """Writes a figure as PNG: with a grid, and numbers without powers of ten.

    Args:
        output: Directory to write to.
        name: File name without its ending.
        figure: The figure.

    Returns:
        What was written.

    Raises:
        OSError: if it cannot be written.
    """
    for axes in figure.axes:
        axes.set_axisbelow(True)
        axes.grid(color="0.9")
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "log":
                _label_plainly(axis)
    # Drawn before anything is written, so that a full disk leaves no half of it.
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=_DOTS_PER_INCH)
    replace_file(output / f"{name}.png", png.getvalue())
    inches = float(figure.get_size_inches()[0])
    return Picture(name, png.getvalue(), inches, _describe(figure))


def draw_metrics(
    experiment: GridExperiment[Any, Any, Any], cells: Sequence[Cell[Any]]
) -> Figure:
    """Draws each metric against the learning rate, one line per optimizer.

    Several seeds have error bars, their sample standard deviation. A diverged run has
    no point.

    Args:
        experiment: The experiment.
        cells: Its results by optimizer and learning rate.

    Returns:
        The figure.
    """
    metrics = experiment.metrics()
    figure, all_axes = panels(len(metrics))
    for metric, axes in zip(metrics, all_axes, strict=True):
        for optimizer in dict.fromkeys(cell.optimizer for cell in cells):
            own = [cell for cell in cells if cell.optimizer == optimizer]
            own.sort(key=lambda cell: cell.learning_rate)
            numbers = [cell.numbers(metric) for cell in own]
            several = len(numbers[0]) > 1
            axes.errorbar(
                [cell.learning_rate for cell in own],
                [statistics.fmean(seeds) for seeds in numbers],
                [np.std(seeds, ddof=1) for seeds in numbers] if several else None,
                marker="o",
                markersize=4,
                capsize=3,
                color=experiment.color(optimizer),
                label=optimizer,
            )
        axes.set(xscale="log", xlabel="learning rate", ylabel=metric.name)
    add_legend(figure, all_axes[0])
    return figure


def draw_step_time(times: Mapping[str, StepTime]) -> Figure:
    """Draws the wall time per training step."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(list(times), [1e3 * time.wall for time in times.values()])
    axes.bar_label(bars, fmt="%.3g", padding=3)
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.set(xlabel="wall ms/step")
    return figure


def _describe(figure: Figure) -> str:
    """Says of each panel what is drawn against what."""
    panels_say = (
        " against ".join(filter(None, (axes.get_ylabel(), axes.get_xlabel())))
        for axes in figure.axes
    )
    return "; ".join(dict.fromkeys(filter(None, panels_say)))


def _label_plainly(axis: Axis) -> None:
    """0.001 rather than a power of ten, at 1, 2 and 5 where there is room."""
    low, high = axis.get_view_interval()
    subs = (1.0, 2.0, 5.0) if high < 300 * low else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
