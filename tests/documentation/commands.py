"""The commands that stand on the pages."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES += [*ROOT.glob("docs/*.md"), *ROOT.glob("docs/guides/*.md")]

_SHELL = ("", "bash", "sh", "console")


def commands(page: pathlib.Path) -> list[str]:
    """Lines of code blocks of the shell or without a language, and inline code.

    Lines that end in a backslash are joined with the next.
    """
    lines, prose, language = [], [], None
    for line in page.read_text("utf-8").splitlines():
        if line.startswith("```"):
            language = line[3:].strip() if language is None else None
        elif language is None:
            prose.append(line)
        elif language in _SHELL:
            lines.append(line)
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [*joined, *re.findall(r"`([^`\n]+)`", "\n".join(prose))]
