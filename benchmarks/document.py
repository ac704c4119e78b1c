"""A Markdown document whose chapters are written by different scripts."""

import pathlib
from collections.abc import Iterable

_HEADING = "## "


def print_all(lines: Iterable[str]) -> list[str]:
    """Prints each line as soon as it is found, and gives them all."""
    kept = []
    for line in lines:
        print(line, flush=True)
        kept.append(line)
    return kept


def write_chapter(
    path: pathlib.Path, document: str, chapter: str, lines: Iterable[str]
) -> None:
    """Replaces the chapter of this title, or appends it; other chapters stay."""
    text = path.read_text() if path.exists() else f"# {document}\n"
    opening, *others = f"\n{text}".split(f"\n{_HEADING}")
    chapters = dict(other.split("\n", 1) for other in others)
    chapters[chapter] = "\n" + "\n".join(lines).strip() + "\n"
    parts = [f"{_HEADING}{title}\n\n{body.strip()}" for title, body in chapters.items()]
    path.write_text("\n\n".join([opening.strip(), *parts]) + "\n")
