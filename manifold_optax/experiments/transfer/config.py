"""Settings of the sweeps over width and depth."""

import dataclasses
import itertools
from typing import Literal, TypeAlias

from manifold_optax.experiments.harness import (
    GridConfig,
    LearningRates as LearningRatesBase,
    require_at_least,
    require_distinct,
)
from manifold_optax.experiments.transfer.networks import FamilyName, HEAD_SIZE
from manifold_optax.experiments.transfer.optimizers import OptimizerName

SweepName: TypeAlias = Literal["depth", "width"]


def _doubled(first: float, count: int = 9) -> tuple[float, ...]:
    return tuple(first * 2**k for k in range(count))


@dataclasses.dataclass(frozen=True)
class LearningRates(LearningRatesBase):
    """Peak learning rates to run, per optimizer, in factors of 2.

    Those of `nominal` and `derived` are lengths of the longest step of any matrix: they
    are divided by the largest share of the budget, rounded to a power of 2, so that
    their grid contains the best rate at every size.

    Attributes:
        adamw: Rates of AdamW.
        muon_none: Rates of Muon without a factor of the shape.
        muon_width: Rates of Muon with its own factor.
        muon_spectral: Rates of Muon with RMS → RMS norm 1.
        muon_rms: Rates of Muon with the RMS of AdamW.
        nominal: Rates of the nominal budget, times its largest share.
        derived: Rates of the derived budget, times its largest share.
        measured: Rates of the measured budget.
        tared: Rates of the measured budget with a fixed mass of all inner matrices,
            where the squares of the changes add up.
    """

    adamw: tuple[float, ...] = _doubled(2.0**-12)
    muon_none: tuple[float, ...] = _doubled(2.0**-9)
    muon_width: tuple[float, ...] = _doubled(2.0**-9)
    muon_spectral: tuple[float, ...] = _doubled(2.0**-9)
    muon_rms: tuple[float, ...] = _doubled(2.0**-11)
    nominal: tuple[float, ...] = _doubled(2.0**-8)
    derived: tuple[float, ...] = _doubled(2.0**-8)
    measured: tuple[float, ...] = _doubled(2.0**-6)
    tared: tuple[float, ...] = _doubled(2.0**-8)

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in dataclasses.fields(self):
            rates = self.of(field.name)
            if any(b != 2 * a for a, b in itertools.pairwise(rates)):
                raise ValueError(
                    f"learning_rates.{field.name} must double from one to the next, "
                    f"got {rates}."
                )


@dataclasses.dataclass(frozen=True)
class Config(GridConfig):
    """How the best learning rate changes with the size of a network.

    Attributes:
        families: Kinds of networks: perceptrons on CIFAR-10, averaged to 8 x 8 pixels,
            or a transformer on characters.
        sweep: What changes.
        sizes: The depths or widths.
        other_size: The width of a sweep over depth, and the reverse.
        steps: Steps per run; none sees an example twice.
        batch_size: Examples (images or sequences) per step.
        validation_examples: Examples that are held out to compare rates by.
        context: Characters that a sequence predicts.
        data_dir: Directory of the CIFAR-10 binary files, for perceptrons; those that
            are missing are downloaded into it.
        text: A text in UTF-8, for the transformer; None: the sources of Python's
            standard library.
    """

    optimizers: tuple[OptimizerName, ...] = ("adamw", "muon_width", "measured")
    learning_rates: LearningRates = LearningRates()
    seeds: tuple[int, ...] = (0, 1, 2)
    output_dir: str = "runs/transfer"
    families: tuple[FamilyName, ...] = ("transformer",)
    sweep: SweepName = "depth"
    sizes: tuple[int, ...] = (1, 2, 4)
    other_size: int = 32
    steps: int = 100
    batch_size: int = 8
    validation_examples: int = 64
    context: int = 32
    data_dir: str | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_distinct("families", self.families)
        for name in ("steps", "batch_size", "validation_examples", "context"):
            require_at_least(name, getattr(self, name), 1)
        for size in (*self.sizes, self.other_size):
            require_at_least("sizes and other_size", size, 1)
        widths = self.sizes if self.sweep == "width" else (self.other_size,)
        odd = [width for width in widths if width % HEAD_SIZE]
        if "transformer" in self.families and odd:
            raise ValueError(
                f"A transformer has heads of {HEAD_SIZE}; its widths must be multiples "
                f"of that, got {odd}."
            )
        if any(b <= a for a, b in itertools.pairwise(self.sizes)):
            raise ValueError(f"sizes must increase, got {self.sizes}.")
        if len(self.sizes) < 2:
            raise ValueError(f"A sweep takes at least two sizes, got {self.sizes}.")
