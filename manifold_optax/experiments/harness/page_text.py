"""Markdown of reports → HTML, with no way to anything but text."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

_RULES = (
    "code",
    "fence",
    "heading",
    "list",
    "table",
    "backticks",
    "emphasis",
    "entity",
    "escape",
)
"""What reports are written in. HTML, links and images are not among it."""

_LONGEST_ON_ONE_LINE = 40
"""Characters of a cell that is not broken; sentences are longer, names shorter."""


class Heading(NamedTuple):
    """A section of the page, by its title and its anchor."""

    title: str
    anchor: str


def to_html(markdown: str) -> tuple[str, list[Heading]]:
    """Turns a report into HTML.

    Args:
        markdown: The report.

    Returns:
        The HTML, all tables of which scroll by themselves, and its sections.
    """
    parser = MarkdownIt("zero").enable(_RULES)
    parser.add_render_rule("table_open", _open_table)
    parser.add_render_rule("table_close", _close_table)
    tokens = parser.parse(markdown)
    headings = _mark(tokens)
    return parser.renderer.render(tokens, parser.options, {}), headings


def _mark(tokens: Sequence[Token]) -> list[Heading]:
    """Sets the attributes of headings, tables, cells and code; returns the sections."""
    headings: list[Heading] = []
    tables = 0
    for number, token in enumerate(tokens):
        inner = tokens[number + 1].content if number + 1 < len(tokens) else ""
        match token.type:
            case "heading_open" if token.tag == "h2":
                headings.append(Heading(inner, f"section-{len(headings) + 1}"))
                token.attrSet("id", headings[-1].anchor)
            case "table_open":
                tables += 1
                token.attrSet("aria-label", f"Table {tables}")
            case "th_open":
                token.attrSet("scope", "col")
            case "td_open" if len(inner) > _LONGEST_ON_ONE_LINE:
                token.attrSet("class", "sentence")
            case "code_block":
                token.attrSet("tabindex", "0")
            case _:
                pass
    return headings


def _open_table(
    renderer: RendererHTML,
    tokens: Sequence[Token],
    number: int,
    options: Mapping[str, Any],
    env: Mapping[str, Any],
) -> str:
    del options, env
    label = renderer.renderAttrs(tokens[number])
    return f'<div class="scroll" role="region" tabindex="0"{label}>\n<table>\n'


def _close_table(
    renderer: RendererHTML,
    tokens: Sequence[Token],
    number: int,
    options: Mapping[str, Any],
    env: Mapping[str, Any],
) -> str:
    del renderer, tokens, number, options, env
    return "</table>\n</div>\n"
