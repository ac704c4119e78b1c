import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from manifold_optax.experiments.harness import run_experiment
from manifold_optax.experiments.harness.cells import group_by_cell
from manifold_optax.experiments.harness.config_file import read_overrides
from manifold_optax.experiments.harness.records import read_records
from manifold_optax.experiments.harness.typed import replace_typed
from manifold_optax.experiments.lm.config import ModelConfig, TrainingConfig
from manifold_optax.experiments.lm.text import encode_text
from manifold_optax.experiments.mlp.data import load_dataset
from manifold_optax.experiments.pixel_perceptron import TaskConfig
from manifold_optax.experiments.precision import (
    language,
    PrecisionConfig,
    PrecisionExperiment,
    report,
)
from manifold_optax.experiments.precision.config import (
    LANGUAGE_MODEL,
    LanguageConfig,
    PERCEPTRON,
)
from manifold_optax.experiments.precision.results import (
    Rounded,
    RunResult,
    RunSettings,
)
from manifold_optax.experiments.robustness import RobustnessConfig
from manifold_optax.experiments.robustness.config import LearningRates
from manifold_optax.experiments.rounding import FORMAT_NAMES, SCOPES

CONFIGS = pathlib.Path(__file__).parents[3] / "configs"
TASK = TaskConfig(
    data="digits", epochs=2, batch_size=128, hidden=(12,), validation_examples=200
)
LANGUAGE = LanguageConfig(
    optimizers=("adamw", "muon_ball", "manifold_muon"),
    learning_rates=LearningRates(
        adamw=(0.01,), muon_ball=(0.02,), manifold_muon=(0.1,)
    ),
    model=ModelConfig(layers=1, width=8, heads=2, head_size=4, hidden=16),
    training=TrainingConfig(
        steps=4,
        batch_size=2,
        context=8,
        warmup_steps=1,
        evaluate_every=2,
        evaluation_batches=2,
    ),
)
RATES = LearningRates(
    adamw=(0.01,), muon=(0.03,), muon_ball=(0.1,), manifold_muon=(0.1,), modular=(0.2,)
)


def result(optimizer="adamw", seed=0, condition=PERCEPTRON, **numbers):
    settings = RunSettings(condition, optimizer, 0.1, seed, 4, TASK, None, "")
    defaults = {"error": 5.0, "certified": 2.0, "found": 1.0, "on_data": 0.5}
    return RunResult(
        settings=settings,
        loss=(1.0,),
        validation_error=4.0,
        test_error=4.0,
        logit_size=10.0,
        rounded=tuple(
            Rounded(name, per, **(defaults | numbers))
            for name in FORMAT_NAMES
            for per in SCOPES
        ),
        seconds=1.0,
    )


def test_numbers_are_relative_and_what_is_lost_is_a_difference():
    [cell] = group_by_cell([result(), result(seed=1, error=None, certified=None)])
    lost = report.numbers(cell, report.lost, ("int4", "channel"))
    np.testing.assert_array_equal(lost, [1.0, np.nan])
    certified = report.numbers(cell, report.relative("certified"), ("int4", "tensor"))
    np.testing.assert_array_equal(certified, [0.2, np.nan])


def test_the_report_says_whether_a_bound_is_wrong():
    text = "\n".join(report.rounding_tables(group_by_cell([result()])))
    assert "0.2 / 0.1 / 0.05" in text
    assert "No bound was refuted: 0 of 8 (of 8 ways of rounding)." in text
    text = "\n".join(report.rounding_tables(group_by_cell([result(certified=0.9)])))
    assert "A CERTIFICATE IS WRONG: 8 of 8 bounds are exceeded." in text
    text = "\n".join(report.rounding_tables(group_by_cell([result(certified=None)])))
    assert "∞ / 0.1 / 0.05" in text


@pytest.mark.parametrize(
    ("name", "default"),
    [("robustness", RobustnessConfig()), ("precision", PrecisionConfig())],
)
def test_the_files_are_the_defaults(name, default):
    assert replace_typed(default, read_overrides(CONFIGS / f"{name}.toml")) == default


def test_settings_that_do_not_fit_are_errors():
    short = dataclasses.replace(LANGUAGE.training, evaluate_every=1)
    with pytest.raises(ValueError, match="as many evaluations as the perceptron has"):
        PrecisionConfig(
            task=TASK, language=dataclasses.replace(LANGUAGE, training=short)
        )
    with pytest.raises(ValueError, match="must not name 'modular'"):
        LanguageConfig(optimizers=("modular",))


def small(output, **changes):
    config = PrecisionConfig(
        learning_rates=RATES,
        seeds=(0,),
        final_seeds=(1, 2),
        examples=8,
        output_dir=str(output),
        task=TASK,
        language=LANGUAGE,
    )
    return dataclasses.replace(config, **changes)


def text():
    return encode_text("the quick brown fox jumps over the lazy dog. " * 20, context=8)


@pytest.mark.slow
def test_hidden_matrices_start_on_their_set_and_stay():
    problem = language.make_problem(LANGUAGE, text())
    parts = jax.device_put(text().parts)
    for name, rate in (("muon_ball", 0.5), ("manifold_muon", 0.1)):
        settings = result(name).settings
        settings = dataclasses.replace(settings, learning_rate=rate)
        inputs, state = language.train.start_run(problem, settings)
        for _ in range(2):
            hidden = state.trainable.params["blocks"][0]["feed_forward"]["up"]["kernel"]
            # Projections in float32 are right to some 1e-6.
            assert problem.constraint(name).residual(hidden) < 1e-5
            state = language.train.advance(problem, name, inputs, parts, state)


@pytest.mark.slow
def test_no_bound_is_refuted(tmp_path):
    config = small(tmp_path)
    experiment = PrecisionExperiment(config, load_dataset(TASK.perceptron()), text())
    written = run_experiment(experiment)
    results = read_records(tmp_path / "results.jsonl", RunResult)
    # Five optimizers of the perceptron and three of the language model: one seed that
    # chooses the rate, and two that are rounded.
    assert len(results) == 3 * (5 + 3)
    assert sum(bool(run.rounded) for run in results) == 2 * (5 + 3)
    for run in results:
        for one in run.rounded:
            if run.settings.condition == PERCEPTRON:
                assert one.certified is not None
            if one.certified is not None:
                assert one.on_data <= one.found <= one.certified
    assert written.count("No bound was refuted") == 2
    assert LANGUAGE_MODEL.capitalize() in written
    # Finished runs are read back, and the same report is made of them.
    again = PrecisionExperiment(
        dataclasses.replace(config, resume=True),
        load_dataset(TASK.perceptron()),
        text(),
    )
    assert run_experiment(again) == written


def test_int8_changes_little_and_fewer_bits_change_more(tmp_path):
    config = small(tmp_path, optimizers=("adamw",), final_seeds=())
    language_of_none = dataclasses.replace(LANGUAGE, optimizers=())
    config = dataclasses.replace(config, language=language_of_none)
    run_experiment(PrecisionExperiment(config, load_dataset(TASK.perceptron()), text()))
    [run] = read_records(tmp_path / "results.jsonl", RunResult)
    changes = [run.after(name, "channel").found for name in ("int8", "int4", "int3")]
    assert changes == sorted(changes)
    assert changes[0] < 0.1 * run.logit_size
