"""The harness of experiments: a grid of runs, resumed, recorded and reported, once.

`Experiment` is what an experiment writes, `Command` how it is started. The rest is what
it may use: settings, states, records, and figures that look alike.
"""

from manifold_optax.experiments.harness.cells import (
    best_cells,
    Cell,
    group_by_cell,
    Metric,
)
from manifold_optax.experiments.harness.checks import (
    LARGEST_STEPS,
    require_at_least,
    require_positive,
)
from manifold_optax.experiments.harness.command_line import Command
from manifold_optax.experiments.harness.config import GridConfig, LearningRates
from manifold_optax.experiments.harness.experiment import Curves, Experiment
from manifold_optax.experiments.harness.figures import add_legend, panels
from manifold_optax.experiments.harness.output import UnusableOutputError
from manifold_optax.experiments.harness.records import finite
from manifold_optax.experiments.harness.runs import run_experiment
from manifold_optax.experiments.harness.state import (
    first_state,
    run_inputs,
    RunInputs,
    RunState,
    Trainable,
    unknown,
)
from manifold_optax.experiments.harness.table import format_spread

__all__ = (
    "LARGEST_STEPS",
    "Cell",
    "Command",
    "Curves",
    "Experiment",
    "GridConfig",
    "LearningRates",
    "Metric",
    "RunInputs",
    "RunState",
    "Trainable",
    "UnusableOutputError",
    "add_legend",
    "best_cells",
    "finite",
    "first_state",
    "format_spread",
    "group_by_cell",
    "panels",
    "require_at_least",
    "require_positive",
    "run_experiment",
    "run_inputs",
    "unknown",
)
