"""Experiments whose runs are so short that many of them go through one program."""

import abc
from collections.abc import Sequence
from typing import TypeVar

from manifold_optax.experiments.harness.config import GridConfig
from manifold_optax.experiments.harness.experiment import GridExperiment
from manifold_optax.experiments.harness.records import RunResult, RunSettings

Config = TypeVar("Config", bound=GridConfig)
Settings = TypeVar("Settings", bound=RunSettings)
Result = TypeVar("Result", bound=RunResult)


class BatchedExperiment(GridExperiment[Config, Settings, Result]):
    """An experiment that makes all runs of an optimizer in a condition at once.

    It writes `run_many` in place of `start`, `advance` and `finish`: one compiled
    program, mapped over learning rates and seeds with `jax.vmap`. It is for runs of
    seconds. A batch has no checkpoints, so that an interrupted one starts again;
    finished runs are skipped.
    """

    @abc.abstractmethod
    def run_many(self, settings_list: Sequence[Settings]) -> Sequence[Result]:
        """Makes runs that differ in learning rate and seed alone.

        Args:
            settings_list: Their settings: all rates and seeds of one optimizer in one
                condition, or those that are not finished yet.

        Returns:
            One result per settings, in their order.
        """
