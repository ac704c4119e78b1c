"""Docstrings for Sphinx: their code and tables are Markdown, as the pages are."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sphinx.application import Sphinx

_SOURCE = re.compile(r"^(\s*)Source: ")


def tables(lines: Sequence[str]) -> Iterator[str]:
    """Lines with their Markdown tables as tables of reStructuredText."""
    block: list[str] = []
    for line in [*lines, ""]:
        if line.lstrip().startswith("|"):
            block.append(line)
            continue
        if block:
            yield from _table(block)
            block = []
        yield line


def _table(block: Sequence[str]) -> Iterator[str]:
    indent = " " * (len(block[0]) - len(block[0].lstrip()))
    rows = [_cells(line) for line in block]
    if len(rows) < 3 or not all(set(cell) <= set("-: ") for cell in rows[1]):
        yield from block
        return
    header, body = rows[0], rows[2:]
    yield from ("", f"{indent}.. list-table::")
    if any(header):
        yield f"{indent}   :header-rows: 1"
    yield ""
    for row in [header, *body] if any(header) else body:
        for number, cell in enumerate(row):
            yield f"{indent}   {'* -' if number == 0 else '  -'} {cell}"
    yield ""


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def spaced_lists(lines: Iterable[str]) -> Iterator[str]:
    """A blank line before a list, which Markdown does not ask for."""
    before = ""
    for line in lines:
        starts = re.match(r"\s*[-*] \S", line) and not re.match(r"\s*[-*] \S", before)
        if starts and before.strip() and not before.startswith(line[:1].join(["", ""])):
            yield ""
        yield line
        before = line


def process(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Rewrites one docstring in place, before its sections are read."""
    del app, what, name, obj, options
    lines[:] = tables(lines)


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the extension."""
    # Before napoleon, whose priority is 500.
    app.connect("autodoc-process-docstring", process, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
