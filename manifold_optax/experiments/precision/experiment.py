"""The `precision` experiment, as the harness runs it."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32
from matplotlib.figure import Figure

import manifold_optax as mo
from manifold_optax.experiments.adversary import largest_change
from manifold_optax.experiments.harness import (
    Cell,
    Curves,
    Experiment,
    finite,
    Metric,
    RunState,
)
from manifold_optax.experiments.input_sets import InBox
from manifold_optax.experiments.lm import train as lm_train
from manifold_optax.experiments.lm.text import load_text, Text
from manifold_optax.experiments.mlp import train as mlp_train
from manifold_optax.experiments.mlp.data import Dataset, Examples, load_dataset
from manifold_optax.experiments.pixel_perceptron import (
    apply_to_pixels,
    HALF,
    make_problem,
    on_pixels,
    OptimizerName,
    Problem,
    shades,
    to_pixels,
)
from manifold_optax.experiments.precision import language, report
from manifold_optax.experiments.precision.config import (
    LANGUAGE_MODEL,
    PERCEPTRON,
    PrecisionConfig,
)
from manifold_optax.experiments.precision.figures import draw_bounds, draw_loss
from manifold_optax.experiments.precision.measured import (
    known,
    logit_size,
    Network,
    outputs,
    round_and_measure,
)
from manifold_optax.experiments.precision.results import RunResult, RunSettings

_TEST_SEQUENCES = 32
"""Sequences of the test text on which the logits of the language model are compared."""


class PrecisionExperiment(Experiment[PrecisionConfig, RunSettings, RunResult]):
    """A perceptron and a language model, rounded; for a round see the configuration.

    Args:
        config: The settings.
        dataset: The images that the perceptron learns, with a validation set.
        text: The text that the language model learns.
    """

    result_type = RunResult

    def __init__(self, config: PrecisionConfig, dataset: Dataset, text: Text):
        self.problem = make_problem(config.task, dataset)
        super().__init__(
            config,
            rounds=config.task.epochs,
            steps_per_round=self.problem.steps_per_epoch,
        )
        self.splits = jax.device_put(
            mlp_train.Splits(dataset.train, dataset.validation, dataset.test)
        )
        self.shades = shades(config.task, dataset)
        self.pixels = to_pixels(np.asarray(dataset.test.images), self.shades)
        self.box = mo.modular.Box(self.pixels[:1], -HALF, HALF)
        self.text = text
        self.language = language.make_problem(config.language, text)
        self.parts = jax.device_put(text.parts)

    @classmethod
    def prepare(cls, config: PrecisionConfig) -> "PrecisionExperiment":
        """Makes the experiment that a configuration describes, with its data."""
        context = config.language.training.context
        text = load_text(config.language.text, context=context)
        return cls(config, load_dataset(config.task.perceptron()), text)

    @property
    def conditions(self) -> Sequence[str]:
        """The two networks."""
        return (PERCEPTRON, LANGUAGE_MODEL)

    def learning_rates_of(self, optimizer: str, condition: str) -> Sequence[float]:
        """Returns the rates of an optimizer; none where it does not train a network."""
        if condition == PERCEPTRON:
            return self.config.learning_rates.of(optimizer)
        chosen = self.config.language
        if optimizer not in chosen.optimizers:
            return ()
        return chosen.learning_rates.of(optimizer)

    def settings(
        self, optimizer: str, learning_rate: float, seed: int, condition: str = ""
    ) -> RunSettings:
        """Returns everything that decides the numbers of one run."""
        config, perceptron = self.config, condition == PERCEPTRON
        task = dataclasses.replace(config.task, data_dir=None)
        return RunSettings(
            condition=condition,
            optimizer=cast("OptimizerName", optimizer),
            learning_rate=learning_rate,
            seed=seed,
            examples=config.examples,
            task=task if perceptron else None,
            language=None if perceptron else config.language,
            digest="" if perceptron else self.text.digest,
        )

    def start(self, settings: RunSettings) -> tuple[Any, RunState]:
        """Draws the initial weights of a run."""
        if settings.condition == PERCEPTRON:
            return mlp_train.start_run(self.problem, settings)
        return lm_train.start_run(self.language, settings)

    def advance(self, settings: RunSettings, inputs: Any, state: RunState) -> RunState:
        """Trains one network for a round."""
        name = settings.optimizer
        if settings.condition == PERCEPTRON:
            return mlp_train.advance(self.problem, name, inputs, self.splits, state)
        return lm_train.advance(self.language, name, inputs, self.parts, state)

    def finish(
        self, settings: RunSettings, state: RunState, seconds: float
    ) -> RunResult:
        """Rounds the trained network in every way, if the run is reported."""
        params, history = state.trainable.params, state.history
        if settings.condition == PERCEPTRON:
            network = self._perceptron(params)
            validation = 100 * (1 - history.validation_accuracy[-1])
            loss = history.loss
        else:
            network = self._language_model(params)
            validation, loss = history.validation_loss[-1], history.steps.loss
        return RunResult(
            settings=settings,
            loss=finite(loss),
            validation_error=known(validation),
            test_error=known(network.error(params)),
            logit_size=known(logit_size(network)),
            rounded=round_and_measure(network) if self._reports(settings) else (),
            seconds=seconds,
        )

    def metrics(self) -> Sequence[Metric[RunResult]]:
        """Errors before rounding; the test set has no say in the best rates."""
        return [
            Metric("validation error", _validation_error, 3, lower_is_better=True),
            Metric("test error", lambda run: run.test_error, 3, lower_is_better=True),
        ]

    @property
    def legend(self) -> str:
        """How to read the table."""
        return report.LEGEND

    def curves(self, result: RunResult) -> Curves:
        """Returns the loss of each step."""
        return {"loss": enumerate(result.loss)}

    def figures(self, best: Mapping[str, Cell[RunResult]]) -> Mapping[str, Figure]:
        """Draws what rounding costs, and the bounds beside what was measured."""
        drawn: dict[str, Figure] = {}
        for condition, cells in report.by_condition(list(best.values())).items():
            name = condition.replace(" ", "_")
            drawn[f"lost_{name}"] = draw_loss(cells, self.color)
            drawn[f"change_{name}"] = draw_bounds(cells, self.color)
        return drawn

    def appendix(self, best: Mapping[str, Cell[RunResult]]) -> Sequence[str]:
        """Returns what each way of rounding costs and changes."""
        return report.rounding_tables(list(best.values()))

    def _reports(self, settings: RunSettings) -> bool:
        """Whether a run is reported, and does not choose a learning rate alone."""
        return settings.seed in (self.config.final_seeds or self.config.seeds)

    def _perceptron(self, params: Any) -> Network:
        box = InBox(-HALF, HALF)
        starts = self.pixels[: self.config.examples]

        def search(inner: Any, updates: Any) -> Array:
            found = largest_change(apply_to_pixels, inner, updates, starts, domain=box)
            return found.value

        return Network(
            params=params,
            roles=None,
            function=apply_to_pixels,
            inner=functools.partial(on_pixels, shade=self.shades),
            data=self.pixels,
            domain=self.box,
            search=search,
            error=lambda own: _percent_wrong(self.problem, own, self.splits.test),
        )

    def _language_model(self, params: Any) -> Network:
        problem, tokens = self.language, self.parts.test
        data = language.sequences(problem, tokens, _TEST_SEQUENCES)
        # The domain has no gradient: random characters are searched instead.
        shape = data.shape
        drawn = jax.random.randint(jax.random.key(0), shape, 0, problem.vocabulary)

        def search(inner: Any, updates: Any) -> Array:
            changed = jax.tree.map(jnp.add, inner, updates)
            both = jnp.concatenate([data, drawn])
            before = outputs(problem.logits, inner, both)
            after = outputs(problem.logits, changed, both)
            return jnp.max(jnp.linalg.norm(after - before, axis=-1))

        return Network(
            params=params,
            roles=problem.roles,
            function=problem.logits,
            inner=lambda own: own,
            data=data,
            domain=jax.ShapeDtypeStruct(data[:1].shape, data.dtype),
            search=search,
            error=lambda own: language.losses(problem, own, self.parts)[1],
        )


@functools.partial(jax.jit, static_argnums=0)
def _percent_wrong(
    problem: Problem, params: Any, examples: Examples
) -> Float32[Array, ""]:
    images, labels = examples
    wrong = jnp.argmax(problem.logits(params, jnp.asarray(images)), -1) != labels
    return 100 * jnp.mean(wrong)


def _validation_error(run: RunResult) -> float | None:
    return run.validation_error
