"""Results of finished runs, one JSON object per line."""

import dataclasses
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from manifold_optax.experiments.config import MlpConfig, OptimizerName
from manifold_optax.experiments.records import (
    as_tuples,
    read_records,
    run_name,
)

SplitName: TypeAlias = Literal["train", "validation", "test"]


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """Everything that decides the numbers of one run.

    Attributes:
        data: Data set.
        optimizer: Optimizer.
        learning_rate: Peak learning rate.
        seed: Seed.
        epochs: Number of epochs.
        batch_size: Examples per step.
        hidden: Widths of the hidden layers.
        weight_decay: Weight decay of AdamW.
        validation_examples: Training examples held out.
    """

    data: str
    optimizer: OptimizerName
    learning_rate: float
    seed: int
    epochs: int
    batch_size: int
    hidden: tuple[int, ...]
    weight_decay: float
    validation_examples: int

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
        loss: Training loss of each step.
        residual: Largest relative distance of any matrix from its manifold after any
            step; None without a manifold.
        train_accuracy: Accuracy on the training set after each epoch, in [0, 1].
        validation_accuracy: The same on the validation set; None without one.
        test_accuracy: The same on the test set.
        singular_values: Singular values of each layer at the end, largest first.
        seconds: Wall time of the run without compilation, for information.
    """

    settings: RunSettings
    loss: tuple[float | None, ...]
    residual: float | None
    train_accuracy: tuple[float, ...]
    validation_accuracy: tuple[float, ...] | None
    test_accuracy: tuple[float, ...]
    singular_values: tuple[tuple[float | None, ...], ...]
    seconds: float

    def final_accuracy(self, split: SplitName) -> float | None:
        """Returns the accuracy on one split after the last epoch."""
        accuracies = getattr(self, f"{split}_accuracy")
        return None if accuracies is None else accuracies[-1]


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

    def accuracies(self, split: SplitName) -> list[float]:
        """Returns the final accuracies on one split, one per seed."""
        found = [result.final_accuracy(split) for result in self.results]
        return [accuracy for accuracy in found if accuracy is not None]


def group_by_cell(results: Sequence[RunResult]) -> list[Cell]:
    """Groups results by optimizer and learning rate, in the order they appear."""
    grouped: dict[tuple[OptimizerName, float], list[RunResult]] = {}
    for result in results:
        key = (result.settings.optimizer, result.settings.learning_rate)
        grouped.setdefault(key, []).append(result)
    return [Cell(*key, tuple(members)) for key, members in grouped.items()]


def best_cells(cells: Sequence[Cell]) -> dict[OptimizerName, Cell]:
    """Returns the best learning rate of each optimizer.

    The test set has no say: the best one has the highest mean validation accuracy,
    or the highest mean training accuracy where there is no validation set.

    Args:
        cells: Results by optimizer and learning rate.

    Returns:
        One cell per optimizer, in the order they appear.
    """
    best: dict[OptimizerName, Cell] = {}
    for cell in cells:
        rival = best.get(cell.optimizer)
        if rival is None or selection_score(cell) > selection_score(rival):
            best[cell.optimizer] = cell
    return best


def selection_score(cell: Cell) -> float:
    """Returns the accuracy by which learning rates are ranked."""
    return statistics.fmean(cell.accuracies("validation") or cell.accuracies("train"))


def grid(config: MlpConfig) -> list[RunSettings]:
    """Returns the settings of all runs, grouped by optimizer and learning rate."""
    return [
        RunSettings(
            data=config.data,
            optimizer=optimizer,
            learning_rate=rate,
            seed=seed,
            epochs=config.epochs,
            batch_size=config.batch_size,
            hidden=config.hidden,
            weight_decay=config.weight_decay,
            validation_examples=config.validation_examples,
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
    settings["hidden"] = tuple(settings["hidden"])
    values = {key: as_tuples(value) for key, value in row.items()}
    return RunResult(settings=RunSettings(**settings), **values)
