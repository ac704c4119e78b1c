"""Runs of one task and optimizer: one program, mapped over rates and seeds."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float32, Int32, UInt32

from manifold_optax.experiments.failures.optimizers import build, OptimizerName
from manifold_optax.experiments.failures.problems import Moment, Tree
from manifold_optax.experiments.failures.tasks import TASKS


@functools.partial(jax.jit, static_argnames="task")
def draw(seeds: UInt32[Array, " runs"], *, task: str) -> tuple[Tree, Tree]:
    """Draws the first parameters and the data of each run; see `Task`."""
    return jax.vmap(lambda seed: TASKS[task].draw(jax.random.key(seed)))(seeds)


@functools.partial(jax.jit, static_argnames=("task", "optimizer", "steps"))
def train(
    rates: Float32[Array, " runs"],
    seeds: UInt32[Array, " runs"],
    params: Tree,
    data: Tree,
    *,
    task: str,
    optimizer: OptimizerName,
    steps: int,
) -> Float32[Array, " runs"]:
    """Trains once per rate and seed.

    Args:
        rates: Peak learning rates.
        seeds: Seeds of the noise of the steps.
        params: First parameters; the first axis counts the runs.
        data: What the losses read; likewise.
        task: Name of the task.
        optimizer: Name of the optimizer.
        steps: Number of steps.

    Returns:
        What is judged, at the end of each run.
    """
    known = TASKS[task]

    def one_run(rate: Array, seed: Array, params: Tree, data: Tree) -> Array:
        tx = build(optimizer, known, rate, steps)
        # The first key of a seed drew the task.
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), steps)

        def step(carry: Any, now: Moment) -> tuple[Any, None]:
            params, state = carry
            descend = jax.grad(known.loss, has_aux=True)
            gradients, extra = descend(params, data, now)
            updates, state = tx.update(gradients, state, params, **extra)
            return (optax.apply_updates(params, updates), state), None

        moments = Moment(_numbers(steps), keys)
        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), moments)
        return known.measure(params, data).astype(jnp.float32)

    return jax.vmap(one_run)(rates, seeds, params, data)


def _numbers(steps: int) -> Int32[Array, " steps"]:
    return jnp.arange(steps, dtype=jnp.int32)
