"""Training as pure functions: one program advances a run by one epoch.

A run is one tree of arrays, `RunState`. The whole epoch (its steps, its evaluation,
the bookkeeping) is a function of that tree, compiled once per optimizer and shared by
all learning rates and seeds; so a run that is restored from a checkpoint goes through
the same program and ends bit-identical.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Float32, Int32, Key

import manifold_optax as mo
from manifold_optax.experiments.config import MlpConfig
from manifold_optax.experiments.data import Dataset, Examples
from manifold_optax.experiments.models import MLP
from manifold_optax.experiments.optimizers import Recipe, Residual


class Splits(NamedTuple):
    """The parts of a data set, on the device."""

    train: Examples
    validation: Examples | None
    test: Examples


class Trainable(NamedTuple):
    """What a step changes."""

    params: Any
    opt_state: Any


class History(NamedTuple):
    """What a run records; entries that are not reached yet are nan."""

    loss: Float32[Array, " steps"]
    residual: Float32[Array, " steps"]
    train_accuracy: Float32[Array, " epochs"]
    validation_accuracy: Float32[Array, " epochs"]
    test_accuracy: Float32[Array, " epochs"]


class RunState(NamedTuple):
    """Everything that a run carries from one epoch to the next."""

    epoch: Int32[Array, ""]
    trainable: Trainable
    history: History


class RunInputs(NamedTuple):
    """What distinguishes the runs of one program."""

    learning_rate: Float32[Array, ""]
    key: Key[Array, ""]
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
    """

    graph: nnx.GraphDef[MLP]
    layer_sizes: tuple[int, ...]
    examples: int
    batch_size: int
    epochs: int

    @property
    def steps_per_epoch(self) -> int:
        """Steps per epoch; the last one takes the examples that are left."""
        return -(-self.examples // self.batch_size)

    def logits(self, params: Any, images: Float[Array, "n d"]) -> Float[Array, "n c"]:
        """Applies the model."""
        return nnx.merge(self.graph, params)(images)

    def schedule(self, peak: Float32[Array, ""]) -> optax.Schedule:
        """Returns the linear decay from `peak` to zero over the whole run."""
        return optax.linear_schedule(peak, 0.0, self.epochs * self.steps_per_epoch)


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
    )


def start_run(
    problem: Problem, recipe: Recipe, *, learning_rate: float, seed: int
) -> tuple[RunInputs, RunState]:
    """Draws the initial weights of a run.

    Args:
        problem: The problem.
        recipe: The optimizer; its manifold receives the weights.
        learning_rate: Peak learning rate.
        seed: Seed of the weights and of the order of the examples.

    Returns:
        The inputs of the run and its state before the first epoch.
    """
    state = nnx.state(MLP(problem.layer_sizes, rngs=nnx.Rngs(seed)))
    params = nnx.to_pure_dict(state)
    if recipe.manifold is not None:
        params = mo.project(params, recipe.manifold)
    inputs = RunInputs(
        learning_rate=jnp.asarray(learning_rate, jnp.float32),
        key=jax.random.key(seed),
        initial_norms=jax.tree.map(jnp.linalg.norm, params),
    )
    transform = recipe.build(problem.schedule(inputs.learning_rate))
    steps = problem.epochs * problem.steps_per_epoch
    return inputs, RunState(
        epoch=jnp.zeros((), jnp.int32),
        trainable=Trainable(params, transform.init(params)),
        history=History(
            loss=jnp.full(steps, jnp.nan, jnp.float32),
            residual=jnp.full(steps, jnp.nan, jnp.float32),
            train_accuracy=jnp.full(problem.epochs, jnp.nan, jnp.float32),
            validation_accuracy=jnp.full(problem.epochs, jnp.nan, jnp.float32),
            test_accuracy=jnp.full(problem.epochs, jnp.nan, jnp.float32),
        ),
    )


def train_epoch(
    problem: Problem, recipe: Recipe, *, monitor: bool
) -> Callable[
    [RunInputs, Examples, Int32[Array, ""], Trainable],
    tuple[Trainable, tuple[Float32[Array, " steps"], Float32[Array, " steps"]]],
]:
    """Returns the pure function that makes the steps of one epoch.

    Args:
        problem: The problem.
        recipe: The optimizer.
        monitor: Whether to record the distance from the manifold after each step;
            leave it out where steps are timed.

    Returns:
        A function of the run's inputs, the training set, the epoch and what is
        trained. It returns what is trained, and the loss and the largest residual of
        any matrix, per step.
    """

    def run_epoch(
        inputs: RunInputs,
        train: Examples,
        epoch: Int32[Array, ""],
        trainable: Trainable,
    ) -> tuple[Trainable, tuple[Float32[Array, " steps"], Float32[Array, " steps"]]]:
        transform = recipe.build(problem.schedule(inputs.learning_rate))

        def step(
            carried: Trainable, batch: tuple[Int32[Array, " b"], Float32[Array, " b"]]
        ) -> tuple[Trainable, tuple[Float32[Array, ""], Float32[Array, ""]]]:
            indices, weights = batch
            loss, gradient = jax.value_and_grad(_weighted_loss, argnums=1)(
                problem,
                carried.params,
                train.images[indices],
                train.labels[indices],
                weights,
            )
            updates, opt_state = transform.update(
                gradient, carried.opt_state, carried.params
            )
            params = optax.apply_updates(carried.params, updates)
            residual = jnp.full((), jnp.nan, jnp.float32)
            if monitor and recipe.residual is not None:
                residual = _largest_residual(
                    recipe.residual, params, inputs.initial_norms
                )
            return Trainable(params, opt_state), (loss, residual)

        key = jax.random.fold_in(inputs.key, epoch)
        return jax.lax.scan(step, trainable, _batches(problem, key))

    return run_epoch


def advance(
    problem: Problem, recipe: Recipe
) -> Callable[[RunInputs, Splits, RunState], RunState]:
    """Returns the pure function that advances a run by one epoch.

    Args:
        problem: The problem.
        recipe: The optimizer.

    Returns:
        A function of the run's inputs, the data and the run's state. It trains for
        one epoch, evaluates, and returns the next state.
    """
    run_epoch = train_epoch(problem, recipe, monitor=True)

    def advance_run(inputs: RunInputs, splits: Splits, state: RunState) -> RunState:
        epoch, history = state.epoch, state.history
        trainable, (loss, residual) = run_epoch(
            inputs, splits.train, epoch, state.trainable
        )
        first = epoch * problem.steps_per_epoch

        def record(
            accuracy: Float32[Array, " epochs"], examples: Examples | None
        ) -> Float32[Array, " epochs"]:
            if examples is None:
                return accuracy
            return accuracy.at[epoch].set(
                _accuracy(problem, trainable.params, examples)
            )

        return RunState(
            epoch=epoch + 1,
            trainable=trainable,
            history=History(
                loss=jax.lax.dynamic_update_slice(history.loss, loss, (first,)),
                residual=jax.lax.dynamic_update_slice(
                    history.residual, residual, (first,)
                ),
                train_accuracy=record(history.train_accuracy, splits.train),
                validation_accuracy=record(
                    history.validation_accuracy, splits.validation
                ),
                test_accuracy=record(history.test_accuracy, splits.test),
            ),
        )

    return advance_run


def _batches(
    problem: Problem, key: Key[Array, ""]
) -> tuple[Int32[Array, "steps batch"], Float32[Array, "steps batch"]]:
    """Shuffles the examples into batches of indices and weights.

    The last batch is filled up with examples of weight zero, so that it has the shape
    of the others but the loss and gradient of its own examples alone.
    """
    shape = (problem.steps_per_epoch, problem.batch_size)
    padding = shape[0] * shape[1] - problem.examples
    order = jax.random.permutation(key, problem.examples)
    weights = jnp.ones(problem.examples, jnp.float32)
    return (
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


def _largest_residual(
    residual: Residual, params: Any, initial_norms: Any
) -> Float32[Array, ""]:
    residuals = jax.tree.map(residual, params, initial_norms)
    return jnp.max(jnp.stack(jax.tree.leaves(residuals)))
