"""The Python of every page runs, from top to bottom."""

import pathlib
import re
from typing import Any

import jax
import pytest

DOCS = pathlib.Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)

# Pages with a test of their own, which also compares what they print.
ELSEWHERE = {
    "certificates.md",
    "checkpoints.md",
    "modular_manifolds.md",
    "monitoring.md",
    "muon_clip.md",
    "sharded_training.md",
    "wrappers.md",
}
# Some lines out of their context.
EXCERPTS = {"index.md", "performance.md"}


def pages_with_code() -> list[str]:
    pages = [*DOCS.glob("*.md"), *DOCS.glob("guides/*.md")]
    names = (
        page.relative_to(DOCS).as_posix()
        for page in pages
        if BLOCK.search(page.read_text("utf-8"))
    )
    return sorted({*names} - ELSEWHERE - EXCERPTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", pages_with_code())
def test_the_python_of_a_page_runs(
    unhooked: None, name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    with jax.numpy_rank_promotion("allow"):
        for block in BLOCK.findall((DOCS / name).read_text("utf-8")):
            exec(compile(block, name, "exec"), namespace)


def test_every_page_is_in_the_contents() -> None:
    contents = (DOCS / "index.md").read_text("utf-8")
    pages = {
        page.relative_to(DOCS).with_suffix("").as_posix()
        for page in (*DOCS.glob("*.md"), *DOCS.glob("guides/*.md"))
    }
    assert not [page for page in pages - {"index"} if f"\n{page}\n" not in contents]
