"""The runs of an experiment, resumable.

First the grid: every condition, optimizer, learning rate and seed. Then, if the
settings name final seeds, the best rate of each optimizer with those.
"""

import itertools
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import jax
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from manifold_optax.experiments.harness.batched import BatchedExperiment
from manifold_optax.experiments.harness.cells import best_cells, group_by_cell
from manifold_optax.experiments.harness.checkpoint import open_checkpoints
from manifold_optax.experiments.harness.events import write_curves
from manifold_optax.experiments.harness.experiment import Experiment, GridExperiment
from manifold_optax.experiments.harness.output import (
    CHECKPOINTS,
    claim_directory,
    EVENTS,
    RESULTS,
)
from manifold_optax.experiments.harness.page import Origin
from manifold_optax.experiments.harness.records import (
    read_records,
    run_name,
    RunResult,
    RunSettings,
    write_records,
)
from manifold_optax.experiments.harness.report import write_report
from manifold_optax.experiments.harness.timing import measure_steps, StepTime

Settings = TypeVar("Settings", bound=RunSettings)
Result = TypeVar("Result", bound=RunResult)


def run_experiment(
    experiment: GridExperiment[Any, Any, Any], origin: Origin | None = None
) -> str:
    """Runs an experiment and writes its results to its `output_dir`.

    The directory receives `results.jsonl`, `report.md`, PNG figures, `report.html`,
    which is one file with both, TensorBoard events and checkpoints.

    Args:
        experiment: The experiment.
        origin: The command that started it, for `report.html`; None: Python did.

    Returns:
        The report, as Markdown.

    Raises:
        FileExistsError: if the directory holds results and `resume` is off.
        UnusableOutputError: if another process uses the directory, or what is in it
            cannot be read or written.
        OSError: if something cannot be written, for example on a full disk.
    """
    config = experiment.config
    output = pathlib.Path(config.output_dir)
    # On CPU, JAX decomposes matrices by LAPACK with threads that wait busily for each
    # other: 128 x 128 takes 1 ms on one thread, and 250 ms on two of a busy machine.
    with (
        claim_directory(output, resume=config.resume),
        threadpool_limits(1, user_api="blas"),
    ):
        tuning = make_runs(experiment, grid(experiment), output)
        final = make_runs(experiment, final_grid(experiment, tuning), output)
        times = _time_steps(experiment)
        return write_report(experiment, tuning, final, times, output, origin)


def grid(experiment: GridExperiment[Any, Settings, Any]) -> list[Settings]:
    """Returns the settings of the grid, grouped by condition, optimizer and rate."""
    config = experiment.config
    return [
        experiment.settings(optimizer, rate, seed, condition)
        for condition in experiment.conditions
        for optimizer in config.optimizers
        for rate in experiment.learning_rates_of(optimizer, condition)
        for seed in config.seeds
    ]


def final_grid(
    experiment: GridExperiment[Any, Settings, Result], tuning: Sequence[Result]
) -> list[Settings]:
    """Returns the settings of the final runs; none without final seeds.

    Args:
        experiment: The experiment.
        tuning: The results of its grid, which choose the rate of each optimizer.
    """
    best = best_cells(group_by_cell(tuning), experiment.metrics()[0])
    return [
        experiment.settings(cell.optimizer, cell.learning_rate, seed, cell.condition)
        for cell in best.values()
        for seed in experiment.config.final_seeds
    ]


def make_runs(
    experiment: GridExperiment[Any, Settings, Result],
    wanted: Sequence[Settings],
    output: pathlib.Path,
) -> list[Result]:
    """Makes runs of an experiment, or those of them that are not finished yet.

    Each result is written as soon as its run is finished, or its batch of runs.

    Args:
        experiment: The experiment.
        wanted: The settings of the runs; those of one batch follow one another.
        output: The directory of the experiment; see `claim_directory`.

    Returns:
        One result per run, in their order.

    Raises:
        UnusableOutputError: if the results or checkpoints in it cannot be read.
        OSError: if something cannot be written.
    """
    path = output / RESULTS
    finished = read_records(path, experiment.result_type)
    results: dict[RunSettings, Result] = {one.settings: one for one in finished}
    todo = [settings for settings in wanted if settings not in results]
    if todo:
        steps = len(todo) * experiment.rounds * experiment.steps_per_round
        with tqdm(total=steps, unit="step") as bar:
            for made in _made(experiment, todo, output, bar):
                # The record comes last: a run without one is continued, events and all.
                for result in made:
                    write_curves(
                        output / EVENTS / run_name(result.settings),
                        experiment.curves(result),
                    )
                    results[result.settings] = result
                write_records(path, list(results.values()))
    return [results[settings] for settings in wanted]


def _made(
    experiment: GridExperiment[Any, Settings, Result],
    todo: Sequence[Settings],
    output: pathlib.Path,
    bar: tqdm,
) -> Iterator[list[Result]]:
    """Yields results that are to be recorded together: of one run, or of one batch."""
    if isinstance(experiment, Experiment):
        for settings in todo:
            bar.set_postfix_str(f"{_program(settings)} {settings.learning_rate:g}")
            yield [_make_run(experiment, settings, output, bar)]
    elif isinstance(experiment, BatchedExperiment):
        steps = experiment.rounds * experiment.steps_per_round
        for name, members in itertools.groupby(todo, _program):
            bar.set_postfix_str(name)
            batch = list(members)
            results = list(experiment.run_many(batch))
            if [result.settings for result in results] != batch:
                raise ValueError(
                    f"run_many must return one result per run, in their order; got "
                    f"{len(results)} results for {len(batch)} runs of {name}."
                )
            bar.update(len(batch) * steps)
            yield results
    else:
        raise TypeError(
            f"Expected an Experiment or a BatchedExperiment, got {experiment!r}."
        )


def _program(settings: RunSettings) -> str:
    """Names what the runs of one compiled program have in common."""
    return f"{settings.condition} {settings.optimizer}".lstrip()


def _time_steps(experiment: GridExperiment[Any, Any, Any]) -> dict[str, StepTime]:
    """Times the optimizers of an experiment, if its settings ask for it."""
    config = experiment.config
    if not config.timing_rounds:
        return {}
    programs = {name: experiment.timed_round(name) for name in config.optimizers}
    return measure_steps(
        {name: program for name, program in programs.items() if program},
        steps=experiment.steps_per_round,
        rounds=config.timing_rounds,
    )


def _make_run(
    experiment: Experiment[Any, Settings, Result],
    settings: Settings,
    output: pathlib.Path,
    bar: tqdm,
) -> Result:
    """Makes one run, from its latest checkpoint if there is one."""
    # A restored state is bound to its device. One that is not would compile again.
    inputs, state = jax.device_put(experiment.start(settings), jax.local_devices()[0])
    steps = experiment.steps_per_round
    started = time.perf_counter()
    with open_checkpoints(output / CHECKPOINTS / run_name(settings)) as checkpoints:
        state = checkpoints.restore_latest(state)
        done = int(state.round)
        bar.update(done * steps)
        for number in range(done + 1, experiment.rounds + 1):
            advanced = experiment.advance(settings, inputs, state)
            state = jax.block_until_ready(advanced)
            if number % experiment.config.checkpoint_every == 0:
                checkpoints.save(state)
            bar.update(steps)
    return experiment.finish(settings, state, time.perf_counter() - started)
