"""The Python of docs/certificates.md runs, and prints what the page shows."""

import contextlib
import io
import pathlib
import re
from typing import Any

import jax
import pytest

PAGE = pathlib.Path(__file__).parents[3] / "docs" / "certificates.md"


@pytest.mark.slow
def test_blocks_run_and_print_what_the_page_shows(unhooked: None) -> None:
    text = PAGE.read_text("utf-8")
    namespace: dict[str, Any] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), jax.numpy_rank_promotion("allow"):
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            exec(compile(block, "page.py", "exec"), namespace)
    for shown in re.findall(r"```text\n(.*?)```", text, re.DOTALL):
        assert shown.strip() in printed.getvalue()
