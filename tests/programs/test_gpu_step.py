"""The benchmark of one accelerator at toy sizes, on the CPU: every table has rows."""

import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "gpu_step.py"

SECONDS = 1200
"""Ten times what it takes on two cores; then it counts as stuck."""

ROWS = {
    "Share of a training step": 4,  # optimizers
    "Whole step": 10,  # five optimizers, two dtypes
    "Symmetric products": 4,  # two batches, two dtypes
    "Precision of the products": 8,  # four products, two forms
    "Momentum in fewer bytes": 4,  # dtypes
    "Stiefel solver": 3,  # backends
}


def run(*options: str) -> str:
    found = subprocess.run(
        [sys.executable, SCRIPT, *options],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


def tables(chapter: str) -> dict[str, list[list[str]]]:
    """Cells of the rows by title, the head first."""
    found = {}
    for part in chapter.split("\n### ")[1:]:
        title, body = part.split("\n", 1)
        lines = [line for line in body.split("\n") if line.startswith("| ")]
        found[title] = [line.strip("| ").split(" | ") for line in lines]
    return found


@pytest.mark.slow
def test_every_table_has_its_rows_on_a_cpu() -> None:
    found = tables(run("--small", "--batch", "1"))
    assert {title: len(rows) - 1 for title, rows in found.items()} == ROWS
    for head, *rows in found.values():
        # A row of two cells stands for one that failed, and says why.
        assert all(len(row) == len(head) for row in rows), rows
    training = found["Share of a training step"][1:]
    assert {row[0] for row in training} == {"small, remat, 1 x 32"}
    shares = [float(row[6].strip("%")) for row in training]
    assert all(0 < share < 100 for share in shares)
    # The kernel is not timed here, but its result is symmetric.
    products = found["Symmetric products"][1:]
    assert {(*row[3:5], row[7]) for row in products} == {("–", "–", "yes")}


@pytest.mark.slow
def test_without_an_accelerator_the_chapter_says_so() -> None:
    chapter = run()
    assert chapter.startswith("**Not measured**")
    assert tables(chapter) == {title: [] for title in ROWS}
