import asyncio
import base64
import dataclasses
import errno
import json
import os
import pathlib
import re
import signal

import jax.numpy as jnp
import pytest

from experiments.harness.quadratic import COMMAND, Quadratic, QuadraticConfig, Result
from manifold_optax.experiments.harness import run_experiment
from manifold_optax.experiments.harness.checkpoint import Checkpoints, open_checkpoints
from manifold_optax.experiments.harness.command_line import main
from manifold_optax.experiments.harness.output import UnusableOutputError
from manifold_optax.experiments.harness.records import read_records
from manifold_optax.experiments.harness.state import first_state


@pytest.fixture
def config(tmp_path):
    return QuadraticConfig(
        optimizers=("slow",), seeds=(0,), output_dir=str(tmp_path / "output")
    )


def _numbers(directory):
    """All results but the wall time."""
    results = read_records(pathlib.Path(directory) / "results.jsonl", Result)
    return [dataclasses.replace(result, seconds=0.0) for result in results]


def _stop(calls):
    """Runs the command line; returns its exit code."""
    with pytest.raises(SystemExit) as raised:
        main({"quadratic": COMMAND}, ["quadratic", *calls])
    return raised.value.code


def _one_line(capsys):
    """What the program said at its end: one line, no traceback."""
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said.rstrip("\n").splitlines()[-1]


def test_a_run_writes_table_results_events_figures_and_checkpoints(config):
    config = dataclasses.replace(
        config, optimizers=("slow", "fast"), seeds=(0, 1), timing_rounds=1
    )
    report = run_experiment(Quadratic(config))
    output = pathlib.Path(config.output_dir)
    assert report == (output / "report.md").read_text(encoding="utf-8")
    lines = (output / "results.jsonl").read_text(encoding="utf-8").splitlines()
    settings = [json.loads(line)["settings"] for line in lines]
    assert [(s["optimizer"], s["seed"]) for s in settings] == [
        ("slow", 0),
        ("slow", 1),
        ("fast", 0),
        ("fast", 1),
    ]
    assert {path.name for path in output.iterdir()} == {
        ".lock",
        "checkpoints",
        "learning_rates.png",
        "report.html",
        "report.md",
        "results.jsonl",
        "step_time.png",
        "tensorboard",
    }
    page = (output / "report.html").read_text(encoding="utf-8")
    for figure in output.glob("*.png"):
        assert base64.b64encode(figure.read_bytes()).decode() in page
    assert len(list((output / "checkpoints").iterdir())) == 4
    assert len(list((output / "tensorboard").glob("*/events.out.*"))) == 4


def test_resuming_skips_finished_runs_and_adds_new_ones(config):
    run_experiment(Quadratic(config))
    first = _numbers(config.output_dir)
    started = []

    class Spy(Quadratic):
        def start(self, settings):
            started.append(settings.seed)
            return super().start(settings)

    run_experiment(Spy(dataclasses.replace(config, seeds=(0, 1), resume=True)))
    assert started == [1]
    assert _numbers(config.output_dir)[:1] == first
    assert len(_numbers(config.output_dir)) == 2


LOSES_NOTHING = pytest.mark.promise(
    "State and checkpoints",
    "An interrupted experiment ends in one sentence and loses nothing",
    on="Ctrl-C, full disk",
)


@LOSES_NOTHING
def test_ctrl_c_ends_in_one_sentence_and_nothing_is_lost(config, monkeypatch, capsys):
    run_experiment(Quadratic(config))
    directory = f"{config.output_dir}-interrupted"
    options = ["--optimizers", "slow", "--seeds", "0", "--output-dir", directory]
    save = Checkpoints.save

    def save_and_interrupt(self, state):
        save(self, state)
        if int(state.round) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_interrupt)
        assert _stop(options) == 130
    assert "continue with --resume" in _one_line(capsys)
    assert not (pathlib.Path(directory) / "results.jsonl").exists()
    assert _stop(options) == 2
    assert "Add --resume" in _one_line(capsys)
    rounds = []

    def spy(self, state):
        rounds.append(int(state.round))
        save(self, state)

    monkeypatch.setattr(Checkpoints, "save", spy)
    main({"quadratic": COMMAND}, ["quadratic", *options, "--resume"])
    assert rounds == [3, 4]
    assert _numbers(directory) == _numbers(config.output_dir)


def test_sigterm_ends_in_one_sentence(config, monkeypatch, capsys):
    async def write():
        # Orbax writes in coroutines, too.
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Checkpoints, "save", lambda *_: asyncio.run(write()))
    before = signal.getsignal(signal.SIGTERM)
    options = ["--optimizers", "slow", "--seeds", "0"]
    assert _stop([*options, "--output-dir", config.output_dir]) == 143
    assert "continue with --resume" in _one_line(capsys)
    assert signal.getsignal(signal.SIGTERM) is before


def _refuse(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _refuse_file(name):
    """As `os.replace`, but there is no space for one file."""
    replace = os.replace

    def refusing(source, target):
        return _refuse() if str(target).endswith(name) else replace(source, target)

    return refusing


@LOSES_NOTHING
@pytest.mark.parametrize("where", ["results.jsonl", "report.html", "checkpoints"])
def test_a_full_disk_ends_in_one_sentence_and_loses_nothing(
    config, monkeypatch, capsys, where
):
    run_experiment(Quadratic(config))
    finished = _numbers(config.output_dir)
    options = ["--optimizers", "slow", "--output-dir", config.output_dir, "--resume"]
    options += ["--seeds", "0", "1"]
    with monkeypatch.context() as patch:
        if where == "checkpoints":
            patch.setattr("orbax.checkpoint.CheckpointManager.save", _refuse)
        else:
            patch.setattr(os, "replace", _refuse_file(where))
        assert _stop(options) == 1
    said = _one_line(capsys)
    assert "No space left on device" in said
    assert "continue with --resume" in said
    assert not list(pathlib.Path(config.output_dir).glob("*.tmp"))
    assert _numbers(config.output_dir)[:1] == finished
    main({"quadratic": COMMAND}, ["quadratic", *options])
    assert len(_numbers(config.output_dir)) == 2


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\x00",
        b"5\n",
        b"null\n",
        b'{"loss": []}\n',
        b'{"broken',
        100_000 * b"[",
        b'{"settings": 3, "distance": [], "seconds": 1.0}\n',
        b'{"settings": {}, "distance": [], "seconds": 1.0}\n',
    ],
    ids=["binary", "number", "null", "foreign", "broken", "deep", "typed", "partial"],
)
def test_foreign_results_are_explained_and_kept(config, capsys, content):
    output = pathlib.Path(config.output_dir)
    output.mkdir()
    (output / "results.jsonl").write_bytes(content)
    assert _stop(["--output-dir", str(output), "--resume"]) == 1
    assert re.search(r"results\.jsonl(, line 1 is not| cannot be)", _one_line(capsys))
    assert (output / "results.jsonl").read_bytes() == content


def test_a_diverged_run_is_reported_and_read_again(config):
    rates = dataclasses.replace(config.learning_rates, slow=(1e30,))
    config = dataclasses.replace(config, learning_rates=rates)
    assert "| not finite |" in run_experiment(Quadratic(config))
    resumed = dataclasses.replace(config, resume=True)
    assert "| not finite |" in run_experiment(Quadratic(resumed))


@pytest.mark.promise(
    "State and checkpoints",
    "Checkpoints with symbolic links are refused",
    on="experiments",
)
@pytest.mark.parametrize("below", ["", "run", "run/1"])
def test_checkpoints_with_a_symbolic_link_are_refused(tmp_path, below):
    (tmp_path / "real").mkdir()
    link = tmp_path / "output" / below
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(tmp_path / "real", target_is_directory=True)
    directory = tmp_path / "output" if below else link
    with (
        pytest.raises(UnusableOutputError, match="is a symbolic link"),
        open_checkpoints(directory),
    ):
        pass
    assert not list((tmp_path / "real").iterdir())


def test_checkpoints_that_are_a_file_are_refused(tmp_path):
    (tmp_path / "run").touch()
    with (
        pytest.raises(UnusableOutputError, match="must be a directory"),
        open_checkpoints(tmp_path / "run"),
    ):
        pass


def test_a_damaged_checkpoint_names_its_directory(tmp_path):
    state = first_state(jnp.arange(3.0), (), jnp.zeros(2))
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
        restored = checkpoints.restore_latest(state)
        assert restored.trainable.params.tolist() == [0, 1, 2]
    for path in tmp_path.rglob("*"):
        if path.is_file():
            path.write_text("zz")
    with (
        open_checkpoints(tmp_path) as checkpoints,
        pytest.raises(UnusableOutputError, match=re.escape(str(tmp_path))),
    ):
        checkpoints.restore_latest(state)
