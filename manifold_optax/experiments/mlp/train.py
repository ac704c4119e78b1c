"""Training as pure functions: one program advances a run by one epoch.

A run is one tree of arrays, `RunState`. The whole epoch (its steps, its evaluation,
the bookkeeping) is a function of that tree, compiled once per optimizer and shared by
all learning rates and seeds. A run that is restored from a checkpoint goes through the
same program and ends bit-identical.
"""

import dataclasses
import functools
from typing import Any, cast, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Float32, Int32, Key

from manifold_optax.experiments import harness
from manifold_optax.experiments.harness.records import RunSettings
from manifold_optax.experiments.mlp.config import MlpConfig, OptimizerName
from manifold_optax.experiments.mlp.data import Dataset, Examples
from manifold_optax.experiments.mlp.model import MLP
from manifold_optax.experiments.mlp.optimizers import Recipe, recipe


class Splits(NamedTuple):
    """The parts of a data set, on the device."""

    train: Examples
    validation: Examples | None
    test: Examples


class Batch(NamedTuple):
    """Numbers of the examples of each step, and their weights in its loss."""

    indices: Int32[Array, "*steps batch"]
    weights: Float32[Array, "*steps batch"]


class StepRecord(NamedTuple):
    """What a run records of each step.

    Attributes:
        loss: Training loss.
        residual: Largest distance of any matrix from its manifold; nan without one.
    """

    loss: Float32[Array, " *steps"]
    residual: Float32[Array, " *steps"]


class History(NamedTuple):
    """What a run records; entries that are not reached yet are nan."""

    loss: Float32[Array, " steps"]
    residual: Float32[Array, " steps"]
    train_accuracy: Float32[Array, " epochs"]
    validation_accuracy: Float32[Array, " epochs"]
    test_accuracy: Float32[Array, " epochs"]


class RunInputs(NamedTuple):
    """What distinguishes the runs of one program.

    Attributes:
        shared: Learning rate and key.
        initial_norms: Frobenius norm of each matrix at the start.
    """

    shared: harness.RunInputs
    initial_norms: Any


@dataclasses.dataclass(frozen=True)
class Problem:
    """The model and the sizes that all runs of an experiment share.

    Attributes:
        graph: Structure of the model; with the kernels it makes the model.
        layer_sizes: Numbers of inputs, hidden units and outputs.
        examples: Number of training examples.
        batch_size: Examples per step.
        epochs: Epochs per run.
        weight_decay: Weight decay of AdamW.
    """

    graph: nnx.GraphDef[MLP]
    layer_sizes: tuple[int, ...]
    examples: int
    batch_size: int
    epochs: int
    weight_decay: float

    @property
    def steps_per_epoch(self) -> int:
        """Steps per epoch; the last one takes the examples that are left."""
        return -(-self.examples // self.batch_size)

    @property
    def steps(self) -> int:
        """Steps per run."""
        return self.epochs * self.steps_per_epoch

    def recipe(self, optimizer: str) -> Recipe:
        """Returns the recipe of an optimizer; a subclass may know more of them."""
        name = cast("OptimizerName", optimizer)
        return recipe(name, weight_decay=self.weight_decay)

    def logits(self, params: Any, images: Float[Array, "n d"]) -> Float[Array, "n c"]:
        """Applies the model."""
        return nnx.merge(self.graph, params)(images)

    def schedule(self, peak: Float32[Array, ""]) -> optax.Schedule:
        """Returns the linear decay from `peak` to zero over the whole run."""
        return optax.linear_schedule(peak, 0.0, self.steps)


def make_problem(config: MlpConfig, dataset: Dataset) -> Problem:
    """Returns the problem that a configuration poses on a data set."""
    sizes = (dataset.train.images.shape[1], *config.hidden, dataset.classes)
    abstract = nnx.eval_shape(lambda: MLP(sizes, rngs=nnx.Rngs(0)))
    return Problem(
        graph=nnx.graphdef(abstract),
        layer_sizes=sizes,
        examples=len(dataset.train.labels),
        batch_size=config.batch_size,
        epochs=config.epochs,
        weight_decay=config.weight_decay,
    )


def start_run(
    problem: Problem, settings: RunSettings
) -> tuple[RunInputs, harness.RunState]:
    """Draws the initial weights of a run.

    Args:
        problem: The problem.
        settings: Gives optimizer, learning rate and seed.

    Returns:
        The inputs of the run and its state before the first epoch.
    """
    chosen = problem.recipe(settings.optimizer)
    state = nnx.state(MLP(problem.layer_sizes, rngs=nnx.Rngs(settings.seed)))
    params = chosen.project(nnx.to_pure_dict(state))
    inputs = RunInputs(
        harness.run_inputs(settings),
        initial_norms=jax.tree.map(jnp.linalg.norm, params),
    )
    transform = chosen.build(problem.schedule(inputs.shared.learning_rate))
    history = History(
        loss=harness.unknown(problem.steps),
        residual=harness.unknown(problem.steps),
        train_accuracy=harness.unknown(problem.epochs),
        validation_accuracy=harness.unknown(problem.epochs),
        test_accuracy=harness.unknown(problem.epochs),
    )
    return inputs, harness.first_state(params, transform.init(params), history)


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames="monitor")
def train_epoch(
    problem: Problem,
    optimizer: str,
    inputs: RunInputs,
    train: Examples,
    start: tuple[Int32[Array, ""], harness.Trainable],
    *,
    monitor: bool,
) -> tuple[harness.Trainable, StepRecord]:
    """Makes the steps of one epoch.

    Args:
        problem: The problem.
        optimizer: The optimizer.
        inputs: What distinguishes the run.
        train: The training set.
        start: Number of the epoch, and what is trained.
        monitor: Whether to record the distance from the manifold after each step;
            leave it out where steps are timed.

    Returns:
        What is trained, and the record of each step.
    """
    chosen = problem.recipe(optimizer)
    transform = chosen.build(problem.schedule(inputs.shared.learning_rate))

    def step(
        carried: harness.Trainable, batch: Batch
    ) -> tuple[harness.Trainable, StepRecord]:
        loss, gradient = jax.value_and_grad(_weighted_loss, argnums=1)(
            problem,
            carried.params,
            train.images[batch.indices],
            train.labels[batch.indices],
            batch.weights,
        )
        updates, opt_state = transform.update(
            gradient, carried.opt_state, carried.params
        )
        params = optax.apply_updates(carried.params, updates)
        residual = jnp.full((), jnp.nan, jnp.float32)
        if monitor and chosen.residuals is not None:
            residuals = chosen.residuals(params, inputs.initial_norms)
            residual = jnp.max(jnp.stack(jax.tree.leaves(residuals)))
        return harness.Trainable(params, opt_state), StepRecord(loss, residual)

    epoch, trainable = start
    key = jax.random.fold_in(inputs.shared.key, epoch)
    return jax.lax.scan(step, trainable, _batches(problem, key))


@functools.partial(jax.jit, static_argnums=(0, 1))
def advance(
    problem: Problem,
    optimizer: str,
    inputs: RunInputs,
    splits: Splits,
    state: harness.RunState,
) -> harness.RunState:
    """Returns the state of a run after one more epoch, evaluated."""
    epoch, history = state.round, state.history
    trainable, (loss, residual) = train_epoch(
        problem, optimizer, inputs, splits.train, (epoch, state.trainable), monitor=True
    )
    first = epoch * problem.steps_per_epoch

    def record(
        accuracy: Float32[Array, " epochs"], examples: Examples | None
    ) -> Float32[Array, " epochs"]:
        if examples is None:
            return accuracy
        return accuracy.at[epoch].set(_accuracy(problem, trainable.params, examples))

    update = jax.lax.dynamic_update_slice
    return harness.RunState(
        round=epoch + 1,
        trainable=trainable,
        history=History(
            loss=update(history.loss, loss, (first,)),
            residual=update(history.residual, residual, (first,)),
            train_accuracy=record(history.train_accuracy, splits.train),
            validation_accuracy=record(history.validation_accuracy, splits.validation),
            test_accuracy=record(history.test_accuracy, splits.test),
        ),
    )


def _batches(problem: Problem, key: Key[Array, ""]) -> Batch:
    """Shuffles the examples into batches of indices and weights.

    The last batch is filled up with examples of weight zero, so that it has the shape
    of the others but the loss and gradient of its own examples alone.
    """
    shape = (problem.steps_per_epoch, problem.batch_size)
    padding = shape[0] * shape[1] - problem.examples
    order = jax.random.permutation(key, problem.examples)
    weights = jnp.ones(problem.examples, jnp.float32)
    return Batch(
        jnp.pad(order, (0, padding)).reshape(shape),
        jnp.pad(weights, (0, padding)).reshape(shape),
    )


def _weighted_loss(
    problem: Problem,
    params: Any,
    images: Float[Array, "b d"],
    labels: Int32[Array, " b"],
    weights: Float32[Array, " b"],
) -> Float32[Array, ""]:
    losses = optax.softmax_cross_entropy_with_integer_labels(
        problem.logits(params, images), labels
    )
    return jnp.sum(weights * losses) / jnp.sum(weights)


def _accuracy(problem: Problem, params: Any, examples: Examples) -> Float32[Array, ""]:
    predicted = jnp.argmax(problem.logits(params, jnp.asarray(examples.images)), -1)
    return jnp.mean(predicted == examples.labels)
