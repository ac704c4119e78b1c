"""Settings that every experiment has: which runs to make, and where to write them."""

import dataclasses

from manifold_optax.experiments.harness.checks import (
    require_at_least,
    require_distinct,
    require_fresh,
    require_positive,
    require_seeds,
)


@dataclasses.dataclass(frozen=True)
class LearningRates:
    """Peak learning rates to run, per optimizer.

    An experiment subclasses it with one field per optimizer.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            require_positive(f"learning_rates.{field.name}", getattr(self, field.name))

    def of(self, optimizer: str) -> tuple[float, ...]:
        """Returns the rates of one optimizer."""
        return getattr(self, optimizer)


@dataclasses.dataclass(frozen=True)
class GridConfig:
    """A grid of runs: every optimizer at each of its learning rates with every seed.

    An experiment subclasses it, gives the first two a default, and adds its own.

    Attributes:
        optimizers: Optimizers to compare; ratios of times are over the first.
        learning_rates: Peak learning rates to run, per optimizer.
        seeds: Seeds of the initial weights and of the order of the data.
        final_seeds: Fresh seeds. If there are any, each optimizer runs again with
            them at its best rate, and the optimizers are compared on these runs.
        checkpoint_every: Rounds (epochs or evaluations) between two checkpoints.
        timing_rounds: Rounds per optimizer that measure the time per step; 0: none.
        output_dir: Directory of the results, reports, figures and checkpoints.
        resume: Skip the finished runs found in `output_dir` and continue the
            interrupted one.
    """

    optimizers: tuple[str, ...]
    learning_rates: LearningRates
    seeds: tuple[int, ...] = (42,)
    final_seeds: tuple[int, ...] = ()
    checkpoint_every: int = 1
    timing_rounds: int = 0
    output_dir: str = "runs"
    resume: bool = False

    def __post_init__(self) -> None:
        require_at_least("checkpoint_every", self.checkpoint_every, 1)
        require_at_least("timing_rounds", self.timing_rounds, 0)
        require_seeds("seeds", self.seeds)
        if self.final_seeds:
            require_seeds("final_seeds", self.final_seeds)
            require_fresh(self.final_seeds, self.seeds)
        if not self.output_dir:
            # It would be the directory of the program itself.
            raise ValueError("output_dir must name a directory, got ''.")
        require_distinct("optimizers", self.optimizers)
        for optimizer in self.optimizers:
            require_distinct(
                f"learning_rates.{optimizer}", self.learning_rates.of(optimizer)
            )
