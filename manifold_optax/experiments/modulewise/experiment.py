"""The `modulewise` experiment, as the harness runs it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np
import optax
from jaxtyping import Array, Float32
from matplotlib.figure import Figure

from manifold_optax.experiments import harness
from manifold_optax.experiments.lm import train as lm
from manifold_optax.experiments.lm.config import ModelConfig, TrainingConfig
from manifold_optax.experiments.lm.model import abstract_model
from manifold_optax.experiments.lm.results import loss_metrics
from manifold_optax.experiments.lm.text import load_text, Text
from manifold_optax.experiments.modulewise.config import ModulewiseConfig, OptimizerName
from manifold_optax.experiments.modulewise.optimizers import (
    build_optimizer,
    GROUPS,
    singular_ranges,
    start_orthogonal,
)

Numbers = tuple[float | None, ...]


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """Everything that decides the numbers of one run."""

    digest: str
    optimizer: OptimizerName
    learning_rate: float
    seed: int
    model: ModelConfig
    training: TrainingConfig
    others_rate: float
    condition: str = ""


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What one finished run measured; numbers that are not finite are None.

    Attributes:
        settings: Settings of the run.
        loss: Training loss of each step, in nats per character.
        validation_loss: Loss on the validation part at each evaluation.
        test_loss: The same on the test part.
        largest_logit: Largest attention logit of any head in each step.
        singular_values: Smallest and largest one of the attention matrices, then of the
            feed-forward matrices, at each evaluation.
        seconds: Wall time, for information.
    """

    settings: RunSettings
    loss: Numbers
    validation_loss: Numbers
    test_loss: Numbers
    largest_logit: Numbers
    singular_values: tuple[tuple[Numbers, ...], ...]
    seconds: float


@dataclasses.dataclass(frozen=True)
class Problem(lm.Problem):
    """The language model, started and optimized as this experiment does."""

    others_rate: float

    def optimizer(
        self, name: str, peak: Float32[Array, ""]
    ) -> optax.GradientTransformationExtraArgs:
        """Returns an optimizer with the schedule of the training."""
        training, known = self.training, cast("OptimizerName", name)
        rate = lm.learning_rate_schedule(training, peak)
        others_rate = lm.learning_rate_schedule(training, self.others_rate)
        return build_optimizer(known, rate, others_rate, training.weight_decay)

    def initial_params(self, name: str, seed: int) -> Any:
        """Draws the parameters, with orthogonal hidden matrices."""
        return start_orthogonal(super().initial_params(name, seed))


class ModulewiseExperiment(
    harness.Experiment[ModulewiseConfig, RunSettings, RunResult]
):
    """One language model on one text; a round is `training.evaluate_every` steps.

    Args:
        config: The settings.
        text: The text they name.
    """

    result_type = RunResult

    def __init__(self, config: ModulewiseConfig, text: Text):
        training = config.training
        super().__init__(
            config, rounds=training.rounds, steps_per_round=training.evaluate_every
        )
        self.text, self.parts = text, jax.device_put(text.parts)
        vocabulary = len(text.characters)
        graph, _ = abstract_model(config.model, vocabulary)
        self.problem = Problem(
            graph, config.model, training, vocabulary, config.others_rate
        )

    @classmethod
    def prepare(cls, config: ModulewiseConfig) -> "ModulewiseExperiment":
        """Makes the experiment that a configuration describes, with its text."""
        return cls(config, load_text(config.text, context=config.training.context))

    def settings(
        self, optimizer: str, learning_rate: float, seed: int, condition: str = ""
    ) -> RunSettings:
        """Returns everything that decides the numbers of one run."""
        return RunSettings(
            self.text.digest,
            cast("OptimizerName", optimizer),
            learning_rate,
            seed,
            self.config.model,
            self.config.training,
            self.config.others_rate,
            condition,
        )

    def start(
        self, settings: RunSettings
    ) -> tuple[harness.RunInputs, harness.RunState]:
        """Draws the initial weights of a run."""
        inputs, state = lm.start_run(self.problem, settings)
        ranges = harness.unknown(self.rounds, len(GROUPS), 2)
        return inputs, state._replace(history=(state.history, ranges))

    def advance(
        self, settings: RunSettings, inputs: harness.RunInputs, state: harness.RunState
    ) -> harness.RunState:
        """Trains up to the next evaluation and evaluates."""
        training, ranges = state.history
        advanced = lm.advance(
            self.problem,
            settings.optimizer,
            inputs,
            self.parts,
            state._replace(history=training),
        )
        found = singular_ranges(advanced.trainable.params)
        ranges = ranges.at[state.round].set(found)
        return advanced._replace(history=(advanced.history, ranges))

    def finish(
        self, settings: RunSettings, state: harness.RunState, seconds: float
    ) -> RunResult:
        """Returns what a finished run measured."""
        training, ranges = state.history
        return RunResult(
            settings,
            harness.finite(training.steps.loss),
            harness.finite(training.validation_loss),
            harness.finite(training.test_loss),
            harness.finite(np.max(training.steps.max_logits, axis=(1, 2))),
            tuple(tuple(map(harness.finite, groups)) for groups in np.asarray(ranges)),
            seconds,
        )

    def metrics(self) -> Sequence[harness.Metric[RunResult]]:
        """Losses at the end; the test part has no say in the best rates."""
        return loss_metrics()

    @property
    def legend(self) -> str:
        """How to read the table."""
        return (
            "Losses are in nats per character at the end of training; those on the "
            "validation part rank the rows. The singular values are the smallest and "
            "the largest of any matrix of the group at any evaluation of any seed; all "
            "runs start at √(fan_out / fan_in), which is 1 in attention. The largest "
            "logit is that of any head in any step. The learning rate is that of the "
            "hidden matrices; AdamW optimizes all else at "
            f"{self.config.others_rate:g} in every run."
        )

    def columns(self, cell: harness.Cell[RunResult]) -> Mapping[str, str]:
        """Returns the ranges of singular values, and the largest logit."""
        results = cell.results
        ranges = np.array([list(one.singular_values) for one in results], float)
        lows, highs = ranges[..., 0].min((0, 1)), ranges[..., 1].max((0, 1))
        logits = np.array([one.largest_logit for one in results], float)
        spans = {
            f"σ {group}": _shown(low, high)
            for group, low, high in zip(GROUPS, lows, highs, strict=True)
        }
        return {**spans, "largest logit": _shown(logits.max())}

    def figures(
        self, best: Mapping[str, harness.Cell[RunResult]]
    ) -> Mapping[str, Figure]:
        """Draws losses and largest singular values over the steps, first seed."""
        figure, [losses, *groups] = harness.panels(3)
        for cell in best.values():
            result, color = cell.results[0], self.color(cell.optimizer)
            steps = self.steps_per_round * np.arange(1, self.rounds + 1)
            validation = np.array(result.validation_loss, float)
            losses.plot(steps, validation, color=color, label=cell.label)
            ranges = np.array(list(result.singular_values), float)
            for place, axes in enumerate(groups):
                axes.plot(steps, ranges[:, place, 1], color=color)
        losses.set(xlabel="step", ylabel="validation loss")
        for axes, group in zip(groups, GROUPS, strict=True):
            axes.set(xlabel="step", ylabel=f"largest σ, {group}", yscale="log")
        harness.add_legend(figure, losses)
        return {"curves": figure}


def _shown(*numbers: float) -> str:
    known = np.isfinite(numbers).all()
    return " to ".join(f"{x:.3g}" for x in numbers) if known else "not finite"
