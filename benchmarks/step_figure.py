"""Figure of the optimizer steps: cost against the width of the model."""

import pathlib
from collections.abc import Mapping
from typing import Any

import peers
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter
from stepping import median_ratio, Times

_DOTS_PER_INCH = 150
# What the reader compares: ours in color, the peers in gray.
_STYLES: dict[str, dict[str, Any]] = {
    peers.OPTAX: {"color": "0.55", "linestyle": "-", "marker": "s"},
    peers.TORCH: {"color": "0.25", "linestyle": "--", "marker": "D"},
    peers.OURS: {"color": "C0", "linestyle": "-", "marker": "o"},
    peers.OURS_BF16: {"color": "C1", "linestyle": "-", "marker": "o"},
}


def write_figure(path: pathlib.Path, found: Mapping[int, Times]) -> None:
    """Writes the PNG, of the times of all optimizers at each width."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = zip(figure.subplots(1, 2), (peers.ADAMW, peers.OPTAX), strict=True)
    for axes, baseline in panels:
        for name, style in _STYLES.items():
            if name in next(iter(found.values())):
                ratios = [median_ratio(t, name, baseline) for t in found.values()]
                axes.plot(list(found), ratios, label=name, markersize=5, **style)
        axes.set(
            xscale="log",
            xlabel="width of the model",
            ylabel=f"CPU time of a step, {baseline} = 1",
        )
        axes.set_xticks(list(found))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, frameon=False)
    left, right = figure.axes
    left.set_yscale("log")
    right.set_ylim(bottom=0)
    figure.savefig(path, dpi=_DOTS_PER_INCH)
