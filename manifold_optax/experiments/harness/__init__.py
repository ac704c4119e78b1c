"""The harness of experiments: a grid of runs, resumed, recorded and reported, once.

`Experiment` or `BatchedExperiment` is what an experiment writes, `Command` how it is
started. The rest is what it may use: settings, states, records, and figures that look
alike.
"""

from manifold_optax.experiments.harness.batched import BatchedExperiment
from manifold_optax.experiments.harness.cells import (
    best_cells,
    Cell,
    group_by_cell,
    group_by_condition,
    Metric,
)
from manifold_optax.experiments.harness.checks import (
    LARGEST_STEPS,
    require_at_least,
    require_distinct,
    require_positive,
)
from manifold_optax.experiments.harness.command_line import Command
from manifold_optax.experiments.harness.config import GridConfig, LearningRates
from manifold_optax.experiments.harness.experiment import (
    Curves,
    Experiment,
    GridExperiment,
)
from manifold_optax.experiments.harness.figures import add_legend, panels
from manifold_optax.experiments.harness.output import UnusableOutputError
from manifold_optax.experiments.harness.page import Origin
from manifold_optax.experiments.harness.protocol import compare, Comparison
from manifold_optax.experiments.harness.records import file_name, finite
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
    "BatchedExperiment",
    "Cell",
    "Command",
    "Comparison",
    "Curves",
    "Experiment",
    "GridConfig",
    "GridExperiment",
    "LearningRates",
    "Metric",
    "Origin",
    "RunInputs",
    "RunState",
    "Trainable",
    "UnusableOutputError",
    "add_legend",
    "best_cells",
    "compare",
    "file_name",
    "finite",
    "first_state",
    "format_spread",
    "group_by_cell",
    "group_by_condition",
    "panels",
    "require_at_least",
    "require_distinct",
    "require_positive",
    "run_experiment",
    "run_inputs",
    "unknown",
)
