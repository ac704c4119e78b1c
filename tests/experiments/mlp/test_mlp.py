import dataclasses
import pathlib
import subprocess
import sys
from typing import Any, cast

import jax
import numpy as np
import pytest

from experiments.interruption import run_to_first_checkpoint
from manifold_optax.experiments.harness import best_cells, group_by_cell, run_experiment
from manifold_optax.experiments.harness.records import read_records
from manifold_optax.experiments.mlp.experiment import MlpExperiment
from manifold_optax.experiments.mlp.results import RunResult


def _numbers(results):
    """All results but the wall time."""
    return [dataclasses.replace(result, seconds=0.0) for result in results]


def _read(directory):
    return _numbers(read_records(pathlib.Path(directory) / "results.jsonl", RunResult))


def _rows(report):
    lines = [line for line in report.splitlines() if line.startswith("|")]
    table = [[x.strip() for x in line.split("|")[1:-1]] for line in lines]
    return [dict(zip(table[0], row, strict=True)) for row in table[2:]]


def test_the_report_ranks_the_rates_and_shows_a_diverged_run(trained):
    rows = {row["learning rate"]: row for row in _rows(trained.report)}
    order = list(rows)
    assert list(rows["0.01"]) == [
        "optimizer",
        "learning rate",
        "seeds",
        "validation %",
        "test %",
        "train %",
        "singular values by layer",
        "residual",
    ]
    assert order.index("0.01") < order.index("1e-06")
    diverged = rows["1e+30"]["singular values by layer"]
    assert diverged == "not finite / not finite / not finite"
    assert rows["0.2"]["singular values by layer"] == "1-1 / 1-1 / 1-1"
    assert rows["0.01"]["residual"] == "-"


def test_a_run_records_its_epochs_and_its_matrices(trained):
    *_, result = trained.results
    assert result.settings.optimizer == "manifold_muon"
    assert [len(values) for values in result.singular_values] == [4, 4, 4]
    assert len(result.loss) == 16
    assert len(result.validation_accuracy) == 4
    # Rounding of float32 on matrices of size 16 x 4.
    assert result.residual < 1e-5
    names = {path.name for path in trained.output.glob("*.png")}
    assert names == {"learning_rates.png", "loss.png", "singular_values.png"}
    page = (trained.output / "report.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/png;base64,') == len(names)
    assert len(list((trained.output / "tensorboard").glob("*/events.out.*"))) == 4


def test_steps_on_the_stiefel_manifold_lower_the_loss(trained):
    loss = np.array(trained.results[-1].loss)
    assert loss[-4:].mean() < 0.8 * loss[:4].mean()


def test_the_test_set_has_no_say_in_the_best_rate(config, dataset, whole_dataset):
    def result(rate, *, test, train, validation):
        settings = experiment.settings("muon", rate, 0)
        return RunResult(
            settings=settings,
            loss=(1.0,),
            residual=None,
            train_accuracy=(0.0, train),
            validation_accuracy=None if validation is None else (0.0, validation),
            test_accuracy=(0.0, test),
            singular_values=((1.0,),),
            seconds=1.0,
        )

    experiment = MlpExperiment(config, dataset)
    by_validation = [
        result(0.1, test=0.1, train=0.5, validation=0.8),
        result(0.2, test=0.9, train=0.6, validation=0.7),
    ]
    unvalidated = dataclasses.replace(config, validation_examples=0)
    without = MlpExperiment(unvalidated, whole_dataset)
    by_training = [
        result(0.1, test=0.9, train=0.5, validation=None),
        result(0.2, test=0.1, train=0.6, validation=None),
    ]
    for one, results, best in (
        (experiment, by_validation, 0.1),
        (without, by_training, 0.2),
    ):
        chosen = best_cells(group_by_cell(results), one.metrics()[0])
        assert chosen["muon"].learning_rate == best
    assert experiment.ranks_rows
    assert not without.ranks_rows


@pytest.mark.promise(
    "State and checkpoints",
    "A resumed experiment ends as an uninterrupted one",
    on="mlp, lm",
)
@pytest.mark.parametrize(
    ("optimizer", "rate"),
    [
        ("adamw", 0.01),
        pytest.param("muon", 0.02, marks=pytest.mark.slow),
        pytest.param("manifold_muon", 0.2, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    trained, config, dataset, tmp_path, monkeypatch, optimizer, rate
):
    rates = dataclasses.replace(config.learning_rates, **{optimizer: (rate,)})
    config = dataclasses.replace(
        config,
        optimizers=(optimizer,),
        learning_rates=rates,
        checkpoint_every=2,
        output_dir=str(tmp_path / "stopped"),
    )
    run_to_first_checkpoint(MlpExperiment(config, dataset), monkeypatch)
    resumed = dataclasses.replace(config, resume=True)
    run_experiment(MlpExperiment(resumed, dataset))
    [result] = _read(tmp_path / "stopped")
    if optimizer == "muon":
        whole = dataclasses.replace(config, output_dir=str(tmp_path / "whole"))
        run_experiment(MlpExperiment(whole, dataset))
        [expected] = _read(tmp_path / "whole")
    else:
        finished = {one.settings: one for one in _numbers(trained.results)}
        expected = finished[result.settings]
    assert result == expected


@pytest.mark.slow
def test_the_steps_that_are_timed_are_those_of_a_run(config, dataset):
    experiment = MlpExperiment(config, dataset)
    settings = experiment.settings("adamw", 1e-3, 0)
    state = experiment.advance(settings, *experiment.start(settings))
    timed, _ = cast("tuple[Any, Any]", experiment.timed_round("adamw")())
    # The same steps in another program, which may add in another order.
    for kernel, expected in zip(
        jax.tree.leaves(timed.params),
        jax.tree.leaves(state.trainable.params),
        strict=True,
    ):
        np.testing.assert_allclose(kernel, expected, atol=1e-6)


def test_too_many_steps_are_refused(config, dataset):
    many = dataclasses.replace(config, epochs=10**8)
    with pytest.raises(ValueError, match=r"number of steps .* at most 100000000, got"):
        MlpExperiment(many, dataset)


@pytest.mark.slow
def test_two_processes_give_the_same_numbers(tmp_path):
    for name in ("first", "second"):
        options = ["--epochs", "2", "--seeds", "3", "--final-seeds"]
        options += ["--timing-rounds", "0"]
        options += ["--optimizers", "adamw", "manifold_muon"]
        options += ["--learning-rates.adamw", "0.01"]
        options += ["--learning-rates.manifold-muon", "0.2"]
        options += ["--output-dir", str(tmp_path / name)]
        command = [sys.executable, "-m", "manifold_optax.experiments", "mlp", *options]
        subprocess.run(command, check=True, capture_output=True)
    assert len(_read(tmp_path / "first")) == 2
    assert _read(tmp_path / "first") == _read(tmp_path / "second")
