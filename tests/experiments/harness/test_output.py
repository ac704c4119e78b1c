import pathlib
import signal
import subprocess
import sys

import pytest

from manifold_optax.experiments.harness import output
from manifold_optax.experiments.harness.output import (
    claim_directory,
    UnusableOutputError,
)

# The module alone, without the package, needs nothing but the standard library.
_HOLD = """
import importlib.util, pathlib, sys, time
spec = importlib.util.spec_from_file_location("output", sys.argv[1])
output = importlib.util.module_from_spec(spec)
spec.loader.exec_module(output)
with output.claim_directory(pathlib.Path(sys.argv[2]), resume=False):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.promise(
    "State and checkpoints",
    "A directory of results belongs to one process",
    on="experiments",
)
def test_a_directory_belongs_to_one_process_until_it_is_killed(tmp_path):
    command = [sys.executable, "-c", _HOLD, str(output.__file__), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        holder = f"in use by process {process.pid}"
        with (
            pytest.raises(UnusableOutputError, match=holder),
            claim_directory(tmp_path, resume=True),
        ):
            pass
        process.send_signal(signal.SIGKILL)
    with claim_directory(tmp_path, resume=False):
        assert list(tmp_path.iterdir()) == [tmp_path / ".lock"]


def test_a_directory_is_free_again_after_the_run(tmp_path):
    for _ in range(2):
        with claim_directory(tmp_path, resume=False):
            pass


@pytest.mark.promise(
    "Experiments", "Earlier results are never overwritten", on="harness"
)
@pytest.mark.parametrize("name", ["results.jsonl", "checkpoints"])
def test_earlier_results_are_never_overwritten(tmp_path, name):
    (tmp_path / name).mkdir() if name == "checkpoints" else (tmp_path / name).touch()
    with (
        pytest.raises(FileExistsError, match="Add --resume to continue"),
        claim_directory(tmp_path, resume=False),
    ):
        pass
    with claim_directory(tmp_path, resume=True):
        pass


def _as_file(path: pathlib.Path) -> None:
    path.write_text("mine")


def _as_directory(path: pathlib.Path) -> None:
    path.mkdir()


def _as_link(path: pathlib.Path) -> None:
    path.symlink_to(path.parent.parent)


@pytest.mark.parametrize(
    ("name", "make", "kind"),
    [
        ("checkpoints", _as_file, "directory"),
        ("checkpoints", _as_link, "directory"),
        ("tensorboard", _as_file, "directory"),
        ("report.md", _as_directory, "file"),
        ("report.html", _as_link, "file"),
        ("results.jsonl", _as_directory, "file"),
        ("results.jsonl", _as_link, "file"),
    ],
)
def test_a_name_of_the_wrong_kind_is_explained_at_once(tmp_path, name, make, kind):
    (tmp_path / "out").mkdir()
    make(tmp_path / "out" / name)
    with (
        pytest.raises(UnusableOutputError, match=rf"{name} must be a {kind} and not"),
        claim_directory(tmp_path / "out", resume=True),
    ):
        pass


def test_a_directory_that_cannot_be_made_is_explained(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UnusableOutputError, match="Cannot make output_dir"),
        claim_directory(tmp_path / "file" / "below", resume=False),
    ):
        pass
