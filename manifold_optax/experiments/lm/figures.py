"""Figures of the language model."""

from collections.abc import Callable, Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from manifold_optax.experiments.harness import add_legend, Cell, panels
from manifold_optax.experiments.lm.results import RunResult


def draw_curves(
    best: Mapping[str, Cell[RunResult]], color: Callable[[str], str]
) -> Figure:
    """Draws losses and largest logits over the steps, first seed, at the best rate."""
    figure, [losses, logits] = panels(2)
    for cell in best.values():
        _plot_losses(losses, cell, color(cell.optimizer))
        _plot_logits(logits, cell, color(cell.optimizer))
    threshold = next(iter(best.values())).results[0].settings.training.threshold
    style = {"color": "black", "linestyle": "--", "linewidth": 1}
    logits.axhline(threshold, label=f"threshold {threshold:g}", **style)
    losses.set(xlabel="step", ylabel="loss (thin: training, dots: validation)")
    logits.set(xlabel="step", ylabel="largest logit of each head", yscale="log")
    add_legend(figure, logits)
    return figure


def _plot_losses(axes: Axes, cell: Cell[RunResult], color: str) -> None:
    result = cell.results[0]
    axes.plot(np.array(result.loss, float), color=color, linewidth=0.5, alpha=0.5)
    every = result.settings.training.evaluate_every
    steps = every * np.arange(1, len(result.validation_loss) + 1)
    validation = np.array(result.validation_loss, float)
    axes.plot(steps, validation, "o-", color=color, markersize=3)


def _plot_logits(axes: Axes, cell: Cell[RunResult], color: str) -> None:
    """One thin line per head of any layer, a thick one for the largest."""
    result = cell.results[0]
    heads = np.array(result.max_logits, float).reshape(len(result.loss), -1)
    # The axis is logarithmic: a head whose largest logit is negative has no line.
    heads = np.where(heads > 0, heads, np.nan)
    axes.plot(heads, color=color, linewidth=0.4, alpha=0.4)
    largest = np.array(result.largest_logits)
    axes.plot(largest, color=color, linewidth=1.2, label=cell.label)
