"""Training many runs of one network at once: one program, mapped over the runs."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Float32, Int32, Shaped

from manifold_optax.experiments.transfer.networks import Network
from manifold_optax.experiments.transfer.optimizers import build, Direction

# Share of the steps in which the learning rate rises to its peak.
_WARMUP = 0.1


class Examples(NamedTuple):
    """Inputs and the class of each, or the character after each."""

    inputs: Shaped[Any, "examples ..."]
    labels: Int32[Any, "examples ..."]


class Runs(NamedTuple):
    """What distinguishes the runs of one program; the first axis counts them."""

    params: Any
    factors: Any
    order: Int32[Any, "runs steps batch"]


class Measured(NamedTuple):
    """What the runs measured."""

    train_loss: Float32[Array, "runs steps"]
    validation_loss: Float32[Array, " runs"]
    output_rms: Float32[Array, " runs"]


@functools.partial(jax.jit, static_argnames=("network", "direction"))
def train(
    runs: Runs,
    examples: Examples,
    validation: Examples,
    *,
    network: Network,
    direction: Direction,
) -> Measured:
    """Trains a network once per run.

    The learning rate rises linearly over a tenth of the steps, then falls linearly to
    zero.

    Args:
        runs: First parameters, factors of the updates with the learning rate among
            them, and the examples of each step.
        examples: From which the steps take theirs.
        validation: Examples on which each run is measured at its end.
        network: The network.
        direction: The optimizers; see `build`.

    Returns:
        The training loss of each step, the validation loss at the end, and the RMS of
        the logits at the start.
    """
    tx = build(direction, network)

    def loss(params: Any, batch: Examples) -> Float32[Array, ""]:
        return cross_entropy(network.apply(params, batch.inputs), batch.labels)

    def one_run(run: Runs) -> Measured:
        def step(carry: Any, now: Any) -> tuple[Any, Array]:
            params, state = carry
            chosen, height = now
            batch = jax.tree.map(lambda leaf: leaf[chosen], examples)
            value, gradients = jax.value_and_grad(loss)(params, batch)
            updates, state = tx.update(gradients, state, params)
            scale = lambda update, factor: update * factor * height
            updates = jax.tree.map(scale, updates, run.factors)
            return (optax.apply_updates(params, updates), state), value

        steps = run.order.shape[0]
        start = run.params, tx.init(run.params)
        (params, _), losses = jax.lax.scan(step, start, (run.order, schedule(steps)))
        first = network.apply(run.params, validation.inputs)
        return Measured(losses, loss(params, validation), jnp.sqrt(jnp.mean(first**2)))

    return jax.vmap(one_run)(runs)


def schedule(steps: int) -> Float32[Array, " steps"]:
    """Returns the factor of the peak learning rate at each step, in (0, 1]."""
    warmup = max(1, round(_WARMUP * steps))
    done = jnp.arange(steps)
    return jnp.minimum((done + 1) / warmup, (steps - done) / (steps - warmup + 1))


def cross_entropy(
    logits: Float[Array, "*batch classes"], labels: Int32[Array, "*batch"]
) -> Float32[Array, ""]:
    """Returns the mean cross-entropy, in nats."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean()
