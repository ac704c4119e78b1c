"""Runs the tests of the gate on copies of the repository, for `mutants.py`."""

import ast
import concurrent.futures
import dataclasses
import itertools
import json
import os
import pathlib
import queue
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

ROOT = pathlib.Path(__file__).parents[1]

TESTS = (
    *("tests/linalg", "tests/geometry", "tests/matrices", "tests/transforms"),
    *("tests/trees", "tests/attention", "tests/conformance", "tests/optimizers"),
    *(
        "tests/test_checks.py",
        "tests/test_diagnostics.py",
        "tests/test_initializers.py",
    ),
    *("tests/test_describe.py", "tests/test_docstrings.py", "tests/test_public_api.py"),
)
"""Tests about the numerics. Those of `modular`, of roles and of the experiments run the
same lines, but would take most of the time."""

ON_DEVICES = ("tests/sharding", "tests/programs")
"""Tests that run on eight devices."""

CALLS = (3, 9, 16)
"""Files of tests in a call of pytest, until one fails."""

ON_DEVICES_AT_MOST = 6
"""The same in a last call, with eight devices."""

STARTING_S = 60.0
"""Seconds that a mutant may take beyond three times the time of its tests."""

Task = TypeVar("Task")
Answer = TypeVar("Answer")


@dataclasses.dataclass(frozen=True)
class Runner:
    """Runs tests in a copy of the repository.

    Attributes:
        tree: the copy.
        cache: of compiled programs. All copies share it: most programs of a mutant are
            those of the library.
    """

    tree: pathlib.Path
    cache: pathlib.Path

    def copy(self) -> None:
        """Makes the copy anew."""
        shutil.rmtree(self.tree, ignore_errors=True)
        ignored = shutil.ignore_patterns("__pycache__")
        for name in ("manifold_optax", "tests", "benchmarks", "docs", "configs"):
            shutil.copytree(ROOT / name, self.tree / name, ignore=ignored)
        for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md", "Makefile"):
            shutil.copy(ROOT / name, self.tree / name)

    def pytest(
        self, files: Sequence[str], options: Sequence[str], limit: float | None
    ) -> tuple[bool, str]:
        """Whether the tests passed, and the last lines of the output."""
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
        devices = all(file.startswith(ON_DEVICES) for file in files)
        marks = f"not slow and not gpu and {'' if devices else 'not '}devices"
        flags = "--xla_force_host_platform_device_count=8" if devices else ""
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip(),
            "JAX_COMPILATION_CACHE_DIR": str(self.cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        try:
            done = subprocess.run(
                [*command, "-m", marks, *options, *files],
                cwd=self.tree,
                env=environment,
                capture_output=True,
                text=True,
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False, "timeout"
        # 5: all tests of these files are left out.
        return done.returncode in (0, 5), "\n".join(done.stdout.splitlines()[-3:])


@dataclasses.dataclass(frozen=True)
class Covered:
    """What one file of tests runs.

    Attributes:
        seconds: that it takes alone, with its start.
        lines: first lines of statements, of every file of the library.
    """

    seconds: float
    lines: Mapping[str, Sequence[int]]


def coverage(runners: Sequence[Runner], saved: pathlib.Path) -> dict[str, Covered]:
    """What every file of tests runs; not asked again where an earlier call saved it."""
    found = json.loads(saved.read_text()) if saved.exists() else {}
    missing = [file for file in _test_files() if file not in found]
    for file, item in spread(runners, missing, _covered_by):
        found[file] = dataclasses.asdict(item)
        print(f"{item.seconds:6.1f} s  {file}", flush=True)
        saved.write_text(json.dumps(found))
    return {file: Covered(**item) for file, item in found.items()}


def _test_files() -> list[str]:
    found = (ROOT / name for name in (*TESTS, *ON_DEVICES))
    files = (sorted(at.rglob("test_*.py")) if at.is_dir() else [at] for at in found)
    return [file.relative_to(ROOT).as_posix() for group in files for file in group]


def _covered_by(runner: Runner, file: str) -> Covered:
    report = runner.tree / "covered.json"
    report.unlink(missing_ok=True)
    start = time.perf_counter()
    options = ["--cov", "--cov-fail-under=0", f"--cov-report=json:{report}"]
    passed, output = runner.pytest([file], options, None)
    if not passed:
        raise RuntimeError(f"{file} fails without any change:\n{output}")
    seconds = time.perf_counter() - start
    files = json.loads(report.read_text())["files"] if report.exists() else {}
    return Covered(seconds, {path: at["executed_lines"] for path, at in files.items()})


def tests_of(
    path: str, line: int, covered: Mapping[str, Covered]
) -> list[Sequence[str]]:
    """The files of tests that run the statement of a line, in calls of pytest.

    First come those that are most about its file: the larger the part of what they run
    that lies there, the sooner. Most mutants fail on one of the first call.
    """
    first = _first_line_of_statement((ROOT / path).read_text(), line)
    running = [file for file in covered if first in covered[file].lines.get(path, ())]

    def share(file: str) -> float:
        lines = covered[file].lines
        return len(lines[path]) / sum(map(len, lines.values()))

    best = sorted(running, key=share, reverse=True)
    on_devices = [file for file in best if file.startswith(ON_DEVICES)]
    rest = (file for file in best if file not in on_devices)
    calls = [list(itertools.islice(rest, size)) for size in CALLS]
    return [call for call in (*calls, on_devices[:ON_DEVICES_AT_MOST]) if call]


def _first_line_of_statement(source: str, line: int) -> int:
    """Coverage knows a statement by its first line."""
    inside = (
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.stmt)
        and node.lineno <= line <= (node.end_lineno or node.lineno)
    )
    return max(inside, default=line)


def survives(
    runner: Runner, path: str, code: str, tests: Sequence[str], limit: float
) -> tuple[bool, str]:
    """Whether all tests pass with `code` in place of a file, and what they printed."""
    target = runner.tree / path
    source = target.read_text()
    target.write_text(code)
    try:
        return runner.pytest(tests, (), limit)
    finally:
        target.write_text(source)


def spread(
    runners: Sequence[Runner],
    tasks: Iterable[Task],
    function: Callable[[Runner, Task], Answer],
) -> Iterator[tuple[Task, Answer]]:
    """Yields tasks with their answers as they end; a runner has one task at a time."""
    free: queue.SimpleQueue[Runner] = queue.SimpleQueue()
    for runner in runners:
        free.put(runner)

    def one(task: Task) -> tuple[Task, Answer]:
        runner = free.get()
        try:
            return task, function(runner, task)
        finally:
            free.put(runner)

    with concurrent.futures.ThreadPoolExecutor(len(runners)) as pool:
        running = [pool.submit(one, task) for task in tasks]
        for future in concurrent.futures.as_completed(running):
            yield future.result()
