"""Docstrings for Sphinx: their code and tables are Markdown, as the pages are."""

import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

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
            yield f"{indent}   {'* -' if number == 0 else '  -'} {_literals(cell)}"
    yield ""


def _cells(line: str) -> list[str]:
    cells = re.split(r"(?<!\\)\|", line.strip()[1:-1])
    return [cell.strip().replace("\\|", "|") for cell in cells]


def paragraphs(lines: Sequence[str]) -> Iterator[str]:
    """Lines in which code is code for reStructuredText too.

    What is in single backticks becomes a literal. An indented block below a line that
    ends with a colon is a block of code. A bar begins no substitution.
    """
    code_from: int | None = None
    blocks = re.split(r"\n(?: *\n)+", "\n".join(lines).strip("\n"))
    for number, block in enumerate(blocks):
        indent = len(block) - len(block.lstrip())
        if code_from is not None and indent > code_from:
            yield from block.split("\n")
        elif block.lstrip().startswith((">>> ", ".. list-table")):
            code_from = None
            yield from block.split("\n")
        else:
            code_from = None
            last = block.split("\n")[-1]
            following = blocks[number + 1] if number + 1 < len(blocks) else ""
            depth = len(last) - len(last.lstrip())
            inside = len(following) - len(following.lstrip())
            text = _literals(block)
            if last.endswith(":") and inside > depth and following.strip():
                code_from = depth
                text += ":"
            yield from text.split("\n")
        yield ""


def _literals(block: str) -> str:
    pieces = re.split(r"(`+[^`]+`+)", block)
    done = []
    for piece, after in zip(pieces, [*pieces[1:], ""], strict=True):
        if piece.startswith("`"):
            code = " ".join(piece.strip("`").split())
            stuck = "\\ " if re.match(r"\w", after) else ""
            done.append(f"``{code}``{stuck}")
        else:
            done.append(re.sub(r"\|(?=\S)", r"\\|", piece))
    return "".join(done)


def beside_assignment(name: str, value: Any) -> list[str]:
    """The string below the assignment of a constant, wherever it was imported from."""
    for path, module in sorted(sys.modules.items()):
        if path.startswith("manifold_optax.") and getattr(module, name, None) is value:
            documented = ModuleAnalyzer.for_module(path).find_attr_docs()
            if ("", name) in documented:
                return documented["", name]
    raise ValueError(f"The constant {name} has no docstring below its assignment.")


def process(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Rewrites one docstring in place, before its sections are read."""
    del app, options
    if what == "data":
        lines[:] = beside_assignment(name.rpartition(".")[2], obj)
    lines[:] = list(paragraphs(list(tables(lines))))


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the extension."""
    # Before napoleon, whose priority is 500.
    app.connect("autodoc-process-docstring", process, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
