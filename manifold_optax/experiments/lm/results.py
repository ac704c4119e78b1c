"""Results of finished runs of the language model."""

import dataclasses
import math
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from manifold_optax.experiments.lm.config import (
    LmConfig,
    ModelConfig,
    OptimizerName,
    TrainingConfig,
)
from manifold_optax.experiments.records import as_tuples, read_records, run_name


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """Everything that decides the numbers of one run.

    Attributes:
        digest: Identifies the text.
        optimizer: Optimizer.
        learning_rate: Peak learning rate.
        seed: Seed.
        model: The model.
        training: How it is trained.
        sample_characters: Length of the sample.
        temperature: Temperature of the sample.
    """

    digest: str
    optimizer: OptimizerName
    learning_rate: float
    seed: int
    model: ModelConfig
    training: TrainingConfig
    sample_characters: int
    temperature: float

    @property
    def name(self) -> str:
        """A file name: readable, and different for different settings."""
        label = f"{self.optimizer}-lr{self.learning_rate:g}-seed{self.seed}"
        return run_name(label, self)


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What one finished run measured; numbers that are not finite are None.

    Attributes:
        settings: Settings of the run.
        loss: Training loss of each step, in nats per character.
        validation_loss: Loss on the validation part at each evaluation.
        test_loss: The same on the test part.
        max_logits: Largest attention logit of each head, `[steps][layers][heads]`: of
            the weights before each step, hence before a clip.
        imbalance: Largest relative excess of an expert's load in each step; empty
            without experts.
        sample: Text sampled at the end.
        seconds: Wall time of the run, for information; the first of an optimizer
            compiles its program.
    """

    settings: RunSettings
    loss: tuple[float | None, ...]
    validation_loss: tuple[float | None, ...]
    test_loss: tuple[float | None, ...]
    max_logits: tuple[tuple[tuple[float | None, ...], ...], ...]
    imbalance: tuple[float | None, ...]
    sample: str
    seconds: float

    @property
    def final_validation_loss(self) -> float:
        """Loss on the validation part at the end; infinite if the run diverged."""
        final = self.validation_loss[-1]
        return math.inf if final is None else final

    @property
    def final_test_loss(self) -> float:
        """Loss on the test part; infinite if the run diverged."""
        final = self.test_loss[-1]
        return math.inf if final is None else final

    @property
    def largest_logits(self) -> list[float]:
        """Largest logit of any head in each step; nan where a head has no number."""
        largest: list[float] = []
        for step in self.max_logits:
            numbers = [x for layer in step for x in layer if x is not None]
            complete = len(numbers) == sum(map(len, step))
            largest.append(max(numbers) if complete else math.nan)
        return largest

    @property
    def steps_above_threshold(self) -> int:
        """Steps in which a head's largest logit exceeded the threshold.

        With MuonClip these are the steps in which a clip fired. Logits that are not
        finite, of a run that diverged, count as above, though nothing is clipped then.
        """
        threshold = self.settings.training.threshold
        return sum(
            any(x is None or x > threshold for layer in step for x in layer)
            for step in self.max_logits
        )


@dataclasses.dataclass(frozen=True)
class Cell:
    """All seeds of one optimizer at one learning rate.

    Attributes:
        optimizer: The optimizer.
        learning_rate: Its peak learning rate.
        results: One result per seed.
    """

    optimizer: OptimizerName
    learning_rate: float
    results: tuple[RunResult, ...]

    @property
    def validation_loss(self) -> float:
        """Mean over the seeds of the loss by which learning rates are ranked."""
        return statistics.fmean(r.final_validation_loss for r in self.results)


def group_by_cell(results: Sequence[RunResult]) -> list[Cell]:
    """Groups results by optimizer and learning rate, in the order they appear."""
    grouped: dict[tuple[OptimizerName, float], list[RunResult]] = {}
    for result in results:
        key = (result.settings.optimizer, result.settings.learning_rate)
        grouped.setdefault(key, []).append(result)
    return [Cell(*key, tuple(members)) for key, members in grouped.items()]


def best_cells(cells: Sequence[Cell]) -> dict[OptimizerName, Cell]:
    """Returns the learning rate of each optimizer with the lowest validation loss.

    The test part has no say.

    Args:
        cells: Results by optimizer and learning rate.

    Returns:
        One cell per optimizer, in the order they appear.
    """
    best: dict[OptimizerName, Cell] = {}
    for cell in cells:
        rival = best.get(cell.optimizer)
        if rival is None or cell.validation_loss < rival.validation_loss:
            best[cell.optimizer] = cell
    return best


def grid(config: LmConfig, digest: str) -> list[RunSettings]:
    """Returns the settings of all runs, grouped by optimizer and learning rate."""
    return [
        RunSettings(
            digest=digest,
            optimizer=optimizer,
            learning_rate=rate,
            seed=seed,
            model=config.model,
            training=config.training,
            sample_characters=config.sample_characters,
            temperature=config.temperature,
        )
        for optimizer in config.optimizers
        for rate in config.learning_rates.of(optimizer)
        for seed in config.seeds
    ]


def read_results(path: pathlib.Path) -> list[RunResult]:
    """Reads the results of earlier runs.

    Args:
        path: A `results.jsonl`.

    Returns:
        The results in it; none if there is no such file.

    Raises:
        ValueError: if a line is not a result of this version.
    """
    return read_records(path, _decode)


def _decode(row: dict[str, Any]) -> RunResult:
    settings = dict(row.pop("settings"))
    settings["model"] = ModelConfig(**settings["model"])
    settings["training"] = TrainingConfig(**settings["training"])
    values = {key: as_tuples(value) for key, value in row.items()}
    return RunResult(settings=RunSettings(**settings), **values)
