"""Time per training step, measured side by side."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from manifold_optax.experiments.optimizers import Recipe
from manifold_optax.experiments.train import (
    Problem,
    Splits,
    start_run,
    train_epoch,
)


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Median time per training step, in seconds.

    Attributes:
        wall: Wall time.
        cpu: Processor time of the process, over all its threads.
    """

    wall: float
    cpu: float


def measure_steps(
    problem: Problem, recipes: Mapping[str, Recipe], splits: Splits, *, rounds: int
) -> dict[str, StepTime]:
    """Times the steps of several optimizers.

    Each round runs one epoch of every optimizer, so that what else the machine does
    falls on all of them. Compilation, evaluation and the recording of residuals are
    not part of the time; the first epoch of each is not counted.

    Args:
        problem: The problem.
        recipes: Optimizers to time, by name.
        splits: The data.
        rounds: Epochs to time per optimizer; with 0 nothing is timed.

    Returns:
        The median over the rounds of the time per step, by name.
    """
    if not rounds:
        return {}
    epochs = {name: _compile(problem, recipes[name], splits) for name in recipes}
    for run in epochs.values():
        jax.block_until_ready(run())
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in epochs}
    for _ in range(rounds):
        for name, run in epochs.items():
            times[name].append(_time(run))
    return {
        name: StepTime(
            wall=statistics.median(wall for wall, _ in pairs) / problem.steps_per_epoch,
            cpu=statistics.median(cpu for _, cpu in pairs) / problem.steps_per_epoch,
        )
        for name, pairs in times.items()
    }


def _compile(problem: Problem, recipe: Recipe, splits: Splits) -> Callable[[], Any]:
    inputs, state = start_run(problem, recipe, learning_rate=1e-3, seed=0)
    arguments = (inputs, splits.train, jnp.zeros((), jnp.int32), state.trainable)
    run = jax.jit(train_epoch(problem, recipe, monitor=False))
    compiled = run.lower(*arguments).compile()
    return lambda: compiled(*arguments)


def _time(run: Callable[[], Any]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(run())
    return time.perf_counter() - wall, time.process_time() - cpu
