"""Figure of the Stiefel x spectral solvers: gap against cost, gap against scale."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import stiefel_gaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

_DOTS_PER_INCH = 150
_MARKERS = {
    "gaussian": "o",
    "power": "s",
    "low_rank_noise": "^",
    "rank_deficient": "v",
    "skew_dominant": "D",
    "momentum": "*",
}
# Gaps below it are rounding of float32 and of the bracket; a logarithm needs a floor.
_FLOOR = 1e-7
# Below the panel: inside, it would hide points of every solver.
_LEGEND: dict[str, Any] = {
    "loc": "upper center",
    "bbox_to_anchor": (0.5, -0.15),
    "fontsize": 8,
    "ncols": 2,
    "frameon": False,
}


def write_figure(
    path: pathlib.Path,
    gaps: Sequence[stiefel_gaps.Gap],
    flops: Mapping[tuple[str, tuple[int, int]], int],
    sweep: Sequence[tuple[float, stiefel_gaps.Gap]],
) -> None:
    """Writes the PNG; methods without an entry in `flops` are not drawn."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _draw_costs(left, gaps, flops)
    _draw_scales(right, sweep)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=_DOTS_PER_INCH)


def _draw_costs(
    axes: Axes,
    gaps: Sequence[stiefel_gaps.Gap],
    flops: Mapping[tuple[str, tuple[int, int]], int],
) -> None:
    names = list(dict.fromkeys(name for name, _ in flops))
    colors = {name: f"C{i}" for i, name in enumerate(names)}
    for gap in gaps:
        if (gap.method, gap.shape) in flops:
            unit = stiefel_gaps.one_msign_flops(*gap.shape)
            cost = flops[gap.method, gap.shape]
            peers = [name for name in names if flops[name, gap.shape] == cost]
            axes.plot(
                cost / unit * _shift(gap.method, peers),
                max(gap.certified, _FLOOR),
                _MARKERS[gap.kind],
                color=colors[gap.method],
                alpha=0.6,
                markersize=5,
                linestyle="none",
            )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="FLOPs of matrix products, in matrix signs of the same size",
        ylabel="certified gap (0 is optimal)",
    )
    color_keys = [
        Line2D([], [], color=color, marker="o", linestyle="none", label=name)
        for name, color in colors.items()
    ]
    marker_keys = [
        Line2D([], [], color="gray", marker=marker, linestyle="none", label=kind)
        for kind, marker in _MARKERS.items()
    ]
    axes.legend(handles=color_keys + marker_keys, **_LEGEND)


def _shift(name: str, peers: Sequence[str]) -> float:
    """Sets methods of equal cost side by side around it, 10 % apart."""
    return math.exp(0.1 * (peers.index(name) - (len(peers) - 1) / 2))


def _draw_scales(axes: Axes, sweep: Sequence[tuple[float, stiefel_gaps.Gap]]) -> None:
    cases = list(dict.fromkeys(gap.case for _, gap in sweep))
    names = list(dict.fromkeys(gap.method for _, gap in sweep))
    styles = dict(zip(names, ("-", "--", ":"), strict=False))
    for i, case in enumerate(cases):
        for name in names:
            own = [(s, g) for s, g in sweep if (g.case, g.method) == (case, name)]
            axes.plot(
                [scale for scale, _ in own],
                [max(gap.certified, _FLOOR) for _, gap in own],
                styles[name],
                color=f"C{i}",
                linewidth=1.5,
            )
    axes.set(xscale="log", yscale="log", xlabel="Frobenius norm of the gradient")
    case_keys = [
        Line2D([], [], color=f"C{i}", label=case) for i, case in enumerate(cases)
    ]
    style_keys = [
        Line2D([], [], color="gray", linestyle=style, label=name)
        for name, style in styles.items()
    ]
    axes.legend(handles=style_keys + case_keys, **_LEGEND)
