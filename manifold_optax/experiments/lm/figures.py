"""Figures of the language model, drawn without a display."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from manifold_optax.experiments.lm.config import OPTIMIZER_NAMES, OptimizerName
from manifold_optax.experiments.lm.results import best_cells, Cell

_DOTS_PER_INCH = 150


def write_figures(
    cells: Sequence[Cell], best: Mapping[OptimizerName, Cell], output: pathlib.Path
) -> None:
    """Writes the PNG figures of the experiment.

    Args:
        cells: Results by optimizer and learning rate.
        best: The best of them per optimizer.
        output: Directory to write to.
    """
    figures = {
        "curves": _draw_curves(best),
        "learning_rates": _draw_learning_rates(cells),
    }
    for name, figure in figures.items():
        figure.savefig(output / f"{name}.png", dpi=_DOTS_PER_INCH)


def _draw_curves(best: Mapping[OptimizerName, Cell]) -> Figure:
    """Losses and largest logits over the steps, first seed, at the best rate."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    losses, logits = figure.subplots(1, 2)
    for optimizer, cell in best.items():
        label = f"{optimizer}, {cell.learning_rate:g}"
        _plot_losses(losses, cell, label)
        _plot_logits(logits, cell, label)
    threshold = next(iter(best.values())).results[0].settings.training.threshold
    logits.axhline(
        threshold,
        color="black",
        linestyle="--",
        linewidth=1,
        label=f"threshold {threshold:g}",
    )
    losses.set(xlabel="step", ylabel="loss (thin: training, dots: validation)")
    logits.set(xlabel="step", ylabel="largest logit of each head", yscale="log")
    losses.legend()
    logits.legend()
    return figure


def _plot_losses(axes: Axes, cell: Cell, label: str) -> None:
    result = cell.results[0]
    color = _color(cell.optimizer)
    axes.plot(np.array(result.loss, float), color=color, linewidth=0.5, alpha=0.5)
    every = result.settings.training.evaluate_every
    steps = every * np.arange(1, len(result.validation_loss) + 1)
    validation = np.array(result.validation_loss, float)
    axes.plot(steps, validation, "o-", color=color, label=label, markersize=3)


def _plot_logits(axes: Axes, cell: Cell, label: str) -> None:
    """One thin line per head of any layer, a thick one for the largest."""
    result = cell.results[0]
    color = _color(cell.optimizer)
    heads = np.array(result.max_logits, float).reshape(len(result.loss), -1)
    # The axis is logarithmic: a head whose largest logit is negative has no line.
    heads = np.where(heads > 0, heads, np.nan)
    axes.plot(heads, color=color, linewidth=0.4, alpha=0.4)
    axes.plot(np.array(result.largest_logits), color=color, linewidth=1.2, label=label)


def _draw_learning_rates(cells: Sequence[Cell]) -> Figure:
    """Final losses against the learning rate, mean ± deviation over the seeds."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for optimizer in best_cells(cells):
        own = sorted(
            (cell for cell in cells if cell.optimizer == optimizer),
            key=lambda cell: cell.learning_rate,
        )
        losses = np.array(
            [[r.final_validation_loss for r in cell.results] for cell in own]
        )
        # A diverged run has no point.
        losses = np.where(np.isfinite(losses), losses, np.nan)
        several = losses.shape[1] > 1
        axes.errorbar(
            [cell.learning_rate for cell in own],
            losses.mean(1),
            losses.std(1, ddof=1) if several else None,
            marker="o",
            capsize=3,
            color=_color(optimizer),
            label=optimizer,
        )
    axes.set(xscale="log", xlabel="peak learning rate", ylabel="validation loss")
    axes.legend()
    return figure


def _color(optimizer: OptimizerName) -> str:
    """One and the same color in every figure."""
    return f"C{OPTIMIZER_NAMES.index(optimizer)}"
