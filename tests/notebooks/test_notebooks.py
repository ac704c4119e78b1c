"""The notebooks: source and `.ipynb` agree, and every one executes."""

import json
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SOURCES = sorted((ROOT / "notebooks").glob("[0-9]*.py"))

# GitHub shows notebooks of up to 500 kB at once, and the hook for large files has the
# same limit.
LARGEST_BYTES = 450_000


def read_source(source: pathlib.Path) -> list[tuple[str, str]]:
    """Cells of a py:percent file: (kind, text)."""
    cells = []
    _, *parts = re.split(r"^# %%(.*)\n", source.read_text("utf-8"), flags=re.MULTILINE)
    for marker, body in zip(parts[::2], parts[1::2], strict=True):
        text = body.strip()
        if "[markdown]" in marker:
            text = re.sub(r"^# ?", "", text, flags=re.MULTILINE)
            cells.append(("markdown", text))
        else:
            cells.append(("code", text))
    return cells


def read_notebook(source: pathlib.Path) -> dict[str, Any]:
    return json.loads(source.with_suffix(".ipynb").read_text("utf-8"))


def test_there_are_eight() -> None:
    assert [source.stem[:2] for source in SOURCES] == [f"{n:02}" for n in range(8)]
    written = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert written == {source.stem for source in SOURCES}


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_a_notebook_has_the_cells_of_its_source_and_outputs(
    source: pathlib.Path,
) -> None:
    notebook = read_notebook(source)
    written = [
        (cell["cell_type"], "".join(cell["source"]).strip())
        for cell in notebook["cells"]
    ]
    # `make notebooks` writes them again.
    assert written == read_source(source)
    outputs = [out for cell in notebook["cells"] for out in cell.get("outputs", [])]
    assert outputs
    assert not [out for out in outputs if out["output_type"] == "error"]
    assert not [out for out in outputs if out.get("name") == "stderr"]
    assert any("image/png" in out.get("data", {}) for out in outputs)
    assert source.with_suffix(".ipynb").stat().st_size < LARGEST_BYTES


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_the_first_code_cell_installs_on_colab_alone_and_prints_versions(
    source: pathlib.Path,
) -> None:
    first = next(text for kind, text in read_source(source) if kind == "code")
    assert 'if "google.colab" in sys.modules:' in first
    assert 'FAST = "MANIFOLD_OPTAX_FULL" not in os.environ' in first
    assert "jax.__version__" in first
    assert "mo.__version__" in first
    # The claims of a notebook are checked where they are made.
    assert sum("assert" in text for kind, text in read_source(source)) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_a_notebook_runs_and_its_assertions_hold(source: pathlib.Path) -> None:
    environment = os.environ | {
        "MPLBACKEND": "Agg",
        "TQDM_DISABLE": "1",
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
    }
    environment.pop("XLA_FLAGS", None)
    environment.pop("MANIFOLD_OPTAX_FULL", None)
    result = subprocess.run(
        [sys.executable, str(source)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_jupytext_reads_the_same_cells(source: pathlib.Path) -> None:
    jupytext = pytest.importorskip("jupytext")
    cells = [(cell.cell_type, cell.source) for cell in jupytext.read(source).cells]
    assert cells == read_source(source)
