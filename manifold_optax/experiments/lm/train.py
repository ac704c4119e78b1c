"""Training as pure functions: one program advances a run to its next evaluation.

A run is one tree of arrays, `RunState`, and the program is a function of it. `jax.jit`
compiles it once per optimizer and shares it among all learning rates and seeds. A run
that is restored from a checkpoint goes through the same program and ends bit-identical
on the same number of cores; another number of cores sums in another order.
"""

import dataclasses
import functools
from typing import Any, cast, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float32, Int32, Key

from manifold_optax.experiments import harness
from manifold_optax.experiments.harness.records import RunSettings
from manifold_optax.experiments.lm.config import (
    LmConfig,
    ModelConfig,
    OptimizerName,
    TrainingConfig,
)
from manifold_optax.experiments.lm.model import (
    abstract_model,
    initial_params,
    next_character_loss,
    Statistics,
    Transformer,
)
from manifold_optax.experiments.lm.optimizers import build_optimizer
from manifold_optax.experiments.lm.text import Parts, Text, Tokens


class StepRecord(NamedTuple):
    """What a run records of each step.

    Attributes:
        loss: Training loss.
        max_logits: Largest attention logit of each head: that of the weights before
            the step, hence before a clip.
        imbalance: How far the load of the fullest expert of any layer exceeds the mean
            of its layer, relative to that mean; nan without experts.
    """

    loss: Float32[Array, " *steps"]
    max_logits: Float32[Array, "*steps layers heads"]
    imbalance: Float32[Array, " *steps"]


class History(NamedTuple):
    """What a run records; entries that are not reached yet are nan.

    Attributes:
        steps: What it records of each step.
        validation_loss: Loss on the validation part at each evaluation.
        test_loss: The same on the test part.
    """

    steps: StepRecord
    validation_loss: Float32[Array, " rounds"]
    test_loss: Float32[Array, " rounds"]


@dataclasses.dataclass(frozen=True)
class Problem:
    """The model and the training that all runs of an experiment share.

    Attributes:
        graph: Structure of the model.
        model: Its configuration.
        training: How it is trained.
        vocabulary: Number of characters.
    """

    graph: nnx.GraphDef[Transformer]
    model: ModelConfig
    training: TrainingConfig
    vocabulary: int

    def optimizer(
        self, name: str, peak: Float32[Array, ""]
    ) -> optax.GradientTransformationExtraArgs:
        """Returns an optimizer with the schedule; a subclass may know more of them."""
        rate = learning_rate_schedule(self.training, peak)
        known = cast("OptimizerName", name)
        return build_optimizer(known, rate, self.model, self.training)

    def initial_params(self, name: str, seed: int) -> Any:
        """Draws the parameters that an optimizer starts from."""
        del name
        return initial_params(self.model, self.vocabulary, seed=seed)


def make_problem(config: LmConfig, text: Text) -> Problem:
    """Returns the problem that a configuration poses on a text."""
    graph, _ = abstract_model(config.model, len(text.characters))
    return Problem(graph, config.model, config.training, len(text.characters))


def learning_rate_schedule(
    training: TrainingConfig, peak: Float32[Array, ""] | float
) -> optax.Schedule:
    """Returns the schedule: a linear warm-up to `peak`, then the decay to zero."""
    warmup = training.warmup_steps

    def rate(count: jax.typing.ArrayLike) -> jax.Array:
        count = jnp.asarray(count)
        left = 1.0 - (count - warmup) / (training.steps - warmup)
        if training.decay == "cosine":
            left = 0.5 - 0.5 * jnp.cos(jnp.pi * left)
        # The first step of the warm-up has 1 / warmup of the peak, not none.
        return peak * jnp.where(count < warmup, (count + 1) / max(warmup, 1), left)

    return rate


def start_run(
    problem: Problem, settings: RunSettings
) -> tuple[harness.RunInputs, harness.RunState]:
    """Draws the initial weights of a run.

    Args:
        problem: The problem.
        settings: Gives optimizer, learning rate and seed.

    Returns:
        The inputs of the run and its state before the first step.
    """
    params = problem.initial_params(settings.optimizer, settings.seed)
    inputs = harness.run_inputs(settings)
    transform = problem.optimizer(settings.optimizer, inputs.learning_rate)
    steps, rounds = problem.training.steps, problem.training.rounds
    history = History(
        steps=StepRecord(
            loss=harness.unknown(steps),
            max_logits=harness.unknown(
                steps, problem.model.layers, problem.model.heads
            ),
            imbalance=harness.unknown(steps),
        ),
        validation_loss=harness.unknown(rounds),
        test_loss=harness.unknown(rounds),
    )
    return inputs, harness.first_state(params, transform.init(params), history)


@functools.partial(jax.jit, static_argnums=(0, 1))
def advance(
    problem: Problem,
    optimizer: str,
    inputs: harness.RunInputs,
    parts: Parts,
    state: harness.RunState,
) -> harness.RunState:
    """Returns the state of a run `evaluate_every` steps later, evaluated."""
    training = problem.training
    transform = problem.optimizer(optimizer, inputs.learning_rate)

    def step(
        carried: harness.Trainable, number: Int32[Array, ""]
    ) -> tuple[harness.Trainable, StepRecord]:
        batch = _crops(training, parts.train, jax.random.fold_in(inputs.key, number))
        (loss, statistics), gradient = jax.value_and_grad(
            next_character_loss, argnums=1, has_aux=True
        )(problem.graph, carried.params, batch)
        updates, opt_state = transform.update(
            gradient, carried.opt_state, carried.params, **statistics._asdict()
        )
        params = optax.apply_updates(carried.params, updates)
        record = StepRecord(
            loss, by_layer(statistics.max_logits), _imbalance(statistics)
        )
        return harness.Trainable(params, opt_state), record

    first = state.round * training.evaluate_every
    trainable, records = jax.lax.scan(
        step, state.trainable, first + jnp.arange(training.evaluate_every)
    )

    def enter(old: Array, new: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(old, new, first, 0)

    validation_loss, test_loss = evaluate(problem, trainable.params, parts)
    history, number = state.history, state.round
    return harness.RunState(
        round=number + 1,
        trainable=trainable,
        history=History(
            steps=jax.tree.map(enter, history.steps, records),
            validation_loss=history.validation_loss.at[number].set(validation_loss),
            test_loss=history.test_loss.at[number].set(test_loss),
        ),
    )


def evaluate(problem: Problem, params: Any, parts: Parts) -> Float32[Array, " 2"]:
    """Returns the mean losses on the validation and the test part.

    Args:
        problem: The problem.
        params: The parameters.
        parts: The text.

    Returns:
        Nats per character, over evenly spaced sequences.
    """
    training = problem.training
    count = training.evaluation_batches * training.batch_size

    def cut_evenly(tokens: Tokens) -> Int32[Array, "count length"]:
        last = tokens.shape[0] - training.context - 1
        return _cut(training, tokens, jnp.linspace(0, last, count).astype(jnp.int32))

    sequences = jnp.concatenate([cut_evenly(parts.validation), cut_evenly(parts.test)])
    losses = jax.lax.map(
        lambda batch: next_character_loss(problem.graph, params, batch)[0],
        sequences.reshape(-1, training.batch_size, training.context + 1),
    )
    return losses.reshape(2, -1).mean(1)


def by_layer(statistics: dict[str, Array]) -> Array:
    """Stacks the statistics of the layers in their order."""
    ordered = sorted(statistics, key=lambda path: int(path.split("/")[1]))
    return jnp.stack([statistics[path] for path in ordered])


def _crops(
    training: TrainingConfig, tokens: Tokens, key: Key[Array, ""]
) -> Int32[Array, "batch length"]:
    """Draws sequences, each with the character after it."""
    last = tokens.shape[0] - training.context - 1
    return _cut(
        training,
        tokens,
        jax.random.randint(key, (training.batch_size,), 0, last + 1),
    )


def _cut(
    training: TrainingConfig, tokens: Tokens, starts: Int32[Array, " batch"]
) -> Int32[Array, "batch length"]:
    size = training.context + 1
    cut = lambda start: jax.lax.dynamic_slice_in_dim(tokens, start, size)
    return jax.vmap(cut)(starts)


def _imbalance(statistics: Statistics) -> Float32[Array, ""]:
    if not statistics.expert_load:
        return jnp.full((), jnp.nan, jnp.float32)
    load = by_layer(statistics.expert_load)
    return jnp.max(load.max(-1) / load.mean(-1) - 1.0)
