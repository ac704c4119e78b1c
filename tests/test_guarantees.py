"""The page of guarantees has exactly the promises that the tests make."""

import pathlib
import re

import pytest

import promises as promises_of_tests
from promises import Promise, promises, TESTS

PAGE = TESTS.parent / "docs" / "guarantees.md"


def test_every_promise_stands_on_the_page_with_its_tests_and_no_other_does():
    said = {}
    for chapter in PAGE.read_text().split("\n## ")[1:]:
        topic, body = chapter.split("\n", 1)
        for row in re.findall(r"^\| (.*) \|$", body, re.MULTILINE)[1:]:
            guarantee, on, _, links = row.split(" | ")
            tests = re.findall(r"\[(\w+)\]\(\.\./tests/([\w/.]+)\)", links)
            said[Promise(topic, guarantee, on)] = {(b, f"test_{a}") for a, b in tests}
    made = {
        promise: {(holder.file, holder.name) for holder in holders}
        for promise, holders in promises().items()
    }
    assert said == made, "run benchmarks/guarantees.py"


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ("'Numbers', NAME", "made of literals"),
        ("'Numbers', 'a', at='b'", "made of literals"),
        ("'Nonsense', 'a'", "topic 'Nonsense' is none of"),
    ],
)
def test_a_mark_that_cannot_be_read_is_an_error(
    mark: str, message: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    text = f"@pytest.mark.promise({mark})\ndef test_it():\n    pass\n"
    (tmp_path / "test_one.py").write_text(text)
    monkeypatch.setattr(promises_of_tests, "TESTS", tmp_path)
    with pytest.raises(ValueError, match=message):
        promises()
