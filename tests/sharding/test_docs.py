"""The Python of docs/sharded_training.md runs, from top to bottom, on eight devices."""

import inspect
import pathlib
import re
from typing import Any

import pytest
from flax import nnx

from sharding.layouts import TOLERANCE

pytestmark = pytest.mark.devices

if "out_sharding" not in inspect.signature(nnx.Embed.__call__).parameters:
    pytest.skip("the page asks for Flax 0.12.3", allow_module_level=True)

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "sharded_training.md"


def test_python_blocks_run_and_print_what_the_page_shows(
    unhooked: None, capsys: pytest.CaptureFixture[str]
) -> None:
    page = PAGE.read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert blocks
    namespace: dict[str, Any] = {}
    for block in blocks:
        exec(block, namespace)
    first, second, third = namespace["losses"]
    assert third < second < first
    # The same steps under the compiler's own partition of the model: sums over eight
    # parts, of losses of about 4.
    assert namespace["again"] == pytest.approx(first, abs=TOLERANCE)
    assert float(namespace["value"]) == pytest.approx(second, abs=TOLERANCE)
    printed = capsys.readouterr().out.splitlines()
    assert printed
    assert [line for line in printed if line not in page] == []
