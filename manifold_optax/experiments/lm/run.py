"""Runs of the language model: every optimizer, learning rate and seed."""

import math
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from tqdm.auto import tqdm

from manifold_optax.experiments.checkpoint import open_checkpoints
from manifold_optax.experiments.events import write_curves
from manifold_optax.experiments.lm.config import LmConfig
from manifold_optax.experiments.lm.report import write_report
from manifold_optax.experiments.lm.results import (
    grid,
    read_results,
    RunResult,
    RunSettings,
)
from manifold_optax.experiments.lm.sample import sample_tokens
from manifold_optax.experiments.lm.text import Parts, Text
from manifold_optax.experiments.lm.train import (
    advance,
    History,
    make_problem,
    Problem,
    RunState,
    start_run,
)
from manifold_optax.experiments.records import claim_directory, write_records

# No step has this number, so that the sample's key is none of theirs.
_SAMPLE_KEY = 2**31 - 1


def run_lm(config: LmConfig, text: Text) -> str:
    """Runs the experiment and writes its results to `config.output_dir`.

    The directory receives `results.jsonl`, `report.md`, PNG figures, TensorBoard
    events and checkpoints.

    Args:
        config: The settings.
        text: The text.

    Returns:
        The report, as Markdown.

    Raises:
        FileExistsError: if the directory holds results and `config.resume` is off.
        ValueError: if the results in it cannot be read.
    """
    results = make_runs(config, text)
    return write_report(results, pathlib.Path(config.output_dir))


def make_runs(config: LmConfig, text: Text) -> list[RunResult]:
    """Makes all runs of a configuration, or those that are not finished yet.

    Each result is written as soon as its run is finished.

    Args:
        config: The settings.
        text: The text.

    Returns:
        One result per optimizer, learning rate and seed, in this order.

    Raises:
        FileExistsError: if the directory holds results and `config.resume` is off.
        ValueError: if the results in it cannot be read.
    """
    output = pathlib.Path(config.output_dir)
    claim_directory(output, resume=config.resume)
    path = output / "results.jsonl"
    results = {result.settings: result for result in read_results(path)}
    wanted = grid(config, text.digest)
    todo = [settings for settings in wanted if settings not in results]
    with tqdm(total=len(todo) * config.training.steps, unit="step") as bar:
        for optimizer in config.optimizers:
            runs = [settings for settings in todo if settings.optimizer == optimizer]
            for result in _run_all(config, text, runs, bar):
                results[result.settings] = result
                write_records(path, list(results.values()))
                _write_events(output / "tensorboard" / result.settings.name, result)
    return [results[settings] for settings in wanted]


def _run_all(
    config: LmConfig, text: Text, runs: Sequence[RunSettings], bar: tqdm
) -> Iterator[RunResult]:
    """Makes the runs of one optimizer with one compiled program."""
    problem = make_problem(config, text)
    parts = jax.device_put(text.parts)
    for settings in runs:
        bar.set_postfix_str(f"{settings.optimizer} {settings.learning_rate:g}")
        started = time.perf_counter()
        state = _train(config, problem, settings, parts, bar)
        seconds = time.perf_counter() - started
        sample = _sample(problem, settings, text, state.trainable.params)
        yield _result(settings, state.history, sample, seconds)


def _train(
    config: LmConfig, problem: Problem, settings: RunSettings, parts: Parts, bar: tqdm
) -> RunState:
    """Makes one run, from its latest checkpoint if there is one."""
    inputs, state = start_run(
        problem,
        settings.optimizer,
        learning_rate=settings.learning_rate,
        seed=settings.seed,
    )
    directory = pathlib.Path(config.output_dir, "checkpoints", settings.name)
    with open_checkpoints(directory) as checkpoints:
        state = checkpoints.restore_latest(state)
        done = int(state.round)
        bar.update(done * config.training.evaluate_every)
        for number in range(done + 1, config.training.rounds + 1):
            advanced = advance(problem, settings.optimizer, inputs, parts, state)
            state = jax.block_until_ready(advanced)
            if number % config.checkpoint_every == 0:
                checkpoints.save(state)
            bar.update(config.training.evaluate_every)
    return state


def _sample(problem: Problem, settings: RunSettings, text: Text, params: Any) -> str:
    """Draws a text from the trained model."""
    tokens = sample_tokens(
        problem,
        settings.sample_characters,
        params,
        jax.random.fold_in(jax.random.key(settings.seed), _SAMPLE_KEY),
        # A line begins behind the end of another, where the text has lines.
        max(0, text.characters.find("\n")),
        settings.temperature,
    )
    return text.decode(np.asarray(tokens))


def _result(
    settings: RunSettings, history: History, sample: str, seconds: float
) -> RunResult:
    has_experts = settings.model.feed_forward == "moe"
    return RunResult(
        settings=settings,
        loss=_finite(history.steps.loss),
        validation_loss=_finite(history.validation_loss),
        test_loss=_finite(history.test_loss),
        max_logits=tuple(
            tuple(_finite(layer) for layer in step)
            for step in np.asarray(history.steps.max_logits)
        ),
        imbalance=_finite(history.steps.imbalance) if has_experts else (),
        sample=sample,
        seconds=seconds,
    )


def _finite(values: jax.Array | np.ndarray) -> tuple[float | None, ...]:
    return tuple(x if math.isfinite(x) else None for x in values.tolist())


def _write_events(directory: pathlib.Path, result: RunResult) -> None:
    training = result.settings.training
    evaluated = range(
        training.evaluate_every, training.steps + 1, training.evaluate_every
    )
    curves = {
        "loss/train": enumerate(result.loss),
        "loss/validation": zip(evaluated, result.validation_loss, strict=True),
        "loss/test": zip(evaluated, result.test_loss, strict=True),
        "imbalance": enumerate(result.imbalance),
    }
    model = result.settings.model
    for layer in range(model.layers):
        for head in range(model.heads):
            curves[f"max_logits/layer{layer}_head{head}"] = enumerate(
                step[layer][head] for step in result.max_logits
            )
    write_curves(directory, curves)
