"""Runs that are killed end where an uninterrupted run ends, to the bit."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

import manifold_optax as mo
from experiments.harness import trained

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="signals are those of POSIX"),
]

SECONDS = 180
"""Ten times what a whole run takes on two loaded cores; then it counts as stuck."""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of parameters and state at the end of a run that nothing stopped."""
    output = tmp_path_factory.mktemp("uninterrupted") / "output"
    process = start(output)
    said = ended(process)
    assert process.returncode == 0, said
    return digest(output)


def start(output: pathlib.Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", trained.__file__, "trained"]
    # The code that is tested here, wherever it is installed.
    library = str(pathlib.Path(mo.__file__).parents[1])
    return subprocess.Popen(
        [*command, "--output-dir", str(output), *options],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": library},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> str:
    """What a process has said when it has ended by itself."""
    try:
        said, _ = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    return said


def digest(output: pathlib.Path) -> str:
    (line,) = (output / "results.jsonl").read_text("utf-8").splitlines()
    return json.loads(line)["digest"]


def checkpoints(output: pathlib.Path) -> list[str]:
    """The rounds that are saved, and what is being saved, of the only run."""
    return [path.name for path in output.glob("checkpoints/*/*")]


def saved(output: pathlib.Path) -> int:
    return max((int(name) for name in checkpoints(output) if name.isdigit()), default=0)


def is_saving(output: pathlib.Path) -> bool:
    return any("orbax-checkpoint-tmp" in name for name in checkpoints(output))


def wait(process: subprocess.Popen[str], until: Callable[[], Any]) -> None:
    deadline = time.monotonic() + SECONDS
    while not until():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the run makes no progress"
        time.sleep(0.0005)


def stopped(output: pathlib.Path, number: int, *, saving: bool, rng: Any) -> Any:
    """Starts or continues the run, and sends it a signal two rounds or more later.

    Returns:
        The process, and whether the signal fell into a save.
    """
    before = saved(output)
    process = start(output, *(["--resume"] if before else []))
    wait(process, lambda: saved(output) >= before + 2)
    time.sleep(rng.uniform(0, 0.2))
    wait(process, lambda: is_saving(output) == saving)
    process.send_signal(number)
    return process


@pytest.mark.promise(
    "State and checkpoints",
    "Killed in a step or in a save, an experiment resumes to the bit",
    on="`kill -9`",
)
def test_killed_in_steps_and_in_saves(
    tmp_path: pathlib.Path, uninterrupted: str
) -> None:
    rng, output, in_saves = random.Random(0), tmp_path / "output", 0
    for saving in (True, False, True, False):
        process = stopped(output, signal.SIGKILL, saving=saving, rng=rng)
        ended(process)
        assert process.returncode == -signal.SIGKILL
        assert not (output / "results.jsonl").exists()
        in_saves += is_saving(output)
    # The others were over before the signal arrived.
    assert in_saves >= 1
    process = start(output, "--resume")
    assert "Written to" in ended(process)
    assert digest(output) == uninterrupted
    assert not is_saving(output)


@pytest.mark.promise(
    "State and checkpoints",
    "Asked to stop, an experiment says so in one sentence and resumes to the bit",
    on="SIGINT, SIGTERM",
)
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_asked_to_stop(
    tmp_path: pathlib.Path, uninterrupted: str, number: int, code: int
) -> None:
    rng, output, done = random.Random(code), tmp_path / "output", 0
    for saving in (True, False):
        process = stopped(output, number, saving=saving, rng=rng)
        said = ended(process)
        assert process.returncode == code, said
        assert "Traceback" not in said
        kept = f"interrupted. What is finished is kept in {output}; continue with"
        assert said.splitlines()[-1].endswith(f"{kept} --resume.")
        assert saved(output) > done
        done = saved(output)
    process = start(output, "--resume")
    assert "Written to" in ended(process)
    assert digest(output) == uninterrupted
