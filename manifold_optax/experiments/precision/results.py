"""What decides a run of the precision experiment, and what it measures."""

import dataclasses

from manifold_optax.experiments.pixel_perceptron import OptimizerName, TaskConfig
from manifold_optax.experiments.precision.config import LanguageConfig
from manifold_optax.experiments.rounding import FormatName, Scope


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """Everything that decides the numbers of one run.

    Attributes:
        condition: The network.
        optimizer: Optimizer.
        learning_rate: Peak learning rate.
        seed: Seed.
        examples: Test images from which the largest change is searched.
        task: What the perceptron learns; None for the language model.
        language: The language model; None for the perceptron.
        digest: Identifies the text; empty for the perceptron.
    """

    condition: str
    optimizer: OptimizerName
    learning_rate: float
    seed: int
    examples: int
    task: TaskConfig | None
    language: LanguageConfig | None
    digest: str


@dataclasses.dataclass(frozen=True)
class Rounded:
    """What rounding the weights does to one network; None: not finite.

    Attributes:
        number_format: The format.
        per: What shares a scale.
        error: Error on the test set, after rounding.
        certified: Bound of the change of the logits, for all inputs of the domain.
        found: Largest change that was found in the domain.
        on_data: Largest change on test data.
    """

    number_format: FormatName
    per: Scope
    error: float | None
    certified: float | None
    found: float | None
    on_data: float | None


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What one finished run measured; numbers that are not finite are None.

    An error is the share of wrong decisions of the perceptron, in percent, and the loss
    of the language model, in nats per character. Changes are L2 norms of logits.

    Attributes:
        settings: Settings of the run.
        loss: Training loss of each step.
        validation_error: Error on the validation set.
        test_error: Error on the test set.
        logit_size: Median norm of the logits on test data.
        rounded: What rounding does; empty for runs that choose a learning rate.
        seconds: Wall time of the run, for information; the first of an optimizer
            compiles its program.
    """

    settings: RunSettings
    loss: tuple[float | None, ...]
    validation_error: float | None
    test_error: float | None
    logit_size: float | None
    rounded: tuple[Rounded, ...]
    seconds: float

    def after(self, number_format: FormatName, per: Scope) -> Rounded:
        """Returns what one way of rounding does."""
        return next(
            one
            for one in self.rounded
            if (one.number_format, one.per) == (number_format, per)
        )
