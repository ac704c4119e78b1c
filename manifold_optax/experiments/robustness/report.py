"""What the report of the robustness experiment says beside its tables of runs."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from manifold_optax.experiments.harness import Cell, compare, format_spread, Metric
from manifold_optax.experiments.harness.table import format_rows
from manifold_optax.experiments.robustness.config import AttackConfig
from manifold_optax.experiments.robustness.results import RunResult

Cells: TypeAlias = Sequence[Cell[RunResult]]

# The table of runs has room for one radius: the one nearest to this.
_SHOWN_RADIUS = 0.1


def shown_radius(attack: AttackConfig) -> float:
    """Returns the radius that tables and figures of all runs show."""
    return min(attack.radii, key=lambda radius: abs(radius - _SHOWN_RADIUS))


def legend(attack: AttackConfig) -> str:
    """Returns how to read the table of runs."""
    error = 100 * math.sqrt(0.25 / attack.examples)
    return (
        f"Certified: decisions that are right and proved to be constant within the "
        f"L2 distance, in pixels from 0 to 1. Attacked: decisions that are right and "
        f"withstood {attack.restarts} restarts of {attack.steps} steps. Both are "
        f"shares of the first {attack.examples} test images. The binomial standard "
        f"error of a share is at most {error:.1f} points; it comes from the choice of "
        f"images, which all runs share. The Lipschitz constant of the logits in the "
        f"pixels lies between the steepest ratio that was found and the bound."
    )


def columns(cell: Cell[RunResult]) -> Mapping[str, str]:
    """Returns certified and attacked accuracy at one radius."""
    radius = shown_radius(cell.results[0].settings.attack)
    return {
        f"certified % at {radius:.3g}": _spread(cell, _certified(radius)),
        f"attacked % at {radius:.3g}": _spread(cell, _attacked(radius)),
    }


def matched_cells(cells: Cells, clean: Metric[RunResult]) -> list[Cell[RunResult]]:
    """Returns one rate of each optimizer, such that all are equally accurate.

    The target is the best accuracy of the optimizer whose best is lowest. Each
    optimizer gives the rate whose accuracy is nearest to it.

    Args:
        cells: The grid.
        clean: The accuracy without an attack.

    Returns:
        One cell per optimizer, in the order they appear.
    """
    own: dict[str, list[Cell[RunResult]]] = {}
    for cell in cells:
        own.setdefault(cell.optimizer, []).append(cell)
    target = min(max(cell.score(clean) for cell in group) for group in own.values())
    distance = lambda cell: abs(cell.score(clean) - target)
    return [min(group, key=distance) for group in own.values()]


def at_best_rates(cells: Cells, attack: AttackConfig) -> list[str]:
    """Returns the lines on the best rate of each optimizer."""
    lines = ["", "## Certified and attacked, at the best rates", ""]
    lines += [*_tables(cells, attack), "", _violations(cells)]
    if min(len(cell.results) for cell in cells) < 2 or len(cells) < 2:
        return lines
    for radius in attack.radii:
        lines += ["", _pairs(cells, f"certified at {radius:.3g}", _certified(radius))]
        lines += ["", _pairs(cells, f"attacked at {radius:.3g}", _attacked(radius))]
    return lines


def at_equal_accuracy(matched: Cells, cells: Cells) -> list[str]:
    """Returns the lines on rates at which the optimizers are equally accurate."""
    attack = cells[0].results[0].settings.attack
    explained = (
        "For each optimizer the rate of the grid whose validation accuracy is nearest "
        "to the best one of the optimizer whose best is lowest; with the seeds of the "
        "grid."
    )
    return [
        "",
        "## Certified and attacked, at equal clean accuracy",
        "",
        explained,
        "",
        *_tables(matched, attack),
        "",
        _violations(cells),
    ]


def _tables(cells: Cells, attack: AttackConfig) -> list[str]:
    """One table of what is certified, one of what withstood the attack."""
    rows: list[str] = []
    for name, number_of in (("certified %", _certified), ("attacked %", _attacked)):
        table = [
            {
                name: cell.label,
                "validation %": _spread(
                    cell, lambda run: 100 * run.validation_accuracy
                ),
                **{
                    f"{radius:.3g}": _spread(cell, number_of(radius), digits=1)
                    for radius in (0.0, *attack.radii)
                },
            }
            for cell in cells
        ]
        rows += ["", format_rows(table)] if rows else [format_rows(table)]
    return rows


def _violations(cells: Cells) -> str:
    count = sum(run.violations for cell in cells for run in cell.results)
    if count:
        return (
            f"A CERTIFICATE IS WRONG: {count} decisions were changed within the "
            f"distance up to which they are proved to be constant."
        )
    asked = sum(
        round(share * run.settings.attack.examples)
        for cell in cells
        for run in cell.results
        for share in run.certified[1:]
    )
    return f"No certificate was refuted: 0 of {asked} certified decisions changed."


def _pairs(cells: Cells, name: str, number_of: Callable[[RunResult], float]) -> str:
    """Which optimizers differ in a number by more than their seeds do."""
    pairs = compare(
        {cell.optimizer: [number_of(run) for run in cell.results] for cell in cells}
    )
    alike = [f"{pair.first} and {pair.second}" for pair in pairs if not pair.differs]
    differ = len(pairs) - len(alike)
    least = pairs[0].threshold
    text = (
        f"{name.capitalize()}: {differ} of {len(pairs)} pairs differ, by "
        f"Δ/√(1/n₁ + 1/n₂) > {least:.2f} points."
    )
    if alike:
        text += f" No difference beyond the seeds: {', '.join(alike)}."
    return text


def _validation(run: RunResult) -> float:
    return 100 * run.validation_accuracy


def _certified(radius: float) -> Callable[[RunResult], float]:
    return lambda run: run.certified_percent(radius)


def _attacked(radius: float) -> Callable[[RunResult], float]:
    return lambda run: run.attacked_percent(radius)


def _spread(
    cell: Cell[RunResult], number_of: Callable[[RunResult], float], digits: int = 2
) -> str:
    return format_spread([number_of(run) for run in cell.results], digits=digits)
