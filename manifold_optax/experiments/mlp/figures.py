"""Figures of the perceptron."""

from collections.abc import Callable, Mapping

import numpy as np
from matplotlib.figure import Figure

from manifold_optax.experiments.harness import add_legend, Cell, panels
from manifold_optax.experiments.mlp.results import RunResult


def draw_loss(
    best: Mapping[str, Cell[RunResult]], color: Callable[[str], str]
) -> Figure:
    """Draws the training loss of each step, mean over the seeds, at the best rate."""
    figure, [axes] = panels(1)
    for cell in best.values():
        losses = np.array([result.loss for result in cell.results], float)
        axes.plot(
            losses.mean(0), color=color(cell.optimizer), label=cell.label, linewidth=1
        )
    axes.set(xlabel="step", ylabel="training loss", yscale="log")
    add_legend(figure, axes)
    return figure


def draw_singular_values(
    best: Mapping[str, Cell[RunResult]], color: Callable[[str], str]
) -> Figure:
    """Draws the singular values of each layer of the first seed, at the best rate."""
    layers = len(next(iter(best.values())).results[0].singular_values)
    figure, all_axes = panels(layers)
    for layer, axes in enumerate(all_axes):
        for number, cell in enumerate(best.values()):
            values = np.array(cell.results[0].singular_values[layer], float)
            axes.plot(
                np.arange(1, len(values) + 1),
                values,
                # Every second one is dashed, so that two that coincide are both seen.
                linestyle="--" if number % 2 else "-",
                linewidth=1.5,
                color=color(cell.optimizer),
                label=cell.label,
            )
        axes.set(title=f"layer {layer + 1}", xlabel="index", yscale="log")
    all_axes[0].set_ylabel("singular value")
    add_legend(figure, all_axes[0])
    return figure
