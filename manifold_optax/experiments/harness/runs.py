"""The runs of an experiment: every optimizer, learning rate and seed, resumable."""

import pathlib
import time
from typing import Any, TypeVar

import jax
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from manifold_optax.experiments.harness.checkpoint import open_checkpoints
from manifold_optax.experiments.harness.events import write_curves
from manifold_optax.experiments.harness.experiment import Experiment
from manifold_optax.experiments.harness.output import (
    CHECKPOINTS,
    claim_directory,
    EVENTS,
    RESULTS,
)
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


def run_experiment(experiment: Experiment[Any, Any, Any]) -> str:
    """Runs an experiment and writes its results to its `output_dir`.

    The directory receives `results.jsonl`, `report.md`, PNG figures, TensorBoard
    events and checkpoints.

    Args:
        experiment: The experiment.

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
        results = make_runs(experiment, output)
        return write_report(experiment, results, _time_steps(experiment), output)


def grid(experiment: Experiment[Any, Settings, Any]) -> list[Settings]:
    """Returns the settings of all runs, grouped by optimizer and learning rate."""
    config = experiment.config
    return [
        experiment.settings(optimizer, rate, seed)
        for optimizer in config.optimizers
        for rate in config.learning_rates.of(optimizer)
        for seed in config.seeds
    ]


def make_runs(
    experiment: Experiment[Any, Any, Result], output: pathlib.Path
) -> list[Result]:
    """Makes all runs of an experiment, or those that are not finished yet.

    Each result is written as soon as its run is finished.

    Args:
        experiment: The experiment.
        output: Its directory; see `claim_directory`.

    Returns:
        One result per optimizer, learning rate and seed, in this order.

    Raises:
        UnusableOutputError: if the results or checkpoints in it cannot be read.
        OSError: if something cannot be written.
    """
    path = output / RESULTS
    finished = read_records(path, experiment.result_type)
    results: dict[RunSettings, Result] = {one.settings: one for one in finished}
    wanted = grid(experiment)
    todo = [settings for settings in wanted if settings not in results]
    steps = experiment.rounds * experiment.steps_per_round
    with tqdm(total=len(todo) * steps, unit="step") as bar:
        for settings in todo:
            bar.set_postfix_str(f"{settings.optimizer} {settings.learning_rate:g}")
            result = _make_run(experiment, settings, output, bar)
            # The record comes last: a run without one is continued, events and all.
            write_curves(
                output / EVENTS / run_name(settings), experiment.curves(result)
            )
            results[settings] = result
            write_records(path, list(results.values()))
    return [results[settings] for settings in wanted]


def _time_steps(experiment: Experiment[Any, Any, Any]) -> dict[str, StepTime]:
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
