"""Settings of the experiment with a manifold for each kind of layer."""

import dataclasses
from typing import get_args, Literal, TypeAlias

from manifold_optax.experiments.harness import (
    GridConfig,
    LearningRates as LearningRatesBase,
    require_positive,
)
from manifold_optax.experiments.lm.config import ModelConfig, TrainingConfig

OptimizerName: TypeAlias = Literal[
    "adamw",
    "muon",
    "stiefel",
    "stiefel_dgram",
    "dgram_stiefel",
    "dgram",
    "spectral_sphere",
    "hyperball",
]

_MODEL = ModelConfig(
    feed_forward="gelu", layers=2, width=64, heads=4, head_size=16, hidden=256
)
_TRAINING = TrainingConfig(steps=200, context=64, warmup_steps=20, evaluate_every=50)

# Factors of 2. The rate of all but AdamW is a step in the same unit.
_RATES = (0.01, 0.02, 0.04, 0.08, 0.16)
# Attention with free lengths wants smaller ones.
_LOW_RATES = (0.005, 0.01, 0.02, 0.04, 0.08)


@dataclasses.dataclass(frozen=True)
class LearningRates(LearningRatesBase):
    """Peak learning rates of the hidden matrices, per optimizer.

    `dgram` stands for orthogonal columns of free lengths; of two names the first is the
    rule of attention, the second that of the feed-forward layers.
    """

    adamw: tuple[float, ...] = (0.002, 0.004, 0.008, 0.016, 0.032)
    muon: tuple[float, ...] = _RATES
    stiefel: tuple[float, ...] = _RATES
    stiefel_dgram: tuple[float, ...] = _RATES
    dgram_stiefel: tuple[float, ...] = _LOW_RATES
    dgram: tuple[float, ...] = _LOW_RATES
    spectral_sphere: tuple[float, ...] = _RATES
    hyperball: tuple[float, ...] = _RATES


@dataclasses.dataclass(frozen=True)
class ModulewiseConfig(GridConfig):
    """One language model, a manifold for each kind of layer.

    A round is `training.evaluate_every` steps and an evaluation.

    Attributes:
        text: A text file in UTF-8; None: the sources of Python's standard library.
        model: A model with attention `mha` and feed-forward `gelu` or `gated`.
        training: How it is trained.
        others_rate: Peak learning rate of AdamW for embedding, head and gains, the same
            beside every optimizer.
    """

    optimizers: tuple[OptimizerName, ...] = get_args(OptimizerName)
    learning_rates: LearningRates = LearningRates()
    checkpoint_every: int = 5
    output_dir: str = "runs/modulewise"
    text: str | None = None
    model: ModelConfig = _MODEL
    training: TrainingConfig = _TRAINING
    others_rate: float = 0.008

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("others_rate", (self.others_rate,))
        model = self.model
        if (
            model.attention != "mha"
            or model.feed_forward == "moe"
            or model.heads * model.head_size != model.width
            or model.hidden < model.width
        ):
            raise ValueError(
                "The rules for orthogonal columns need attention 'mha', feed_forward "
                "'gelu' or 'gated', heads · head_size = width and hidden ≥ width, got "
                f"{model}."
            )
