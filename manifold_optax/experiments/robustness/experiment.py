"""The `robustness` experiment, as the harness runs it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32
from matplotlib.figure import Figure

import manifold_optax as mo
from manifold_optax.experiments.adversary import Effort, largest_ratio
from manifold_optax.experiments.harness import (
    Cell,
    Curves,
    Experiment,
    finite,
    LARGEST_STEPS,
    Metric,
    require_at_least,
    RunState,
)
from manifold_optax.experiments.input_sets import InBox
from manifold_optax.experiments.mlp import train
from manifold_optax.experiments.mlp.data import Dataset, load_dataset
from manifold_optax.experiments.pixel_perceptron import (
    apply_to_pixels,
    HALF,
    make_problem,
    on_pixels,
    OptimizerName,
    shades,
    to_pixels,
)
from manifold_optax.experiments.robust_accuracy import (
    attack_standing,
    robustness_curves,
)
from manifold_optax.experiments.robustness import report
from manifold_optax.experiments.robustness.config import RobustnessConfig
from manifold_optax.experiments.robustness.figures import (
    draw_frontier,
    draw_robustness,
)
from manifold_optax.experiments.robustness.results import RunResult, RunSettings

PIXELS = InBox(-HALF, HALF)

# Images from which the steepest place is looked for; more find nothing steeper.
_RATIO_EXAMPLES = 64


class RobustnessExperiment(Experiment[RobustnessConfig, RunSettings, RunResult]):
    """One perceptron on one data set, attacked at the end; a round is an epoch.

    Args:
        config: The settings.
        dataset: The data they name, with a validation set.

    Raises:
        ValueError: if a run would have too many steps.
    """

    result_type = RunResult

    def __init__(self, config: RobustnessConfig, dataset: Dataset):
        self.problem = make_problem(config.task, dataset)
        super().__init__(
            config,
            rounds=config.task.epochs,
            steps_per_round=self.problem.steps_per_epoch,
        )
        require_at_least(
            "the number of steps (epochs · examples / batch_size)",
            self.problem.steps,
            1,
            highest=LARGEST_STEPS,
        )
        self.splits = jax.device_put(
            train.Splits(dataset.train, dataset.validation, dataset.test)
        )
        self.shades = shades(config.task, dataset)
        count = config.attack.examples
        images = np.asarray(dataset.test.images[:count])
        self.pixels = to_pixels(images, self.shades)
        self.labels = np.asarray(dataset.test.labels[:count])

    @classmethod
    def prepare(cls, config: RobustnessConfig) -> "RobustnessExperiment":
        """Makes the experiment that a configuration describes, with its data."""
        return cls(config, load_dataset(config.task.perceptron()))

    def settings(
        self, optimizer: str, learning_rate: float, seed: int, condition: str = ""
    ) -> RunSettings:
        """Returns everything that decides the numbers of one run."""
        return RunSettings(
            optimizer=cast("OptimizerName", optimizer),
            learning_rate=learning_rate,
            seed=seed,
            task=dataclasses.replace(self.config.task, data_dir=None),
            attack=self.config.attack,
            condition=condition,
        )

    def start(self, settings: RunSettings) -> tuple[train.RunInputs, RunState]:
        """Draws the initial weights of a run."""
        return train.start_run(self.problem, settings)

    def advance(
        self, settings: RunSettings, inputs: train.RunInputs, state: RunState
    ) -> RunState:
        """Trains for one epoch and evaluates."""
        return train.advance(
            self.problem, settings.optimizer, inputs, self.splits, state
        )

    def finish(
        self, settings: RunSettings, state: RunState, seconds: float
    ) -> RunResult:
        """Certifies and attacks the trained network on test images."""
        history, attack = state.history, settings.attack
        params = on_pixels(state.trainable.params, self.shades)
        key = jax.random.key(settings.seed)
        bound, radii = _certify(params, self.pixels, jnp.asarray(self.labels))
        standing = attack_standing(
            apply_to_pixels,
            params,
            (self.pixels, self.labels),
            attack.radii,
            key,
            effort=Effort(attack.steps, attack.restarts),
            box=PIXELS,
        )
        steepest = largest_ratio(
            apply_to_pixels, params, self.pixels[:_RATIO_EXAMPLES], key, domain=PIXELS
        )
        curves = robustness_curves(np.asarray(radii), standing, attack.radii)
        [lipschitz, ratio] = finite(np.array([bound, steepest.value], np.float64))
        return RunResult(
            settings=settings,
            loss=finite(history.loss),
            validation_accuracy=float(history.validation_accuracy[-1]),
            test_accuracy=float(history.test_accuracy[-1]),
            certified=curves.certified,
            attacked=curves.attacked,
            violations=curves.violations,
            lipschitz=lipschitz,
            steepest=ratio,
            seconds=seconds,
        )

    def metrics(self) -> Sequence[Metric[RunResult]]:
        """Accuracies; the test set has no say in the best rates."""
        return [
            Metric("validation %", lambda run: 100 * run.validation_accuracy),
            Metric("test %", lambda run: 100 * run.test_accuracy),
            Metric("Lipschitz bound", lambda run: run.lipschitz),
            Metric("steepest found", lambda run: run.steepest),
        ]

    @property
    def legend(self) -> str:
        """How to read the table."""
        return report.legend(self.config.attack)

    def columns(self, cell: Cell[RunResult]) -> Mapping[str, str]:
        """Returns certified and attacked accuracy at some radii."""
        return report.columns(cell)

    def curves(self, result: RunResult) -> Curves:
        """Returns the loss of each step."""
        return {"loss": enumerate(result.loss)}

    def figures(self, best: Mapping[str, Cell[RunResult]]) -> Mapping[str, Figure]:
        """Draws certified and attacked accuracy against the radius."""
        return {"robustness": draw_robustness(list(best.values()), self.color)}

    def grid_figures(self, cells: Sequence[Cell[RunResult]]) -> Mapping[str, Figure]:
        """Draws the same at equal clean accuracy, and robustness against accuracy."""
        matched = report.matched_cells(cells, self.metrics()[0])
        return {
            "equal_accuracy": draw_robustness(matched, self.color),
            "frontier": draw_frontier(cells, self.color),
        }

    def appendix(self, best: Mapping[str, Cell[RunResult]]) -> Sequence[str]:
        """Returns the curves at the best rates, and which differences are real."""
        return report.at_best_rates(list(best.values()), self.config.attack)

    def grid_appendix(self, cells: Sequence[Cell[RunResult]]) -> Sequence[str]:
        """Returns the curves at equal clean accuracy, and whether a proof failed."""
        matched = report.matched_cells(cells, self.metrics()[0])
        return report.at_equal_accuracy(matched, cells)


@jax.jit
def _certify(
    params: Any, pixels: Float[Array, "n d"], labels: Int32[Array, " n"]
) -> tuple[Float32[Array, ""], Float32[Array, " n"]]:
    """Returns the Lipschitz bound, and the radius of each image."""
    bound = mo.modular.lipschitz_bound(apply_to_pixels, params, pixels[:1])
    radii = mo.modular.certified_radius(apply_to_pixels, params, pixels, labels)
    return bound, radii
