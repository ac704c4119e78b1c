"""What decides a run of the language model, and what it measures."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

from manifold_optax.experiments.harness import Metric
from manifold_optax.experiments.lm.config import (
    ModelConfig,
    OptimizerName,
    TrainingConfig,
)


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
        condition: The condition; always empty here.
    """

    digest: str
    optimizer: OptimizerName
    learning_rate: float
    seed: int
    model: ModelConfig
    training: TrainingConfig
    sample_characters: int
    temperature: float
    condition: str = ""


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

    @property
    def late_imbalance(self) -> float:
        """Mean imbalance over the last tenth of the steps: the bias has settled then.

        It is nan without experts, or where a step has no finite number.
        """
        late = self.imbalance[-max(1, len(self.imbalance) // 10) :]
        known = [value for value in late if value is not None]
        return (
            sum(known) / len(known) if known and len(known) == len(late) else math.nan
        )


def loss_metrics() -> Sequence[Metric[Any]]:
    """Losses at the end of a run; that on the validation part chooses."""
    loss = functools.partial(Metric, digits=4, lower_is_better=True)
    return [
        loss("validation loss", lambda result: result.validation_loss[-1]),
        loss("test loss", lambda result: result.test_loss[-1]),
    ]
