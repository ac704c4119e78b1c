"""What an experiment is to the harness: the one class that a new one writes.

The harness makes a grid of runs: every optimizer at each of its learning rates with
every seed, in every condition. A run is a number of rounds. The harness continues what
was interrupted, records what is finished, and reports all of it. An experiment says
what a round is, what of it is recorded, and what of the records is shown.

Three examples of a round: an epoch over a data set, then the accuracies; a hundred
steps of a language model, then its losses; one step on a quadratic function, then the
distance from its optimum.

An experiment is a folder beside `harness` whose `__init__.py` holds a `COMMAND`
(see `command_line`). Nothing else has to know of it.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

from matplotlib.figure import Figure

from manifold_optax.experiments.harness.cells import Cell, Metric
from manifold_optax.experiments.harness.config import GridConfig
from manifold_optax.experiments.harness.records import RunResult, RunSettings
from manifold_optax.experiments.harness.state import RunState

Config = TypeVar("Config", bound=GridConfig)
Settings = TypeVar("Settings", bound=RunSettings)
Result = TypeVar("Result", bound=RunResult)

Curves: TypeAlias = Mapping[str, Iterable[tuple[int, float | None]]]
"""(step, value) pairs by name; None is a value that was not finite."""


class GridExperiment(abc.ABC, Generic[Config, Settings, Result]):
    """One experiment with its settings and data, whichever way its runs are made.

    What is abstract must be given. What has a default may be given: how runs are shown
    beside the table and the figure that every experiment has. Derive from `Experiment`,
    or from `BatchedExperiment`, which say how runs are made.

    Args:
        config: The settings.
        rounds: Rounds per run.
        steps_per_round: Steps per round; the progress bar and the times count them.
    """

    result_type: type[Result]
    """The dataclass of a result; its annotations check what is read."""

    def __init__(self, config: Config, *, rounds: int, steps_per_round: int):
        self.config = config
        self.rounds = rounds
        self.steps_per_round = steps_per_round

    @abc.abstractmethod
    def settings(
        self, optimizer: str, learning_rate: float, seed: int, condition: str = ""
    ) -> Settings:
        """Returns everything that decides the numbers of one run."""

    @abc.abstractmethod
    def metrics(self) -> Sequence[Metric[Result]]:
        """Returns the numbers that are compared; the first selects the best rates."""

    @property
    def conditions(self) -> Sequence[str]:
        """Names of the conditions in which the whole grid runs.

        The sizes of a model, for example: `"width=128 depth=4"`. Optimizers are
        compared, and their best rates chosen, within each.
        """
        return ("",)

    def learning_rates_of(self, optimizer: str, condition: str) -> Sequence[float]:
        """Returns the rates of an optimizer in a condition; by default in all alike."""
        del condition
        return self.config.learning_rates.of(optimizer)

    @property
    def ranks_rows(self) -> bool:
        """Whether the table puts the best rows first, rather than in their order."""
        return True

    @property
    def legend(self) -> str:
        """Sentences below the table that say how to read it."""
        return ""

    def columns(self, cell: Cell[Result]) -> Mapping[str, str]:
        """Returns further columns of the table, by title."""
        del cell
        return {}

    def curves(self, result: Result) -> Curves:
        """Returns what TensorBoard shows of a finished run."""
        del result
        return {}

    def figures(self, best: Mapping[str, Cell[Result]]) -> Mapping[str, Figure]:
        """Returns further figures, by file name, of the best rate of each optimizer.

        Args:
            best: Cells by `Cell.name`: those of the final seeds where there are any.
        """
        del best
        return {}

    def grid_figures(self, cells: Sequence[Cell[Result]]) -> Mapping[str, Figure]:
        """Returns further figures, by file name, of the whole grid."""
        del cells
        return {}

    def appendix(self, best: Mapping[str, Cell[Result]]) -> Sequence[str]:
        """Returns further lines of the report.

        Args:
            best: Cells by `Cell.name`: those of the final seeds where there are any.
        """
        del best
        return ()

    def grid_appendix(self, cells: Sequence[Cell[Result]]) -> Sequence[str]:
        """Returns further lines of the report, on the whole grid."""
        del cells
        return ()

    def timed_round(self, optimizer: str) -> Callable[[], object] | None:
        """Returns a function that runs the steps of one round; None: no times."""
        del optimizer
        return None

    def color(self, optimizer: str) -> str:
        """Returns the color of an optimizer: the same one in every figure."""
        names = [field.name for field in dataclasses.fields(self.config.learning_rates)]
        return f"C{names.index(optimizer)}"


class Experiment(GridExperiment[Config, Settings, Result]):
    """An experiment that makes its runs one by one, in rounds, with checkpoints."""

    @abc.abstractmethod
    def start(self, settings: Settings) -> tuple[Any, RunState]:
        """Returns the inputs of a run and its state before the first round."""

    @abc.abstractmethod
    def advance(self, settings: Settings, inputs: Any, state: RunState) -> RunState:
        """Advances a run by one round.

        Call a compiled function that takes learning rate and seed as arrays, so that
        the runs of one optimizer share its program.
        """

    @abc.abstractmethod
    def finish(self, settings: Settings, state: RunState, seconds: float) -> Result:
        """Returns what a finished run measured, in plain values."""
