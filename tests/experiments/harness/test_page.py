"""The page of a report: one file that runs nothing, fetches nothing, and is read."""

import base64
import dataclasses
import html
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from experiments.harness.quadratic import Quadratic, QuadraticConfig
from manifold_optax.experiments import __main__ as program
from manifold_optax.experiments.harness import Origin
from manifold_optax.experiments.harness.config_file import format_overrides
from manifold_optax.experiments.harness.figures import panels, Picture, save_figure
from manifold_optax.experiments.harness.page import format_page
from manifold_optax.experiments.harness.typed import replace_typed

CONFIGS = Path(__file__).parents[3] / "configs"
# developer.mozilla.org/docs/Glossary/Void_element
VOID = {"br", "hr", "img", "link", "meta"}
ATTACK = '<script>alert("1")</script><img src=http://x/y.png onerror=a()>'
REPORT = f"""\
| optimizer | condition {ATTACK} | {"a sentence " * 9} |
| --------- | ------------------ | ------------------ |
| **slow**  | `{ATTACK}`         | {"a sentence " * 9} |

## Differences & {ATTACK}

![figure](http://x/y.png) [link](http://x/y) <http://x/y> [mail][1]

[1]: http://x/y

Sampled after slow:

    {ATTACK}
    # no heading
"""


class Page(HTMLParser):
    """Elements with their attributes, and the text between the tags."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, Any]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len({*names}) == len(names), (tag, names)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data

    def all(self, *tags):
        return [attributes for tag, attributes in self.elements if tag in tags]


def page(report=REPORT, pictures=(), origin=None, **changes) -> str:
    config = dataclasses.replace(QuadraticConfig(), **changes)
    return format_page(Quadratic(config), report, pictures, origin)


@pytest.mark.promise(
    "Experiments",
    "The HTML report runs no script and fetches nothing, whatever stands in it",
    on="settings, paths, sampled text",
)
def test_text_of_any_kind_stays_text():
    origin = Origin(ATTACK, ATTACK, f"python {ATTACK}")
    pictures = [Picture(ATTACK, b"png", 9.0, ATTACK)]
    source = page(pictures=pictures, origin=origin, output_dir=ATTACK)
    read = Page(source)
    # Title, heading, help, command, a section and its link, header, cell, sample, and
    # the figure twice. Settings are a string of TOML, with its quotes escaped.
    assert read.text.count(ATTACK) == 11
    assert ATTACK.replace('"', '\\"') in read.text
    assert not read.all("script", "iframe", "object", "base", "form")
    assert not [tag for tag, found in read.elements if "onerror" in found]
    resources = [
        found[name]
        for _, found in read.elements
        for name in found
        if name in ("src", "href")
    ]
    assert len(resources) == 5
    assert all(re.match(r"data:|#", each) for each in resources)
    assert "url(" not in source
    assert "@import" not in source
    [policy] = [found for found in read.all("meta") if "http-equiv" in found]
    assert policy["content"].startswith("default-src 'none'; img-src data:;")
    assert "    # no heading" not in read.text
    assert "# no heading" in read.text


def test_figures_are_inside_and_are_described(tmp_path):
    figure, [left, right] = panels(2)
    for axes, says in ((left, "loss"), (right, "accuracy")):
        axes.set(xlabel="learning rate", ylabel=says)
    picture = save_figure(tmp_path, "learning_rates-size=3", figure)
    [image] = Page(page(pictures=[picture])).all("img")
    data = image["src"].removeprefix("data:image/png;base64,")
    assert (
        base64.b64decode(data) == (tmp_path / "learning_rates-size=3.png").read_bytes()
    )
    assert image["alt"] == (
        "Learning rates: size=3: loss against learning rate; "
        "accuracy against learning rate"
    )
    # 96 pixels of CSS are an inch.
    assert image["width"] == str(round(96 * figure.get_size_inches()[0]))


def test_a_page_can_be_read_by_all():
    read = Page(page(pictures=[Picture("loss", b"png", 3.0, "")]))
    assert read.elements[0] == ("html", {"lang": "en"})
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in (
        read.all("meta")
    )
    assert {"name": "color-scheme", "content": "light dark"} in read.all("meta")
    assert [image["alt"] for image in read.all("img")] == ["Loss"]
    anchors = [found["id"] for _, found in read.elements if "id" in found]
    assert [found["href"] for found in read.all("a")] == [
        f"#{each}" for each in anchors
    ]
    assert len(anchors) == 3
    assert {found.get("scope") for found in read.all("th")} == {"col", "row"}
    # A sentence in a cell is broken into lines, a name is not.
    assert [found.get("class") for found in read.all("td")][:3] == [
        None,
        "sentence",
        "sentence",
    ]


def test_resuming_and_its_command_make_no_difference():
    assert page(resume=True) == page(resume=False)
    assert "Started from Python" in page()
    command = "python -m manifold_optax.experiments quadratic --size '3'"
    made = page(origin=Origin("quadratic", "tiny TOML", command))
    assert f"<code>{html.escape(command)}</code>" in made
    assert "<p>Tiny TOML.</p>" in made
    assert "Started from Python" not in made
    assert "<title>quadratic: report</title>" in made


@pytest.mark.parametrize("name", program.commands())
def test_the_settings_of_a_page_are_a_file_for_config(name):
    command = program.commands()[name]
    chosen = [command.default]
    for path in CONFIGS.glob(f"{name}*.toml"):
        table = tomllib.loads(path.read_text("utf-8"))
        chosen.append(replace_typed(command.default, table))
    odd = 'a"b\\c\n[d] = é\x7f\u2028'
    chosen.append(dataclasses.replace(command.default, output_dir=odd, resume=True))
    for config in chosen:
        again = replace_typed(command.default, tomllib.loads(format_overrides(config)))
        assert again == config
