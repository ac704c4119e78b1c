"""What decides a run of the robustness experiment, and what it measures."""

import dataclasses

from manifold_optax.experiments.pixel_perceptron import OptimizerName, TaskConfig
from manifold_optax.experiments.robustness.config import AttackConfig


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """Everything that decides the numbers of one run.

    Attributes:
        optimizer: Optimizer.
        learning_rate: Peak learning rate.
        seed: Seed.
        task: What is learned; without the directory of the data.
        attack: How the test images are attacked and certified.
        condition: Empty: there is one condition.
    """

    optimizer: OptimizerName
    learning_rate: float
    seed: int
    task: TaskConfig
    attack: AttackConfig
    condition: str = ""


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What one finished run measured; numbers that are not finite are None.

    Attributes:
        settings: Settings of the run.
        loss: Training loss of each step.
        validation_accuracy: Accuracy at the end on the validation set, in [0, 1].
        test_accuracy: The same on the whole test set.
        certified: Share of the attacked test images whose right decision is proved to
            be constant: at 0 and at each radius.
        attacked: Share whose right decision withstood the attack, likewise.
        violations: Decisions that are proved to be constant and were changed.
        lipschitz: Bound of the Lipschitz constant of the logits in the pixels.
        steepest: Largest ratio of a change of the logits and of the pixels that was
            found: the Lipschitz constant lies between the two.
        seconds: Wall time of the run, for information; the first of an optimizer
            compiles its program.
    """

    settings: RunSettings
    loss: tuple[float | None, ...]
    validation_accuracy: float
    test_accuracy: float
    certified: tuple[float, ...]
    attacked: tuple[float, ...]
    violations: int
    lipschitz: float | None
    steepest: float | None
    seconds: float

    def certified_percent(self, radius: float) -> float:
        """Returns the certified accuracy at 0 or one of the radii, in percent."""
        return 100 * self.certified[self._place(radius)]

    def attacked_percent(self, radius: float) -> float:
        """Returns the attacked accuracy at 0 or one of the radii, in percent."""
        return 100 * self.attacked[self._place(radius)]

    def _place(self, radius: float) -> int:
        return (0.0, *self.settings.attack.radii).index(radius)
