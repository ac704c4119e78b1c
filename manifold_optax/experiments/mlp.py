"""The `mlp` experiment: every optimizer, learning rate and seed on one problem."""

import math
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from manifold_optax.experiments.checkpoint import open_checkpoints
from manifold_optax.experiments.config import MlpConfig
from manifold_optax.experiments.data import Dataset
from manifold_optax.experiments.events import write_events
from manifold_optax.experiments.optimizers import recipe
from manifold_optax.experiments.records import claim_directory, write_records
from manifold_optax.experiments.report import write_report
from manifold_optax.experiments.results import (
    grid,
    read_results,
    RunResult,
    RunSettings,
)
from manifold_optax.experiments.timing import measure_steps
from manifold_optax.experiments.train import (
    advance,
    make_problem,
    Problem,
    RunInputs,
    RunState,
    Splits,
    start_run,
)


def run_mlp(config: MlpConfig, dataset: Dataset) -> str:
    """Runs the experiment and writes its results to `config.output_dir`.

    The directory receives `results.jsonl`, `report.md`, PNG figures, TensorBoard
    events and checkpoints.

    Args:
        config: The settings.
        dataset: The data.

    Returns:
        The report, as Markdown.

    Raises:
        FileExistsError: if the directory holds results and `config.resume` is off.
        ValueError: if the results in it cannot be read.
    """
    problem = make_problem(config, dataset)
    splits = jax.device_put(Splits(dataset.train, dataset.validation, dataset.test))
    recipes = {optimizer: recipe(optimizer, config) for optimizer in config.optimizers}
    # On CPU, JAX decomposes matrices by LAPACK with threads that wait busily for each
    # other: 128 x 128 takes 1 ms on one thread, and 250 ms on two of a busy machine.
    with threadpool_limits(1, user_api="blas"):
        results = make_runs(config, problem, splits)
        times = measure_steps(problem, recipes, splits, rounds=config.timing_rounds)
    return write_report(results, times, pathlib.Path(config.output_dir))


def make_runs(config: MlpConfig, problem: Problem, splits: Splits) -> list[RunResult]:
    """Makes all runs of a configuration, or those that are not finished yet.

    Each result is written as soon as its run is finished.

    Args:
        config: The settings.
        problem: The problem they pose on the data.
        splits: The data, on the device.

    Returns:
        One result per optimizer, learning rate and seed, in this order.

    Raises:
        FileExistsError: if the directory holds results and `config.resume` is off.
        ValueError: if the results in it cannot be read.
    """
    output = pathlib.Path(config.output_dir)
    results = {result.settings: result for result in _earlier_results(config, output)}
    wanted = grid(config)
    todo = [settings for settings in wanted if settings not in results]
    with tqdm(total=len(todo) * config.epochs, unit="epoch") as bar:
        for optimizer in config.optimizers:
            runs = [settings for settings in todo if settings.optimizer == optimizer]
            for result in _run_all(config, problem, splits, runs, bar):
                results[result.settings] = result
                write_records(output / "results.jsonl", list(results.values()))
                write_events(output / "tensorboard" / result.settings.name, result)
    return [results[settings] for settings in wanted]


def _earlier_results(config: MlpConfig, output: pathlib.Path) -> list[RunResult]:
    """Returns the finished runs to skip; refuses to mix with unwanted ones."""
    claim_directory(output, resume=config.resume)
    return read_results(output / "results.jsonl")


def _run_all(
    config: MlpConfig,
    problem: Problem,
    splits: Splits,
    runs: Sequence[RunSettings],
    bar: tqdm,
) -> Iterator[RunResult]:
    """Makes the runs of one optimizer with one compiled program."""
    program: Callable[[RunInputs, Splits, RunState], RunState] | None = None
    for settings in runs:
        chosen = recipe(settings.optimizer, config)
        inputs, state = start_run(
            problem, chosen, learning_rate=settings.learning_rate, seed=settings.seed
        )
        if program is None:
            advance_run = jax.jit(advance(problem, chosen))
            program = advance_run.lower(inputs, splits, state).compile()
        bar.set_postfix_str(f"{settings.optimizer} {settings.learning_rate:g}")
        started = time.perf_counter()
        directory = pathlib.Path(config.output_dir, "checkpoints", settings.name)
        with open_checkpoints(directory) as checkpoints:
            state = checkpoints.restore_latest(state)
            bar.update(int(state.epoch))
            while (epoch := int(state.epoch)) < config.epochs:
                state = jax.block_until_ready(program(inputs, splits, state))
                if (epoch + 1) % config.checkpoint_every == 0:
                    checkpoints.save(state)
                bar.update()
        seconds = time.perf_counter() - started
        yield _result(settings, state, seconds)


def _result(settings: RunSettings, state: RunState, seconds: float) -> RunResult:
    history = state.history
    validation = history.validation_accuracy
    return RunResult(
        settings=settings,
        loss=_finite(history.loss),
        residual=_finite(history.residual.max(keepdims=True))[0],
        train_accuracy=tuple(history.train_accuracy.tolist()),
        validation_accuracy=(
            tuple(validation.tolist()) if settings.validation_examples else None
        ),
        test_accuracy=tuple(history.test_accuracy.tolist()),
        singular_values=tuple(
            _singular_values(kernel)
            for kernel in jax.tree.leaves(state.trainable.params)
        ),
        seconds=seconds,
    )


def _singular_values(kernel: jax.Array) -> tuple[float | None, ...]:
    matrix = np.asarray(kernel)
    if not np.isfinite(matrix).all():
        return (None,) * min(matrix.shape)
    return tuple(np.linalg.svd(matrix, compute_uv=False).tolist())


def _finite(values: jax.Array) -> tuple[float | None, ...]:
    return tuple(x if math.isfinite(x) else None for x in values.tolist())
