"""Every command of README and pages names what exists."""

import pathlib
import re
import tomllib

import pytest

import manifold_optax as mo
from documentation.commands import commands, PAGES, ROOT

TARGETS = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8")))
GROUPS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
EXPERIMENTS = {
    path.parent.name
    for path in (ROOT / "manifold_optax" / "experiments").glob("*/experiment.py")
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_what_exists(page: pathlib.Path) -> None:
    for line in commands(page):
        for target in re.findall(r"^make ([a-z-]+)", line):
            assert target in TARGETS, line
        for file in re.findall(r"(?:benchmarks|configs|tests|docs)/[\w/]+\.\w+", line):
            assert (ROOT / file).exists(), line
        for name in re.findall(r"-m manifold_optax\.experiments ([a-z]+)", line):
            assert name in EXPERIMENTS, line
        for name in re.findall(r"^manifold-optax ([a-z]+)", line):
            assert name in {"run", "describe", "bench", "doctor"}, line
        for group in re.findall(r"--group ([a-z]+)", line):
            assert group in GROUPS["dependency-groups"], line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_of_the_library_exist(page: pathlib.Path) -> None:
    text = page.read_text("utf-8")
    for path in set(re.findall(r"`mo\.((?:\w+\.)*\w+)", text)):
        found: object = mo
        for name in path.split("."):
            assert hasattr(found, name), f"mo.{path}"
            found = getattr(found, name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_files_lead_somewhere(page: pathlib.Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target
