"""What a run carries from one round to the next."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32, Key

from manifold_optax.experiments.harness.records import RunSettings


class Trainable(NamedTuple):
    """What a step changes."""

    params: Any
    opt_state: Any


class RunState(NamedTuple):
    """Everything that a run carries from one round to the next: a tree of arrays.

    Attributes:
        round: Number of finished rounds; epochs, say.
        trainable: Parameters and the state of their optimizer.
        history: What was recorded; entries that are not reached yet are nan.
    """

    round: Int32[Array, ""]
    trainable: Trainable
    history: Any


class RunInputs(NamedTuple):
    """What distinguishes the runs of one program."""

    learning_rate: Float32[Array, ""]
    key: Key[Array, ""]


def run_inputs(settings: RunSettings) -> RunInputs:
    """Returns the inputs of a run, on the device."""
    return RunInputs(
        learning_rate=jnp.asarray(settings.learning_rate, jnp.float32),
        key=jax.random.key(settings.seed),
    )


def first_state(params: Any, opt_state: Any, history: Any) -> RunState:
    """Returns the state before the first round."""
    return RunState(jnp.zeros((), jnp.int32), Trainable(params, opt_state), history)


def unknown(*shape: int) -> Float32[Array, "*shape"]:
    """Returns the entries of a history that are not reached yet."""
    return jnp.full(shape, jnp.nan, jnp.float32)
