"""The Python of docs/monitoring.md runs, and prints what the page shows."""

import json
import pathlib

import pytest

from manifold_optax.diagnostics import MEASURES
from modular.pages import check_page


@pytest.mark.slow
def test_the_page_prints_what_it_shows(
    unhooked: None, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Two decimals of numbers that 300 steps of rounding have gone into.
    check_page("monitoring.md", "monitoring.py", rtol=0.1)
    (line,) = (tmp_path / "run.jsonl").read_text("utf-8").splitlines()
    assert set(json.loads(line)) == {"step", *MEASURES} - {"residual"}
