"""Links of the pages to files outside of them: to the repository, if there is one."""

import os
import re

from sphinx.application import Sphinx

_LINK = re.compile(r"\[([^\]\[]*(?:\[[^\]]*\][^\]\[]*)*)\]\(\.\./([^)\s]+)\)")


def process(app: Sphinx, name: str, source: list[str]) -> None:
    """Rewrites `[text](../path)` of a page in place."""
    del app
    repository = os.environ.get("GITHUB_REPOSITORY")
    depth = name.count("/")

    def link(found: re.Match[str]) -> str:
        text, path = found[1], found[2]
        if path.startswith("notebooks/"):  # docs/conf.py copies them.
            return f"[{text}](tutorials/{path.removeprefix('notebooks/')})"
        if repository:
            return f"[{text}](https://github.com/{repository}/blob/main/{path})"
        return f"{text} (`{path}`)"

    if depth == 0:
        source[0] = _LINK.sub(link, source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the extension."""
    app.connect("source-read", process)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
