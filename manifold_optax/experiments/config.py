"""Settings of the experiments, with the defaults of each data set."""

import dataclasses
from typing import get_args, Literal, TypeAlias

from manifold_optax.experiments.checks import (
    require_at_least,
    require_distinct,
    require_positive,
    require_seeds,
)

DataName: TypeAlias = Literal["digits", "cifar10"]
OptimizerName: TypeAlias = Literal[
    "adamw", "muon", "hyperspherical", "hyperspherical_kept", "manifold_muon"
]
DATA_NAMES: tuple[DataName, ...] = get_args(DataName)
OPTIMIZER_NAMES: tuple[OptimizerName, ...] = get_args(OptimizerName)


@dataclasses.dataclass(frozen=True)
class LearningRates:
    """Peak learning rates to run, per optimizer; each decays linearly to zero.

    Attributes:
        adamw: Rates of AdamW.
        muon: Rates of Muon.
        hyperspherical: Rates of descent on the sphere of radius 1.
        hyperspherical_kept: Rates of descent on the sphere of the initial norm.
        manifold_muon: Rates of manifold Muon: step lengths in the spectral norm.
    """

    adamw: tuple[float, ...] = (0.01,)
    muon: tuple[float, ...] = (0.02,)
    hyperspherical: tuple[float, ...] = (0.002,)
    hyperspherical_kept: tuple[float, ...] = (0.2,)
    manifold_muon: tuple[float, ...] = (0.2,)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            require_positive(f"learning_rates.{field.name}", getattr(self, field.name))

    def of(self, optimizer: OptimizerName) -> tuple[float, ...]:
        """Returns the rates of one optimizer."""
        return getattr(self, optimizer)


@dataclasses.dataclass(frozen=True)
class MlpConfig:
    """The published experiment: one MLP without biases, several optimizers.

    Attributes:
        data: Data set; it also selects the defaults of all other settings.
        data_dir: Directory of the CIFAR-10 binary files; those that are missing are
            downloaded into it. Unused by digits, which are bundled.
        optimizers: Optimizers to compare.
        learning_rates: Peak learning rates to run, per optimizer.
        seeds: Seeds of the initial weights and of the order of the examples.
        epochs: Passes over the training set.
        batch_size: Examples per step; the last step of an epoch takes what is left.
        hidden: Widths of the hidden layers.
        weight_decay: Decoupled weight decay of AdamW.
        validation_examples: Training examples held out to rank learning rates.
        checkpoint_every: Epochs between two checkpoints of a run.
        timing_rounds: Epochs per optimizer that measure the time per step; 0: none.
        output_dir: Directory of the results, reports, figures and checkpoints.
        resume: Skip the finished runs found in `output_dir` and continue the
            interrupted one.
    """

    data: DataName = "digits"
    data_dir: str | None = None
    optimizers: tuple[OptimizerName, ...] = OPTIMIZER_NAMES
    learning_rates: LearningRates = LearningRates()
    seeds: tuple[int, ...] = (42, 43, 44)
    epochs: int = 20
    batch_size: int = 128
    hidden: tuple[int, ...] = (128, 64)
    weight_decay: float = 0.1
    validation_examples: int = 0
    checkpoint_every: int = 5
    timing_rounds: int = 5
    output_dir: str = "runs/mlp"
    resume: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "checkpoint_every"):
            require_at_least(name, getattr(self, name), 1)
        for name in ("weight_decay", "validation_examples", "timing_rounds"):
            require_at_least(name, getattr(self, name), 0)
        for width in self.hidden:
            require_at_least("hidden", width, 1)
        require_seeds(self.seeds)
        require_distinct("optimizers", self.optimizers)
        for optimizer in self.optimizers:
            require_distinct(
                f"learning_rates.{optimizer}", self.learning_rates.of(optimizer)
            )


def default_config(data: DataName) -> MlpConfig:
    """Returns the defaults of one data set.

    Those of CIFAR-10 are the published settings: 3 epochs of 49 steps at batch size
    1024, seeds 42 to 44, and the best learning rates of the reference implementation.
    The rates of Muon and of the kept sphere, which the reference does not have, are the
    best on 5,000 held-out training images (`configs/mlp_cifar10_sweep.toml`).
    The learning rates of digits are the best ones on 287 held-out training images.

    Args:
        data: Name of the data set.

    Returns:
        Its configuration.
    """
    match data:
        case "digits":
            return MlpConfig()
        case "cifar10":
            return MlpConfig(
                data="cifar10",
                learning_rates=LearningRates(
                    adamw=(0.003,),
                    muon=(0.03,),
                    hyperspherical=(0.2,),
                    hyperspherical_kept=(0.1,),
                    manifold_muon=(0.1,),
                ),
                epochs=3,
                batch_size=1024,
                checkpoint_every=1,
                output_dir="runs/mlp_cifar10",
            )
