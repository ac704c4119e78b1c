"""Settings of the precision experiment."""

import dataclasses

from manifold_optax.experiments.harness import GridConfig, require_at_least
from manifold_optax.experiments.lm.config import LmConfig, ModelConfig, TrainingConfig
from manifold_optax.experiments.pixel_perceptron import (
    DEFAULT_TASK,
    OPTIMIZER_NAMES,
    OptimizerName,
    TaskConfig,
)
from manifold_optax.experiments.robustness.config import LearningRates

PERCEPTRON = "perceptron"
LANGUAGE_MODEL = "language model"

_SMALL_MODEL = ModelConfig(
    feed_forward="gelu", layers=2, width=64, heads=4, head_size=16, hidden=256
)
_SHORT_TRAINING = TrainingConfig(
    steps=180,
    context=64,
    warmup_steps=18,
    evaluate_every=60,
    evaluation_batches=8,
)

# Factors of 2 around the best rates of configs/robustness.toml.
_PERCEPTRON_RATES = LearningRates(
    adamw=(0.0015, 0.003, 0.006),
    muon=(0.015, 0.03, 0.06),
    muon_ball=(0.05, 0.1, 0.2),
    manifold_muon=(0.05, 0.1, 0.2),
    modular=(0.2, 0.4, 0.8),
)
# Factors of 2 around the best rates of one seed.
_LANGUAGE_RATES = LearningRates(
    adamw=(0.008, 0.016, 0.032),
    muon=(0.016, 0.032, 0.064),
    muon_ball=(0.016, 0.032, 0.064),
    manifold_muon=(0.1, 0.2, 0.4),
    modular=(0.1,),
)


@dataclasses.dataclass(frozen=True)
class LanguageConfig:
    """The language model of the `lm` experiment, small.

    Attributes:
        optimizers: Optimizers of it, among those of the experiment.
        learning_rates: Peak rates: of the hidden matrices where these have a constraint
            of their own (`manifold_muon`), else of all parameters.
        text: A text file in UTF-8; None: the sources of Python's standard library.
        model: The model.
        training: How it is trained.
    """

    optimizers: tuple[OptimizerName, ...] = (
        "adamw",
        "muon",
        "muon_ball",
        "manifold_muon",
    )
    learning_rates: LearningRates = _LANGUAGE_RATES
    text: str | None = None
    model: ModelConfig = _SMALL_MODEL
    training: TrainingConfig = _SHORT_TRAINING

    def __post_init__(self) -> None:
        if "modular" in self.optimizers:
            raise ValueError(
                f"language.optimizers must not name 'modular', which trains the "
                f"perceptron alone here, got {self.optimizers}."
            )

    def plain(self) -> LmConfig:
        """Returns the same settings as the `lm` experiment has them."""
        return LmConfig(text=self.text, model=self.model, training=self.training)


_SMALL_LANGUAGE = LanguageConfig()


@dataclasses.dataclass(frozen=True)
class PrecisionConfig(GridConfig):
    """A perceptron and a language model, rounded to few bits after training.

    A round is an epoch of the perceptron, and `language.training.evaluate_every` steps
    of the language model.

    Attributes:
        task: What the perceptron learns.
        examples: Test images from which the largest change is searched.
        language: The language model.
    """

    optimizers: tuple[OptimizerName, ...] = OPTIMIZER_NAMES
    learning_rates: LearningRates = _PERCEPTRON_RATES
    seeds: tuple[int, ...] = (42,)
    final_seeds: tuple[int, ...] = (43, 44, 45)
    checkpoint_every: int = 3
    output_dir: str = "runs/precision"
    task: TaskConfig = DEFAULT_TASK
    examples: int = 32
    language: LanguageConfig = _SMALL_LANGUAGE

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least("examples", self.examples, 1)
        rounds = self.language.training.rounds
        if rounds != self.task.epochs:
            raise ValueError(
                f"language.training must have as many evaluations as the perceptron "
                f"has epochs, {self.task.epochs}, got {rounds}; set evaluate_every to "
                f"steps / {self.task.epochs}."
            )
