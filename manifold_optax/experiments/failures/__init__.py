"""The `failures` experiment: which small trainings fail with which optimizer.

About twenty tasks, each with one known difficulty and a threshold that was fixed
beforehand, are run by every optimizer with the same tuning budget. The report counts
the seeds that pass.
"""

from manifold_optax.experiments.failures.experiment import Config, FailuresExperiment
from manifold_optax.experiments.harness import Command

COMMAND = Command(
    help="which small trainings fail",
    description=(
        "Runs small tasks, each with one known difficulty, and reports how many seeds "
        "of each optimizer pass the threshold of the task."
    ),
    default=Config(),
    prepare=FailuresExperiment,
)

__all__ = ("COMMAND", "Config", "FailuresExperiment")
