"""Figures of an experiment, drawn without a display."""

import pathlib
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from manifold_optax.experiments.config import OPTIMIZER_NAMES, OptimizerName
from manifold_optax.experiments.results import best_cells, Cell, SplitName
from manifold_optax.experiments.timing import StepTime

_DOTS_PER_INCH = 150
_LEGEND_PLACE = "outside right upper"


def write_figures(
    cells: Sequence[Cell], times: Mapping[str, StepTime], output: pathlib.Path
) -> None:
    """Writes the PNG figures of an experiment.

    Args:
        cells: Results by optimizer and learning rate.
        times: Time per step, by optimizer; without any, that figure is left out.
        output: Directory to write to.
    """
    best = best_cells(cells)
    figures = {
        "accuracy": _draw_accuracy(cells),
        "loss": _draw_loss(best),
        "singular_values": _draw_singular_values(best),
    }
    if times:
        figures["step_time"] = _draw_step_time(times)
    for name, figure in figures.items():
        figure.savefig(output / f"{name}.png", dpi=_DOTS_PER_INCH)


def _draw_accuracy(cells: Sequence[Cell]) -> Figure:
    """Final accuracy against the learning rate, mean ± deviation over the seeds."""
    held_out: SplitName = "test"
    if all(cell.accuracies("validation") for cell in cells):
        held_out = "validation"
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    splits: tuple[SplitName, SplitName] = ("train", held_out)
    for axes, split in zip(panels, splits, strict=True):
        for optimizer in best_cells(cells):
            own = sorted(
                (cell for cell in cells if cell.optimizer == optimizer),
                key=lambda cell: cell.learning_rate,
            )
            accuracies = [np.array(cell.accuracies(split)) for cell in own]
            axes.errorbar(
                [cell.learning_rate for cell in own],
                [100 * seeds.mean() for seeds in accuracies],
                [100 * _deviation(seeds) for seeds in accuracies],
                marker="o",
                capsize=3,
                color=_color(optimizer),
                label=optimizer,
            )
        axes.set(xscale="log", xlabel="peak learning rate", ylabel=f"{split} %")
    figure.legend(*panels[0].get_legend_handles_labels(), loc=_LEGEND_PLACE)
    return figure


def _deviation(seeds: np.ndarray) -> float:
    return statistics.stdev(seeds.tolist()) if len(seeds) > 1 else 0.0


def _draw_loss(best: Mapping[OptimizerName, Cell]) -> Figure:
    """Training loss of each step, mean over the seeds, at the best rate."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for optimizer, cell in best.items():
        losses = np.array([result.loss for result in cell.results], float)
        axes.plot(
            losses.mean(0),
            color=_color(optimizer),
            label=f"{optimizer}, {cell.learning_rate:g}",
            linewidth=1,
        )
    axes.set(xlabel="step", ylabel="training loss", yscale="log")
    axes.legend()
    return figure


def _draw_singular_values(best: Mapping[OptimizerName, Cell]) -> Figure:
    """Singular values of each layer after training, first seed, at the best rate."""
    layers = len(next(iter(best.values())).results[0].singular_values)
    figure = Figure(figsize=(3.6 * layers + 1.5, 3.6), layout="constrained")
    panels: list[Axes] = list(figure.subplots(1, layers, squeeze=False)[0])
    for layer, axes in enumerate(panels):
        for optimizer, cell in best.items():
            values = np.array(cell.results[0].singular_values[layer], float)
            axes.plot(
                np.arange(1, len(values) + 1),
                values,
                ".-",
                color=_color(optimizer),
                label=optimizer,
            )
        axes.set(title=f"layer {layer + 1}", xlabel="index", yscale="log")
    panels[0].set_ylabel("singular value")
    figure.legend(*panels[0].get_legend_handles_labels(), loc=_LEGEND_PLACE)
    return figure


def _draw_step_time(times: Mapping[str, StepTime]) -> Figure:
    """Wall time per training step."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(list(times), [1e3 * time.wall for time in times.values()])
    axes.bar_label(bars, fmt="%.3g", padding=3)
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.set(xlabel="milliseconds per step (wall time)")
    return figure


def _color(optimizer: OptimizerName) -> str:
    """One and the same color in every figure."""
    return f"C{OPTIMIZER_NAMES.index(optimizer)}"
