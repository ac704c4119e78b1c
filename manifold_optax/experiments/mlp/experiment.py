"""The `mlp` experiment, as the harness runs it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np
from matplotlib.figure import Figure

from manifold_optax.experiments.harness import (
    Cell,
    Curves,
    Experiment,
    finite,
    LARGEST_STEPS,
    Metric,
    require_at_least,
    RunState,
)
from manifold_optax.experiments.mlp.config import MlpConfig, OptimizerName
from manifold_optax.experiments.mlp.data import Dataset, load_dataset
from manifold_optax.experiments.mlp.figures import draw_loss, draw_singular_values
from manifold_optax.experiments.mlp.results import RunResult, RunSettings, SplitName
from manifold_optax.experiments.mlp.train import (
    advance,
    make_problem,
    RunInputs,
    Splits,
    start_run,
    train_epoch,
)


class MlpExperiment(Experiment[MlpConfig, RunSettings, RunResult]):
    """One perceptron on one data set; a round is an epoch.

    Args:
        config: The settings.
        dataset: The data they name.

    Raises:
        ValueError: if a run would have too many steps.
    """

    result_type = RunResult

    def __init__(self, config: MlpConfig, dataset: Dataset):
        self.problem = make_problem(config, dataset)
        super().__init__(
            config, rounds=config.epochs, steps_per_round=self.problem.steps_per_epoch
        )
        require_at_least(
            "the number of steps (epochs · examples / batch_size)",
            self.problem.steps,
            1,
            highest=LARGEST_STEPS,
        )
        self.splits = jax.device_put(
            Splits(dataset.train, dataset.validation, dataset.test)
        )

    @classmethod
    def prepare(cls, config: MlpConfig) -> "MlpExperiment":
        """Makes the experiment that a configuration describes, with its data."""
        return cls(config, load_dataset(config))

    def settings(
        self, optimizer: str, learning_rate: float, seed: int, condition: str = ""
    ) -> RunSettings:
        """Returns everything that decides the numbers of one run."""
        config = self.config
        return RunSettings(
            data=config.data,
            optimizer=cast("OptimizerName", optimizer),
            learning_rate=learning_rate,
            seed=seed,
            epochs=config.epochs,
            batch_size=config.batch_size,
            hidden=config.hidden,
            weight_decay=config.weight_decay,
            validation_examples=config.validation_examples,
            condition=condition,
        )

    def start(self, settings: RunSettings) -> tuple[RunInputs, RunState]:
        """Draws the initial weights of a run."""
        return start_run(self.problem, settings)

    def advance(
        self, settings: RunSettings, inputs: RunInputs, state: RunState
    ) -> RunState:
        """Trains for one epoch and evaluates."""
        return advance(self.problem, settings.optimizer, inputs, self.splits, state)

    def finish(
        self, settings: RunSettings, state: RunState, seconds: float
    ) -> RunResult:
        """Returns what a finished run measured, and its singular values."""
        history = state.history
        validation = history.validation_accuracy
        return RunResult(
            settings=settings,
            loss=finite(history.loss),
            residual=finite(history.residual.max(keepdims=True))[0],
            train_accuracy=tuple(history.train_accuracy.tolist()),
            validation_accuracy=(
                tuple(validation.tolist()) if settings.validation_examples else None
            ),
            test_accuracy=tuple(history.test_accuracy.tolist()),
            singular_values=tuple(
                _singular_values(kernel)
                for kernel in jax.tree.leaves(state.trainable.params)
            ),
            seconds=seconds,
        )

    def metrics(self) -> Sequence[Metric[RunResult]]:
        """Accuracies; the test set has no say in the best rates."""
        splits: list[SplitName] = ["train", "test"]
        if self.ranks_rows:
            splits = ["validation", "test", "train"]
        return [Metric(f"{split} %", _percent_of(split)) for split in splits]

    @property
    def ranks_rows(self) -> bool:
        """Whether there is a validation set to rank by."""
        return self.config.validation_examples > 0

    @property
    def legend(self) -> str:
        """How to read the columns of the matrices."""
        return (
            "Singular values are the smallest and the largest of each layer at the "
            "end. The residual is the largest relative distance of any matrix from its "
            "manifold after any step."
        )

    def columns(self, cell: Cell[RunResult]) -> Mapping[str, str]:
        """Returns what the matrices are like."""
        known = [r.residual for r in cell.results if r.residual is not None]
        return {
            "singular values by layer": _ranges(cell),
            "residual": f"{max(known):.1e}" if known else "-",
        }

    def curves(self, result: RunResult) -> Curves:
        """Returns the loss of each step and the accuracies of each epoch."""
        accuracies = {
            "accuracy/train": result.train_accuracy,
            "accuracy/validation": result.validation_accuracy or (),
            "accuracy/test": result.test_accuracy,
        }
        return {"loss": enumerate(result.loss)} | {
            name: enumerate(values, start=1) for name, values in accuracies.items()
        }

    def figures(self, best: Mapping[str, Cell[RunResult]]) -> Mapping[str, Figure]:
        """Draws the loss of each step and the singular values at the end."""
        return {
            "loss": draw_loss(best, self.color),
            "singular_values": draw_singular_values(best, self.color),
        }

    def timed_round(self, optimizer: str) -> Callable[[], object]:
        """Returns an epoch without evaluation and without the residuals."""
        settings = self.settings(optimizer, learning_rate=1e-3, seed=0)
        inputs, state = self.start(settings)
        return lambda: train_epoch(
            self.problem,
            settings.optimizer,
            inputs,
            self.splits.train,
            (state.round, state.trainable),
            monitor=False,
        )


def _percent_of(split: SplitName) -> Callable[[RunResult], float | None]:
    return lambda result: result.percent(split)


def _singular_values(kernel: Any) -> tuple[float | None, ...]:
    matrix = np.asarray(kernel)
    if not np.isfinite(matrix).all():
        return (None,) * min(matrix.shape)
    return tuple(np.linalg.svd(matrix, compute_uv=False).tolist())


def _ranges(cell: Cell[RunResult]) -> str:
    """Smallest and largest singular value of each layer, over all seeds."""
    ranges: list[str] = []
    for layer in zip(*(result.singular_values for result in cell.results), strict=True):
        values = [value for seed in layer for value in seed]
        known = [value for value in values if value is not None]
        diverged = len(known) < len(values)
        ranges.append(
            "not finite" if diverged else f"{min(known):.3g}-{max(known):.3g}"
        )
    return " / ".join(ranges)
