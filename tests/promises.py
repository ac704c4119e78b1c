"""Promises of the library, read from the tests that hold them.

A test makes a promise by a mark of literals:

    @pytest.mark.promise("Numbers", "A direction ignores scale", on="1e-30 to 1e30")

Several tests may hold one promise; those of a file share a mark that has a name there,
`LANDS = pytest.mark.promise(...)`. A test may also record how well, by the fixture
`measured`; the largest figure of all of them is the one that counts.
`benchmarks/guarantees.py` runs these tests and writes docs/guarantees.md.
"""

import ast
import dataclasses
import pathlib
from collections.abc import Iterator

TESTS = pathlib.Path(__file__).parent

TOPICS = (
    "Faults",
    "Numbers",
    "Manifolds",
    "Layouts and devices",
    "State and checkpoints",
    "Wrappers and frameworks",
    "What is applied",
    "Certificates",
    "Attention",
    "Programs",
    "Experiments",
)
"""Chapters of the page, in this order."""


@dataclasses.dataclass(frozen=True, order=True)
class Promise:
    """What is promised, and on what.

    Attributes:
        topic: one of `TOPICS`.
        guarantee: a sentence, without the full stop.
        on: dtypes, layouts, sizes; all that are supported where empty.
    """

    topic: str
    guarantee: str
    on: str = ""


@dataclasses.dataclass(frozen=True, order=True)
class Holder:
    """A test that holds a promise.

    Attributes:
        file: from the folder of the tests.
        name: of the function.
        slow: whether it runs nightly only.
    """

    file: str
    name: str
    slow: bool


def promises() -> dict[Promise, list[Holder]]:
    """Every promise with its tests, by topic and in the order of the files.

    Raises:
        ValueError: a mark is not made of literals, or names another topic.
    """
    found: dict[Promise, list[Holder]] = {}
    for file in sorted(TESTS.rglob("test_*.py")):
        text = file.read_text()
        if "mark.promise" in text:
            for promise, holder in _promises_of(text, file.relative_to(TESTS)):
                found.setdefault(promise, []).append(holder)
    return dict(sorted(found.items(), key=lambda item: TOPICS.index(item[0].topic)))


def _promises_of(text: str, path: pathlib.Path) -> Iterator[tuple[Promise, Holder]]:
    named: dict[str, ast.expr] = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            named[node.targets[0].id] = node.value
        if isinstance(node, ast.FunctionDef):
            marks = [ast.unparse(mark) for mark in node.decorator_list]
            slow = any(mark.startswith("pytest.mark.slow") for mark in marks)
            holder = Holder(path.as_posix(), node.name, slow)
            for decorator in node.decorator_list:
                mark = named.get(ast.unparse(decorator), decorator)
                if isinstance(mark, ast.Call) and _is_promise(mark):
                    yield _promise(mark, f"{path}:{mark.lineno}"), holder


def _is_promise(mark: ast.Call) -> bool:
    return ast.unparse(mark.func) == "pytest.mark.promise"


def _promise(mark: ast.Call, where: str) -> Promise:
    try:
        positional = [ast.literal_eval(value) for value in mark.args]
        named = {word.arg: ast.literal_eval(word.value) for word in mark.keywords}
        promise = Promise(*positional, **named)  # pyright: ignore[reportCallIssue]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: a promise is made of literals (topic, guarantee, on=''); got "
            f"{ast.unparse(mark)}"
        ) from error
    if promise.topic not in TOPICS:
        raise ValueError(f"{where}: topic {promise.topic!r} is none of {TOPICS}")
    return promise
