"""Pages of the documentation, run as a reader would."""

import contextlib
import io
import pathlib
import re
from typing import Any

import jax

DOCS = pathlib.Path(__file__).parents[2] / "docs"


NUMBER = re.compile(r"\d+\.\d+")


def check_page(name: str, file: str, *, rtol: float = 0.0) -> dict[str, Any]:
    """Runs the Python of a page, which must print all that the page shows.

    Args:
        name: of the page in `docs`.
        file: what the code is called in source lines that it prints.
        rtol: how far decimal numbers may be from those of the page.

    Returns:
        What the code has defined.
    """
    text = (DOCS / name).read_text("utf-8")
    namespace: dict[str, Any] = {}
    printed = io.StringIO()
    # Users add biases without a thought to ranks.
    with contextlib.redirect_stdout(printed), jax.numpy_rank_promotion("allow"):
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            exec(compile(block, file, "exec"), namespace)
    output = printed.getvalue()
    for shown in re.findall(r"```text\n(.*?)```", text, re.DOTALL):
        words = NUMBER.sub("#", shown.strip())
        start = NUMBER.sub("#", output).find(words)
        assert start >= 0, output
        first = NUMBER.sub("#", output)[:start].count("#")
        numbers = NUMBER.findall(output)[first:]
        for wanted, found in zip(NUMBER.findall(shown), numbers, strict=False):
            assert abs(float(found) - float(wanted)) <= rtol * float(wanted), output
    return namespace
