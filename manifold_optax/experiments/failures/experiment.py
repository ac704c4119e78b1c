"""The tasks as the harness runs them: a condition is a task."""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import cast, get_args

import numpy as np
from matplotlib.figure import Figure

from manifold_optax.experiments import harness
from manifold_optax.experiments.failures import report
from manifold_optax.experiments.failures.optimizers import applies, OptimizerName
from manifold_optax.experiments.failures.problems import STEPS
from manifold_optax.experiments.failures.tasks import TASKS
from manifold_optax.experiments.failures.train import draw, train

_TOGETHER = 10
"""Runs per call of a program, so that 5 and 10 seeds share one: the fewer of both of
the published rates and seeds, 6 x 5 and 10."""

_LENGTHS = (0.00316, 0.01, 0.0316, 0.1, 0.316, 1.0)
"""Lengths of a step of a matrix, whose entries have 1 or 0.01 of it, in factors √10."""


@dataclasses.dataclass(frozen=True)
class LearningRates(harness.LearningRates):
    """Peak learning rates to run, per optimizer, in factors of √10.

    Attributes:
        adamw: Rates of AdamW.
        optax_muon: Rates of Optax's Muon.
        muon: Rates of Muon.
        muon_rms: Rates of Muon with the RMS of AdamW.
        normuon: Rates of NorMuon.
        scion: Rates of Scion.
        muon_clip: Rates of MuonClip.
        hyperspherical: Rates of hyperspherical descent.
        hyperball: Rates of Hyperball.
        spel: Rates of SPEL.
        manifold_muon: Rates of Manifold Muon.
    """

    adamw: tuple[float, ...] = (0.001, 0.00316, 0.01, 0.0316, 0.1, 0.316)
    optax_muon: tuple[float, ...] = _LENGTHS
    muon: tuple[float, ...] = _LENGTHS
    muon_rms: tuple[float, ...] = _LENGTHS
    normuon: tuple[float, ...] = _LENGTHS
    scion: tuple[float, ...] = _LENGTHS
    muon_clip: tuple[float, ...] = _LENGTHS
    hyperspherical: tuple[float, ...] = _LENGTHS
    hyperball: tuple[float, ...] = _LENGTHS
    spel: tuple[float, ...] = _LENGTHS
    manifold_muon: tuple[float, ...] = _LENGTHS


@dataclasses.dataclass(frozen=True)
class Config(harness.GridConfig):
    """Which trainings fail.

    Attributes:
        tasks: Names of the tasks; see `tasks`.
        steps: Steps per run; the thresholds are made for 300.
    """

    optimizers: tuple[OptimizerName, ...] = get_args(OptimizerName)
    learning_rates: LearningRates = LearningRates()
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    final_seeds: tuple[int, ...] = tuple(range(10, 20))
    output_dir: str = "runs/failures"
    tasks: tuple[str, ...] = tuple(TASKS)
    steps: int = STEPS

    def __post_init__(self) -> None:
        super().__post_init__()
        harness.require_at_least("steps", self.steps, 1)
        unknown = [name for name in self.tasks if name not in TASKS]
        if unknown or not self.tasks:
            raise ValueError(
                f"tasks must be some of {list(TASKS)}, got {list(self.tasks)}."
            )
        for name in self.tasks:
            if not any(applies(own, name, TASKS[name]) for own in self.optimizers):
                raise ValueError(f"None of {self.optimizers} takes the task {name!r}.")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides the numbers of one run; the condition is the task."""

    optimizer: OptimizerName
    learning_rate: float
    seed: int
    steps: int
    condition: str = ""


@dataclasses.dataclass(frozen=True)
class Result:
    """What one finished run measured.

    Attributes:
        settings: Settings of the run.
        left: What is judged, at the end; None where it is not finite.
        seconds: Wall time of the program, divided by its runs; for information.
    """

    settings: Settings
    left: float | None
    seconds: float

    @property
    def decades(self) -> float:
        """What is judged over the threshold, as a logarithm of base 10, in [-6, 6].

        A run passes at 0 or below. One that is not finite has 6.
        """
        if self.left is None:
            return 6.0
        ratio = self.left / TASKS[self.settings.condition].threshold
        return min(6.0, math.log10(max(ratio, 1e-6)))


class FailuresExperiment(harness.BatchedExperiment[Config, Settings, Result]):
    """All tasks by all optimizers that take them; a run is one round.

    Args:
        config: The settings.
    """

    result_type = Result

    def __init__(self, config: Config):
        super().__init__(config, rounds=1, steps_per_round=config.steps)

    @property
    def conditions(self) -> Sequence[str]:
        """The tasks."""
        return self.config.tasks

    def learning_rates_of(self, optimizer: str, condition: str) -> Sequence[float]:
        """Returns the rates; none where an optimizer does not take a task."""
        if not applies(optimizer, condition, TASKS[condition]):
            return ()
        return self.config.learning_rates.of(optimizer)

    @property
    def ranks_rows(self) -> bool:
        """Rows are in the order of their rates."""
        return False

    @property
    def legend(self) -> str:
        """What the numbers are."""
        return (
            f"{self.config.steps} steps per run. Decades are the logarithm, of base "
            f"10, of what is judged over the threshold of the task, in [-6, 6]; a run "
            f"passes at 0 or below."
        )

    def settings(
        self, optimizer: str, learning_rate: float, seed: int, condition: str = ""
    ) -> Settings:
        """Returns everything that decides the numbers of one run."""
        name = cast("OptimizerName", optimizer)
        return Settings(name, learning_rate, seed, self.config.steps, condition)

    def run_many(self, settings_list: Sequence[Settings]) -> Sequence[Result]:
        """Makes the runs of one task and optimizer, ten at a time by one program."""
        started = time.perf_counter()
        first = settings_list[0]
        left: list[float | None] = []
        for k in range(0, len(settings_list), _TOGETHER):
            chosen = settings_list[k : k + _TOGETHER]
            filled = [*chosen, *[chosen[-1]] * (_TOGETHER - len(chosen))]
            seeds = np.array([one.seed for one in filled], np.uint32)
            measured = train(
                np.array([one.learning_rate for one in filled], np.float32),
                seeds,
                *draw(seeds, task=first.condition),
                task=first.condition,
                optimizer=first.optimizer,
                steps=first.steps,
            )
            left += harness.finite(measured)[: len(chosen)]
        seconds = (time.perf_counter() - started) / len(settings_list)
        return [
            Result(one, number, seconds)
            for one, number in zip(settings_list, left, strict=True)
        ]

    def metrics(self) -> Sequence[harness.Metric[Result]]:
        """The decades above the threshold, whose mean chooses the best rates."""
        return (harness.Metric("decades", lambda r: r.decades, 2, True),)

    def columns(self, cell: harness.Cell[Result]) -> Mapping[str, str]:
        """Returns how many seeds pass."""
        return {"passes": f"{report.passes(cell)} of {len(cell.results)}"}

    def appendix(self, best: Mapping[str, harness.Cell[Result]]) -> Sequence[str]:
        """Returns the table of passes, and what the tasks are."""
        return report.format_passes(list(best.values()), self.config.optimizers)

    def figures(self, best: Mapping[str, harness.Cell[Result]]) -> Mapping[str, Figure]:
        """Draws the table of passes."""
        cells = list(best.values())
        return {"passes": report.draw_passes(cells, self.config.optimizers)}
