"""What decides a run of the perceptron, and what it measures."""

import dataclasses
from typing import Literal, TypeAlias

from manifold_optax.experiments.mlp.config import OptimizerName

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
        condition: The condition; always empty here.
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
    condition: str = ""


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
        seconds: Wall time of the run, for information; the first of an optimizer
            compiles its program.
    """

    settings: RunSettings
    loss: tuple[float | None, ...]
    residual: float | None
    train_accuracy: tuple[float, ...]
    validation_accuracy: tuple[float, ...] | None
    test_accuracy: tuple[float, ...]
    singular_values: tuple[tuple[float | None, ...], ...]
    seconds: float

    def percent(self, split: SplitName) -> float | None:
        """Returns the accuracy on one split after the last epoch, in percent."""
        accuracies = getattr(self, f"{split}_accuracy")
        return None if accuracies is None else 100 * accuracies[-1]
