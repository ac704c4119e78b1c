"""Figures of the precision experiment."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure

from manifold_optax.experiments.harness import add_legend, Cell, panels
from manifold_optax.experiments.precision.report import lost, numbers, relative
from manifold_optax.experiments.precision.results import RunResult
from manifold_optax.experiments.rounding import FORMAT_NAMES, SCOPES


def draw_loss(cells: Sequence[Cell[RunResult]], color: Callable[[str], str]) -> Figure:
    """Draws the error that each format adds, with bars over all seeds."""
    figure, all_axes = panels(len(SCOPES))
    for per, axes in zip(SCOPES, all_axes, strict=True):
        for number, cell in enumerate(cells):
            added = np.array([numbers(cell, lost, (f, per)) for f in FORMAT_NAMES])
            mean = added.mean(1)
            axes.errorbar(
                np.arange(len(FORMAT_NAMES)) + 0.12 * (number - len(cells) / 2),
                mean,
                [mean - added.min(1), added.max(1) - mean],
                fmt="o",
                markersize=4,
                capsize=2,
                color=color(cell.optimizer),
                label=cell.optimizer,
            )
        axes.axhline(0, color="0.6", linewidth=1)
        axes.set_xticks(range(len(FORMAT_NAMES)), FORMAT_NAMES)
        axes.set(title=f"per {per}")
    all_axes[0].set_ylabel("error added by rounding")
    add_legend(figure, all_axes[0])
    return figure


def draw_bounds(
    cells: Sequence[Cell[RunResult]], color: Callable[[str], str]
) -> Figure:
    """Draws the certified and the data's change against the largest that was found.

    Above the diagonal is proved, on it found; what is infinite has no point.
    """
    figure, [axes] = panels(1)
    for cell in cells:
        for name, marker in (("certified", "o"), ("on_data", "x")):
            places = list(itertools.product(FORMAT_NAMES, SCOPES))
            found = [numbers(cell, relative("found"), place) for place in places]
            other = [numbers(cell, relative(name), place) for place in places]
            axes.plot(
                np.ravel(found),
                np.ravel(other),
                marker,
                color=color(cell.optimizer),
                markersize=4,
                label=f"{cell.optimizer}, {name.replace('_', ' ')}",
            )
    axes.axline((1, 1), (2, 2), color="0.6", linewidth=1)
    axes.set(
        xlabel="largest change found / logits",
        ylabel="certified, and on data / logits",
        xscale="log",
        yscale="log",
    )
    add_legend(figure, axes)
    return figure
