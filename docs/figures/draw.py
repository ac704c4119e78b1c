"""Draws the figures of the site: `python docs/figures/draw.py` writes SVG beside it."""

import pathlib
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

HERE = pathlib.Path(__file__).parent

# Readable on white and on black: the theme of the site has both.
INK = "#7a7f87"
BLUE, ORANGE, GREEN, RED = "#3b82c4", "#d9822b", "#3f9b6b", "#c4523b"


def step_on_sphere() -> Figure:
    """A gradient, its tangent direction, a step, the way back."""
    figure, axes = _canvas(5.6, 4.2)
    angles = np.linspace(0.15 * np.pi, 0.85 * np.pi, 200)
    axes.plot(np.cos(angles), np.sin(angles), color=INK, lw=2)
    axes.text(-0.83, 0.5, "manifold", color=INK, ha="right")
    at = np.deg2rad(112)
    point, tangent = np.array([np.cos(at), np.sin(at)]), np.array(
        [np.sin(at), -np.cos(at)]
    )
    span = np.linspace(-0.45, 0.95, 2)[:, None] * tangent + point
    axes.plot(*span.T, color=INK, lw=1, ls="--")
    axes.text(*(span[1] + [0.03, 0.02]), "tangent space", color=INK)
    step = 0.62 * tangent
    gradient = 0.8 * tangent + 0.5 * point
    landed = (point + step) / np.linalg.norm(point + step)
    _arrow(axes, point, point + gradient, RED)
    axes.text(*(point + gradient + [0.02, 0.04]), "−gradient", color=RED)
    _arrow(axes, point, point + step, BLUE, lw=2.6)
    axes.text(*(point + 0.52 * step + [-0.02, -0.115]), "η · direction", color=BLUE)
    _arrow(axes, point + step, landed, GREEN, lw=2.2)
    axes.text(*(landed + [0.05, 0.03]), "retraction", color=GREEN)
    for where, text, shift in (
        (point, "W", (-0.02, 0.06)),
        (landed, "new W", (-0.02, -0.12)),
    ):
        axes.plot(*where, "o", color=INK, ms=7)
        axes.text(*(where + shift), text, color=INK, ha="right", fontsize=13)
    axes.set_xlim(-1.15, 1.2)
    axes.set_ylim(0.35, 1.75)
    axes.set_aspect("equal")
    return figure


def chain() -> Figure:
    """The way of one gradient through a chain on a manifold."""
    figure, axes = _canvas(8.6, 2.0)
    links = (
        ("momentum", "average of\ngradients", INK),
        ("direction", "steepest unit\ntangent step", BLUE),
        ("learning rate", "× −η", ORANGE),
        ("retraction", "lands on the\nmanifold", GREEN),
    )
    _arrow(axes, (0.0, 0.5), (0.55, 0.5), INK)
    axes.text(0.0, 0.62, "gradient", color=INK, fontsize=10)
    for number, (name, what, color) in enumerate(links):
        x = 0.6 + 1.55 * number
        _box(axes, (x, 0.1), 1.2, 0.8, color)
        axes.text(x + 0.6, 0.68, name, color=color, ha="center", weight="bold")
        axes.text(
            x + 0.6, 0.36, what, color=INK, ha="center", va="center", fontsize=9
        )
        _arrow(axes, (x + 1.22, 0.5), (x + 1.53, 0.5), INK)
    axes.text(6.8, 0.47, "update", color=INK, va="center", fontsize=10)
    axes.set_xlim(-0.05, 7.5)
    axes.set_ylim(0, 1)
    return figure


def matrix_axes() -> Figure:
    """Arrays of five layouts, and the matrices that they hold."""
    figure, axes = _canvas(8.6, 3.0)
    layouts = (
        ("kernel of Flax\n(in, out)", "the default", [(1.0, 1.3, "in", "out")]),
        ("weight of PyTorch\n(out, in)", "OUT_IN", [(1.3, 1.0, "out", "in")]),
        (
            "convolution\n(h, w, in, out)",
            "CONV",
            [(1.6, 0.7, "h · w · in", "out")],
        ),
        (
            "fused\n(in, q + k + v)",
            "Split((q, k, v))",
            [(1.0, 0.5, "in", "q"), (1.0, 0.4, "", "k"), (1.0, 0.4, "", "v")],
        ),
        (
            "scanned layers, experts\n(layers, in, out)",
            "STACKED",
            [(1.0, 1.2, "in", "out")],
        ),
    )
    colors = (BLUE, ORANGE, GREEN)
    for number, (name, role, blocks) in enumerate(layouts):
        x, y = 2.3 * number, 0.9
        axes.text(x + 0.65, 2.95, name, color=INK, ha="center", va="center", fontsize=9)
        axes.text(
            x + 0.65, 0.45, role, color=INK, ha="center", family="monospace", fontsize=9
        )
        if role == "STACKED":
            for back in (0.24, 0.12):
                axes.add_patch(
                    Rectangle(
                        (x + back, y + back), 1.2, 1.0, fill=False, ec=INK, lw=1.0
                    )
                )
        left = x
        for index, (height, width, rows, columns) in enumerate(blocks):
            axes.add_patch(
                Rectangle(
                    (left, y), width, height, fc=colors[index], ec=INK, alpha=0.55
                )
            )
            axes.text(left - 0.08, y + height / 2, rows, color=INK, ha="right",
                      va="center", rotation=90, fontsize=9)  # fmt: skip
            axes.text(left + width / 2, y - 0.17, columns, color=INK, ha="center",
                      fontsize=9)  # fmt: skip
            left += width + 0.03
    axes.set_xlim(-0.4, 11.0)
    axes.set_ylim(0.3, 3.25)
    return figure


def exchange() -> Figure:
    """Sharded matrices travel to owners, and back."""
    figure, axes = _canvas(8.6, 2.9)
    colors = (BLUE, ORANGE, GREEN, RED)
    titles = ("sharded by rows", "one owner each", "sharded by rows")
    for column, title in enumerate(titles):
        x = 3.2 * column
        axes.text(x + 0.8, 2.75, title, color=INK, ha="center")
        for device in range(4):
            y = 1.95 - 0.62 * device
            _box(axes, (x, y), 1.6, 0.5, INK, lw=0.9)
            if column == 0:
                axes.text(x - 0.1, y + 0.25, f"device {device}", color=INK, ha="right",
                          va="center", fontsize=9)  # fmt: skip
            if column == 1:
                axes.add_patch(
                    Rectangle((x + 0.5, y + 0.05), 0.6, 0.4, fc=colors[device], ec="none")
                )
                continue
            for matrix in range(4):
                axes.add_patch(
                    Rectangle((x + 0.1 + 0.37 * matrix, y + 0.2), 0.3, 0.1,
                              fc=colors[matrix], ec="none")  # fmt: skip
                )
    for x in (1.75, 4.95):
        _arrow(axes, (x, 1.25), (x + 1.3, 1.25), INK)
        axes.text(x + 0.65, 1.35, "all-to-all", color=INK, ha="center", fontsize=10)
    axes.text(4.0, -0.18, "polar factor, solver: no communication", color=INK,
              ha="center", fontsize=9)  # fmt: skip
    axes.set_xlim(-0.95, 8.2)
    axes.set_ylim(-0.3, 3.0)
    return figure


FIGURES: tuple[Callable[[], Figure], ...] = (
    step_on_sphere,
    chain,
    matrix_axes,
    exchange,
)


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    axes.set_axis_off()
    return figure, axes


def _arrow(axes: Axes, start, end, color: str, lw: float = 1.6) -> None:
    axes.add_patch(
        FancyArrowPatch(
            tuple(start), tuple(end), arrowstyle="-|>", mutation_scale=14,
            shrinkA=2, shrinkB=2, color=color, lw=lw,
        )  # fmt: skip
    )


def _box(axes: Axes, at, width: float, height: float, color: str, lw=1.6) -> None:
    style = "round,pad=0,rounding_size=0.08"
    axes.add_patch(
        FancyBboxPatch(at, width, height, boxstyle=style, fill=False, ec=color, lw=lw)
    )


def main() -> None:
    """Writes every figure."""
    plt.rcParams |= {"svg.hashsalt": "figures", "font.size": 11}
    for draw in FIGURES:
        figure = draw()
        target = HERE / f"{draw.__name__}.svg"
        figure.savefig(target, transparent=True, metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    main()
