"""The sweeps as the harness runs them: a condition is a network of one size."""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from manifold_optax.experiments import harness
from manifold_optax.experiments.transfer import report
from manifold_optax.experiments.transfer.config import Config
from manifold_optax.experiments.transfer.data import Data, read_data
from manifold_optax.experiments.transfer.networks import FamilyName, Network
from manifold_optax.experiments.transfer.optimizers import (
    budget_factors,
    budget_of,
    direction_of,
    Factors,
    OptimizerName,
    plain_factors,
)
from manifold_optax.experiments.transfer.records import Result, Settings
from manifold_optax.experiments.transfer.train import Runs, train

_LAST_STEPS = 20
"""Steps at the end whose mean is the training loss of a run."""


class TransferExperiment(harness.BatchedExperiment[Config, Settings, Result]):
    """One sweep over width or depth; a run is one round.

    Args:
        config: The settings.

    Raises:
        ValueError: if the data is not given, or too short for the steps.
        OSError: if it cannot be read.
    """

    result_type = Result

    def __init__(self, config: Config):
        super().__init__(config, rounds=1, steps_per_round=config.steps)
        self._data: dict[FamilyName, Data] = {
            family: read_data(family, config) for family in config.families
        }
        self._networks = {
            f"{family} width={width} depth={depth}": Network(
                family,
                width,
                depth,
                self._data[family].inputs,
                self._data[family].outputs,
            )
            for family in config.families
            for width, depth in _sizes(config)
        }
        self._made: dict[tuple[Any, ...], Result] = {}

    @property
    def conditions(self) -> Sequence[str]:
        """The networks, smallest first, one family after the other."""
        return tuple(self._networks)

    @property
    def ranks_rows(self) -> bool:
        """Rows are in the order of their rates."""
        return False

    @property
    def legend(self) -> str:
        """What the losses are."""
        return (
            f"{self.config.steps} steps of {self.config.batch_size} examples, none "
            f"seen twice. The validation loss is that at the end, of "
            f"{self.config.validation_examples} examples; the training loss is the "
            f"mean of the last {_LAST_STEPS} steps."
        )

    def learning_rates_of(self, optimizer: str, condition: str) -> Sequence[float]:
        """Returns the rates; see `LearningRates` for those of budgets."""
        rates = self.config.learning_rates.of(optimizer)
        if optimizer not in ("nominal", "derived"):
            return rates
        network = self._networks[condition]
        shares = budget_of(optimizer, network, None).shares
        largest = max(max(own) for own in shares.values())
        return [rate * 2.0 ** -round(math.log2(largest)) for rate in rates]

    def settings(
        self, optimizer: str, learning_rate: float, seed: int, condition: str = ""
    ) -> Settings:
        """Returns everything that decides the numbers of one run."""
        config, network = self.config, self._networks[condition]
        return Settings(
            optimizer=cast("OptimizerName", optimizer),
            learning_rate=learning_rate,
            seed=seed,
            family=network.family,
            width=network.width,
            depth=network.depth,
            steps=config.steps,
            batch_size=config.batch_size,
            validation_examples=config.validation_examples,
            context=config.context,
            data=self._data[network.family].digest,
            condition=condition,
        )

    def run_many(self, settings_list: Sequence[Settings]) -> Sequence[Result]:
        """Makes the runs of one optimizer and network by one program.

        Two optimizers may take the same steps: the budgets "nominal" and "derived" in
        some networks, the rules "none" and "width" where no matrix widens. Their runs
        are made once.
        """
        factors = self._factors(settings_list)
        keys = [_key(*pair) for pair in zip(settings_list, factors, strict=True)]
        new = [k for k, key in enumerate(keys) if key not in self._made]
        if new:
            chosen = [settings_list[k] for k in new]
            made = self._train(chosen, [factors[k] for k in new])
            self._made.update(zip([keys[k] for k in new], made, strict=True))
        return [
            dataclasses.replace(self._made[key], settings=settings)
            for key, settings in zip(keys, settings_list, strict=True)
        ]

    def metrics(self) -> Sequence[harness.Metric[Result]]:
        """The validation loss, which chooses the best rates, and the training loss."""
        return (
            harness.Metric("validation loss", lambda r: r.validation_loss, 4, True),
            harness.Metric("training loss", lambda r: r.train_loss, 4, True),
        )

    def grid_appendix(self, cells: Sequence[harness.Cell[Result]]) -> Sequence[str]:
        """Returns the table of shifts, and all losses once more, in short."""
        shifts = report.format_shifts(cells, self.config.sweep)
        return [*shifts, *report.format_grid(cells)]

    def grid_figures(
        self, cells: Sequence[harness.Cell[Result]]
    ) -> Mapping[str, Figure]:
        """Draws the best rate against the size."""
        return {"shifts": report.draw_shifts(cells, self.config.sweep, self.color)}

    def _factors(self, settings_list: Sequence[Settings]) -> list[Factors]:
        """Returns the factors of the updates of each run, with its learning rate."""
        first = settings_list[0]
        network = self._networks[first.condition]
        shared = None
        if direction_of(first.optimizer) == "modular":
            batch = self._data[first.family].train.inputs[: self.config.batch_size]
            at = self.config.seeds[0], batch
            budget = budget_of(first.optimizer, network, at)
            root = first.optimizer == "tared"
            shared = budget_factors(budget, network, root=root)
        found: list[Factors] = []
        for one in settings_list:
            rate = np.float32(one.learning_rate)
            own = shared or plain_factors(one.optimizer, network, one.learning_rate)
            found.append({name: np.asarray(rate * leaf) for name, leaf in own.items()})
        return found

    def _train(
        self, settings_list: Sequence[Settings], factors: Sequence[Factors]
    ) -> list[Result]:
        network = self._networks[settings_list[0].condition]
        data = self._data[network.family]
        stacked = lambda trees: jax.tree.map(lambda *own: np.stack(own), *trees)
        runs = Runs(
            stacked([network.draw(one.seed) for one in settings_list]),
            stacked(factors),
            np.stack([data.order(one) for one in settings_list]),
        )
        started = time.perf_counter()
        measured = train(
            *jax.tree.map(jnp.asarray, (runs, data.train, data.validation)),
            network=network,
            direction=direction_of(settings_list[0].optimizer),
        )
        columns = (
            harness.finite(measured.validation_loss),
            harness.finite(measured.train_loss[:, -_LAST_STEPS:].mean(axis=1)),
            harness.finite(measured.output_rms),
        )
        seconds = (time.perf_counter() - started) / len(settings_list)
        rows = zip(settings_list, *columns, strict=True)
        return [Result(*row, seconds) for row in rows]


def _sizes(config: Config) -> list[tuple[int, int]]:
    """Widths and depths of the networks."""
    if config.sweep == "width":
        return [(size, config.other_size) for size in config.sizes]
    return [(config.other_size, size) for size in config.sizes]


def _key(settings: Settings, factors: Factors) -> tuple[Any, ...]:
    steps = tuple((name, leaf.tobytes()) for name, leaf in factors.items())
    return settings.condition, direction_of(settings.optimizer), settings.seed, steps
