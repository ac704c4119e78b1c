import dataclasses
import json
import pathlib
import subprocess
import sys

import pytest

from manifold_optax.experiments import mlp
from manifold_optax.experiments.checkpoint import Checkpoints, open_checkpoints
from manifold_optax.experiments.data import hold_out
from manifold_optax.experiments.mlp import make_runs, run_mlp
from manifold_optax.experiments.results import read_results
from manifold_optax.experiments.train import make_problem, Splits


def _numbers(directory):
    """All results but the wall time."""
    results = read_results(pathlib.Path(directory) / "results.jsonl")
    return [dataclasses.replace(result, seconds=0.0) for result in results]


def _make_runs(config, dataset):
    splits = Splits(dataset.train, dataset.validation, dataset.test)
    return make_runs(config, make_problem(config, dataset), splits)


def _moved(config, tmp_path, name, **changes):
    return dataclasses.replace(config, output_dir=str(tmp_path / name), **changes)


class _Interrupted(Exception):
    """Stands for a killed process."""


def test_a_run_writes_table_results_events_figures_and_checkpoints(config, dataset):
    config = dataclasses.replace(config, optimizers=("adamw", "hyperspherical"))
    report = run_mlp(config, dataset)
    output = pathlib.Path(config.output_dir)
    assert report == (output / "report.md").read_text(encoding="utf-8")
    assert "| hyperspherical | 0.1 " in report
    assert {path.name for path in output.glob("*.png")} == {
        "accuracy.png",
        "loss.png",
        "singular_values.png",
        "step_time.png",
    }
    lines = (output / "results.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["settings"]["optimizer"] for row in rows] == list(config.optimizers)
    assert [len(values) for values in rows[1]["singular_values"]] == [8, 8, 4]
    assert rows[1]["residual"] < 1e-5
    assert rows[0]["residual"] is None
    assert len(list((output / "checkpoints").iterdir())) == 2
    assert len(list((output / "tensorboard").glob("*/events.out.*"))) == 2


def test_the_same_seed_gives_the_same_numbers(config, dataset, tmp_path):
    config = dataclasses.replace(config, optimizers=("adamw",))
    for name in ("first", "second"):
        _make_runs(_moved(config, tmp_path, name), dataset)
    assert _numbers(tmp_path / "first") == _numbers(tmp_path / "second")


@pytest.mark.slow
def test_two_processes_give_the_same_numbers(tmp_path):
    for name in ("first", "second"):
        options = ["--epochs", "2", "--seeds", "3", "--timing-rounds", "0"]
        options += ["--optimizers", "adamw", "manifold_muon"]
        options += ["--output-dir", str(tmp_path / name)]
        command = [sys.executable, "-m", "manifold_optax.experiments", "mlp", *options]
        subprocess.run(command, check=True, capture_output=True)
    assert len(_numbers(tmp_path / "first")) == 2
    assert _numbers(tmp_path / "first") == _numbers(tmp_path / "second")


@pytest.mark.parametrize(
    "optimizer",
    [
        "adamw",
        *(pytest.param(o, marks=pytest.mark.slow) for o in ("muon", "manifold_muon")),
    ],
)
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    config, dataset, tmp_path, monkeypatch, optimizer
):
    config = _moved(
        config, tmp_path, "whole", optimizers=(optimizer,), checkpoint_every=2
    )
    _make_runs(config, dataset)
    save = Checkpoints.save

    def save_and_stop(self, state):
        save(self, state)
        raise _Interrupted

    stopped = _moved(config, tmp_path, "stopped")
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_stop)
        with pytest.raises(_Interrupted):
            _make_runs(stopped, dataset)
    assert not (tmp_path / "stopped" / "results.jsonl").exists()
    with pytest.raises(FileExistsError, match="Add --resume"):
        _make_runs(stopped, dataset)
    _make_runs(dataclasses.replace(stopped, resume=True), dataset)
    assert _numbers(tmp_path / "stopped") == _numbers(tmp_path / "whole")


def test_resuming_skips_finished_runs_and_adds_new_ones(config, dataset, monkeypatch):
    config = dataclasses.replace(config, optimizers=("adamw",))
    _make_runs(config, dataset)
    first = _numbers(config.output_dir)
    started = []
    start_run = mlp.start_run

    def spy(*args, seed, **kwargs):
        started.append(seed)
        return start_run(*args, seed=seed, **kwargs)

    monkeypatch.setattr(mlp, "start_run", spy)
    _make_runs(dataclasses.replace(config, seeds=(0, 1), resume=True), dataset)
    assert started == [1]
    assert _numbers(config.output_dir)[:1] == first
    assert len(_numbers(config.output_dir)) == 2


def test_results_are_never_overwritten(config, dataset):
    output = pathlib.Path(config.output_dir)
    output.mkdir()
    (output / "results.jsonl").write_text("")
    with pytest.raises(FileExistsError, match="Add --resume to continue"):
        run_mlp(config, dataset)


def test_foreign_results_are_an_error(config, dataset):
    output = pathlib.Path(config.output_dir)
    output.mkdir()
    (output / "results.jsonl").write_text('{"loss": []}\n')
    with pytest.raises(ValueError, match=r"results\.jsonl, line 1 is not a result"):
        run_mlp(dataclasses.replace(config, resume=True), dataset)


def test_checkpoint_with_a_symbolic_link_is_refused(tmp_path):
    (tmp_path / "link").symlink_to("/etc/passwd")
    with (
        pytest.raises(ValueError, match="is a symbolic link"),
        open_checkpoints(tmp_path),
    ):
        pass


def test_a_diverged_run_is_reported(config, dataset):
    rates = dataclasses.replace(config.learning_rates, adamw=(1e30,))
    report = run_mlp(
        dataclasses.replace(
            config, optimizers=("adamw",), learning_rates=rates, timing_rounds=0
        ),
        dataset,
    )
    assert "not finite / not finite / not finite" in report


def test_a_validation_set_ranks_the_table(config, dataset):
    rates = dataclasses.replace(config.learning_rates, adamw=(1e-6, 0.01))
    config = dataclasses.replace(
        config,
        optimizers=("adamw",),
        learning_rates=rates,
        validation_examples=50,
        timing_rounds=0,
    )
    report = run_mlp(config, hold_out(dataset, 50)).splitlines()
    assert "validation %" in report[0]
    assert report[2].startswith("| adamw     | 0.01 ")
    assert report[3].startswith("| adamw     | 1e-06 ")
