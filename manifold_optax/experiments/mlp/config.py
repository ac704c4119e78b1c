"""Settings of the perceptron, with the defaults of each data set."""

import dataclasses
from typing import get_args, Literal, TypeAlias

from manifold_optax.experiments.harness import (
    GridConfig,
    LearningRates as LearningRatesBase,
    require_at_least,
)

DataName: TypeAlias = Literal["digits", "cifar10"]
OptimizerName: TypeAlias = Literal[
    "adamw",
    "muon",
    "hyperspherical",
    "hyperspherical_kept",
    "manifold_muon",
    "manifold_muon_scaled",
]
OPTIMIZER_NAMES: tuple[OptimizerName, ...] = get_args(OptimizerName)


@dataclasses.dataclass(frozen=True)
class LearningRates(LearningRatesBase):
    """Peak learning rates to run, per optimizer; each decays linearly to zero.

    Attributes:
        adamw: Rates of AdamW.
        muon: Rates of Muon.
        hyperspherical: Rates of descent on the sphere of radius 1.
        hyperspherical_kept: Rates of descent on the sphere of the initial norm.
        manifold_muon: Rates of manifold Muon: step lengths in the spectral norm.
        manifold_muon_scaled: The same with a readout of scale 8, in units of the scale.
    """

    adamw: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1)
    muon: tuple[float, ...] = (0.005, 0.02, 0.05, 0.1, 0.2)
    hyperspherical: tuple[float, ...] = (0.03, 0.1, 0.3)
    hyperspherical_kept: tuple[float, ...] = (0.1, 0.3, 1.0)
    manifold_muon: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.8)
    manifold_muon_scaled: tuple[float, ...] = (0.025, 0.05, 0.1, 0.2, 0.4)


@dataclasses.dataclass(frozen=True)
class MlpConfig(GridConfig):
    """The published experiment: one MLP without biases, several optimizers.

    A round is an epoch.

    Attributes:
        data: Data set; it also selects the defaults of all other settings.
        data_dir: Directory of the CIFAR-10 binary files; those that are missing are
            downloaded into it. Unused by digits, which are bundled.
        epochs: Passes over the training set.
        batch_size: Examples per step; the last step of an epoch takes what is left.
        hidden: Widths of the hidden layers.
        weight_decay: Decoupled weight decay of AdamW.
        validation_examples: Training examples held out to rank learning rates.
    """

    optimizers: tuple[OptimizerName, ...] = (
        "adamw",
        "muon",
        "manifold_muon",
        "manifold_muon_scaled",
    )
    learning_rates: LearningRates = LearningRates()
    seeds: tuple[int, ...] = (42, 43, 44)
    checkpoint_every: int = 3
    timing_rounds: int = 3
    output_dir: str = "runs/mlp"
    data: DataName = "digits"
    data_dir: str | None = None
    epochs: int = 3
    batch_size: int = 64
    hidden: tuple[int, ...] = (128, 64)
    weight_decay: float = 0.1
    validation_examples: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "batch_size"):
            require_at_least(name, getattr(self, name), 1)
        for name in ("weight_decay", "validation_examples"):
            require_at_least(name, getattr(self, name), 0)
        for width in self.hidden:
            require_at_least("hidden", width, 1)
        if self.final_seeds and not self.validation_examples:
            raise ValueError(
                "final_seeds need rates that were chosen on a validation set, got "
                "validation_examples=0; hold some out, or leave final_seeds empty."
            )


def default_config(data: DataName) -> MlpConfig:
    """Returns the defaults of one data set.

    Those of CIFAR-10 are the published settings: 3 epochs of 49 steps at batch size
    1024, seeds 42 to 44, and the best learning rates of the reference implementation.
    The rates of Muon and of the kept sphere, which the reference does not have, are the
    best on 5,000 held-out training images (`configs/mlp_cifar10_sweep.toml`).

    Those of digits are a demonstration of two minutes: few steps, and a grid of rates
    that shows how much the choice of one matters to each method. A fifth of the
    training images chooses among them, and fresh seeds compare the chosen ones.

    Args:
        data: Name of the data set.

    Returns:
        Its configuration.
    """
    match data:
        case "digits":
            return MlpConfig(final_seeds=(45, 46, 47), validation_examples=287)
        case "cifar10":
            return MlpConfig(
                data="cifar10",
                optimizers=(
                    "adamw",
                    "muon",
                    "hyperspherical",
                    "hyperspherical_kept",
                    "manifold_muon",
                ),
                learning_rates=LearningRates(
                    adamw=(0.003,),
                    muon=(0.03,),
                    hyperspherical=(0.2,),
                    hyperspherical_kept=(0.1,),
                    manifold_muon=(0.1,),
                    manifold_muon_scaled=(0.1,),
                ),
                epochs=3,
                batch_size=1024,
                checkpoint_every=1,
                timing_rounds=5,
                output_dir="runs/mlp_cifar10",
            )
