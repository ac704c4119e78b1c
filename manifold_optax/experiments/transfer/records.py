"""What decides a run of a sweep, and what it measures."""

import dataclasses

from manifold_optax.experiments.transfer.networks import FamilyName
from manifold_optax.experiments.transfer.optimizers import OptimizerName


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides the numbers of one run.

    Attributes:
        optimizer: Optimizer.
        learning_rate: Peak learning rate.
        seed: Seed.
        family: Kind of the network.
        width: Its width.
        depth: Its depth.
        steps: Number of steps.
        batch_size: Examples per step.
        validation_examples: Examples that are held out.
        context: Length of a sequence.
        data: Digest of the text; empty for images.
        condition: Name of the network.
    """

    optimizer: OptimizerName
    learning_rate: float
    seed: int
    family: FamilyName
    width: int
    depth: int
    steps: int
    batch_size: int
    validation_examples: int
    context: int
    data: str
    condition: str = ""


@dataclasses.dataclass(frozen=True)
class Result:
    """What one finished run measured; numbers that are not finite are None.

    Attributes:
        settings: Settings of the run.
        validation_loss: At the end.
        train_loss: Mean over the last 20 steps.
        output_rms: RMS of the logits of the validation examples at the start.
        seconds: Wall time of the program, divided by its runs; for information.
    """

    settings: Settings
    validation_loss: float | None
    train_loss: float | None
    output_rms: float | None
    seconds: float
