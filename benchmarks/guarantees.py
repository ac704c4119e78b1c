"""Writes docs/guarantees.md: every promise, the tests that hold it, how well.

    .venv/bin/python benchmarks/guarantees.py          # all, also nightly ones
    .venv/bin/python benchmarks/guarantees.py --quick  # the gate's; others stay

The promises are marks of the tests (`tests/promises.py`). Where a test
fails, the command writes nothing.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from document import write_chapter

from promises import Holder, Promise, promises, TOPICS

PAGE = ROOT / "docs" / "guarantees.md"
TITLE = "What is guaranteed"

Figures = Mapping[tuple[str, str], Sequence[str]]
"""(file, function) → what its cases recorded."""


def figures(files: Sequence[str], devices: bool, quick: bool) -> Figures:
    """Runs the promises of these files.

    Raises:
        SystemExit: a test failed.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if devices:
        flags += " --xla_force_host_platform_device_count=8"
    marks = f"promise and not gpu and {'' if devices else 'not '}devices"
    with tempfile.TemporaryDirectory() as folder:
        record = pathlib.Path(folder) / "record.xml"
        # The first family of the format has room for what a test recorded.
        family = ("-o", "junit_family=xunit1", f"--junitxml={record}")
        command = [sys.executable, "-m", "pytest", "-q", *family]
        selected = f"{marks} and not slow" if quick else marks
        done = subprocess.run(
            [*command, "-m", selected, *(f"tests/{file}" for file in files)],
            cwd=ROOT,
            env=os.environ | {"XLA_FLAGS": flags},
            check=False,
        )
        # 5: none of them is selected.
        if done.returncode not in (0, 5):
            sys.exit("error: a promise is not held; the page stays as it was.")
        return _recorded(record)


def _recorded(record: pathlib.Path) -> Figures:
    found: dict[tuple[str, str], list[str]] = {}
    for case in ET.parse(record).iter("testcase"):
        module = case.attrib["classname"].removeprefix("tests.").replace(".", "/")
        test = f"{module}.py", case.attrib["name"].split("[")[0]
        values = found.setdefault(test, [])
        for entry in case.iter("property"):
            if entry.attrib["name"] == "measured":
                values.append(entry.attrib["value"])
    return found


def largest(values: Sequence[str]) -> str:
    """The worst of figures like `2.1e-07 (at most 1e-06)`; nothing of none."""
    return max(values, key=lambda value: float(value.split()[0]), default="")


def lines(
    topic: str, found: Mapping[Promise, Sequence[Holder]], measured: Figures
) -> Iterator[str]:
    """The table of one topic."""
    yield "| guarantee | on | measured | test |"
    yield "|---|---|---|---|"
    for promise, holders in found.items():
        if promise.topic == topic:
            keys = [(holder.file, holder.name) for holder in holders]
            values = [value for key in keys for value in measured.get(key, ())]
            cells = (promise.guarantee, promise.on, largest(values))
            yield f"| {' | '.join(cells)} | {', '.join(map(link, holders))} |"


def link(holder: Holder) -> str:
    """The test as a link; nightly ones say so."""
    when = " (nightly)" if holder.slow else ""
    return f"[{holder.name.removeprefix('test_')}](../tests/{holder.file}){when}"


def kept(found: Mapping[Promise, Sequence[Holder]]) -> Figures:
    """The figures that the page has, by the first test of each row."""
    text = PAGE.read_text() if PAGE.exists() else ""
    figures: dict[tuple[str, str], list[str]] = {}
    for promise, holders in found.items():
        row = f"| {promise.guarantee} | {promise.on} | "
        match = re.search(re.escape(row) + r"([^|]+?) \|", text)
        if match and match[1]:
            figures[holders[0].file, holders[0].name] = [match[1]]
    return figures


def main() -> None:
    """Runs the promises and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="without nightly tests")
    options = parser.parse_args()
    found = promises()
    files = sorted({holder.file for holders in found.values() for holder in holders})
    measured = dict(kept(found)) if options.quick else {}
    for devices in (False, True):
        for test, values in figures(files, devices, options.quick).items():
            if values:
                measured[test] = values
    for topic in TOPICS:
        if any(promise.topic == topic for promise in found):
            write_chapter(PAGE, TITLE, topic, lines(topic, found, measured))


if __name__ == "__main__":
    main()
