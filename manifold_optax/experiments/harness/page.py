"""The report as one file of HTML, which can be sent to somebody and opened anywhere.

Figures are inside, and nothing is fetched. All text is text: the settings, the paths
and what a language model wrote cannot become a script, an image or a link.
"""

import base64
import dataclasses
import os
import platform
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from manifold_optax._machine import device_kinds, package_version
from manifold_optax.experiments.harness.config_file import format_overrides
from manifold_optax.experiments.harness.experiment import GridExperiment
from manifold_optax.experiments.harness.figures import Picture
from manifold_optax.experiments.harness.page_style import STYLE
from manifold_optax.experiments.harness.page_text import Heading, to_html

_PACKAGES = ("manifold-optax", "jax", "jaxlib", "optax", "flax", "numpy")
_PIXELS_PER_INCH = 96
"""Pixels of CSS: developer.mozilla.org/docs/Web/CSS/length."""
_PHONE_INCHES = 6.5
"""Wider figures are scrolled on a phone; their letters would be too small to read."""

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Browsers run nothing and fetch nothing, even if some text were taken for HTML."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """The command that started an experiment.

    Attributes:
        name: Name of the experiment.
        help: What it does, in a few words.
        command: The command line, without `--resume`: as it makes the report anew.
    """

    name: str
    help: str
    command: str


def format_page(
    experiment: GridExperiment[Any, Any, Any],
    report: str,
    pictures: Sequence[Picture],
    origin: Origin | None,
) -> str:
    """Returns the report as a page of HTML.

    Args:
        experiment: The experiment.
        report: Its report, as Markdown.
        pictures: Its figures.
        origin: The command that started it, if one did.

    Returns:
        The page: report, figures, then how they were made. It depends on nothing else,
        so that a resumed experiment writes the same page.
    """
    name = origin.name if origin else type(experiment).__name__
    body, headings = to_html(report)
    sections = [
        *headings,
        *([Heading("Figures", "figures")] if pictures else []),
        Heading("How it was made", "how"),
    ]
    links = "".join(
        f'<li><a href="#{each.anchor}">{escape(each.title)}</a></li>'
        for each in sections
    )
    about = f"<p>{escape(_begin(origin.help))}.</p>\n" if origin else ""
    parts = [
        f"<header>\n<h1>{escape(name)}</h1>\n{about}</header>",
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>',
        f"<main>\n{body}{_figures(pictures)}{_how(experiment, origin)}</main>",
    ]
    return _document(f"{name}: report", "\n".join(parts))


def _document(title: str, body: str) -> str:
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""


def _figures(pictures: Sequence[Picture]) -> str:
    if not pictures:
        return ""
    return "\n".join(
        ['<h2 id="figures">Figures</h2>', *map(_figure, pictures), ""],
    )


def _figure(picture: Picture) -> str:
    title = _begin(picture.name.replace("_", " ").replace("-", ": ", 1))
    data = base64.b64encode(picture.png).decode("ascii")
    width = round(picture.inches * _PIXELS_PER_INCH)
    card, image = '<div class="card">', "<img"
    if picture.inches > _PHONE_INCHES:
        label = escape(title)
        card = f'<div class="card" role="region" tabindex="0" aria-label="{label}">'
        image = '<img class="wide"'
    alt = f"{title}: {picture.says}" if picture.says else title
    return (
        f"<figure>\n{card}"
        f'{image} width="{width}" alt="{escape(alt)}" '
        f'src="data:image/png;base64,{data}"></div>\n'
        f"<figcaption>{escape(title)} (<code>{escape(picture.name)}.png</code>)"
        f"</figcaption>\n</figure>"
    )


def _begin(words: str) -> str:
    """Makes the first letter a capital, and leaves the others."""
    return words[:1].upper() + words[1:]


def _how(experiment: GridExperiment[Any, Any, Any], origin: Origin | None) -> str:
    command = (
        f'<pre class="command"><code>{escape(origin.command)}</code></pre>'
        if origin
        else "<p>Started from Python, not by a command.</p>"
    )
    # Whether it was resumed makes no difference to what is reported.
    settings = format_overrides(dataclasses.replace(experiment.config, resume=False))
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>\n'
        for name, value in _versions().items()
    )
    return f"""<h2 id="how">How it was made</h2>
{command}
<table class="facts">
{rows}</table>
<p>These wrote the report. Runs that were finished earlier may have had others.</p>
<details>
<summary>Settings, as a file for <code>--config</code></summary>
<pre tabindex="0"><code>{escape(settings)}</code></pre>
</details>
"""


def _versions() -> Mapping[str, str]:
    return {
        **{name: package_version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "system": f"{platform.platform()}, {os.cpu_count()} cores",
        "devices": ", ".join(device_kinds()),
    }
