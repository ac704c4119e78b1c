"""The soak of nightly, for a minute: faults strike, and nothing is lost."""

import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "soak.py"

SECONDS = 1500
"""Ten times what it takes on two cores; then a process counts as stuck."""


@pytest.mark.promise(
    "Faults",
    "Kills, NaN gradients and other numbers of devices: a training ends where it would",
    on="digits MLP, small language model",
)
@pytest.mark.slow
def test_a_minute_of_faults_loses_nothing() -> None:
    words = ["--minutes", "1", "--steps", "400", "--kills", "3", "--save-every", "20"]
    found = subprocess.run(
        [sys.executable, SCRIPT, *words],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.endswith("Nothing was lost.\n")
    # Two trainings, each without a break, killed, and moved.
    assert found.stdout.count("| ok |") == 6
