"""Would the tests notice? A mutation score of the numerics.

    .venv/bin/python -m pip install --group lint
    .venv/bin/python benchmarks/mutants.py --work runs/mutants   # starts, or goes on
    .venv/bin/python benchmarks/mutants.py --work runs/mutants --report

A mutant is the library with one small change: an operator, a comparison, a number, a
flag. Cosmic Ray makes the changes. A mutant that no test of the gate fails on has
survived. The places are drawn with a fixed seed, each at most once, from `linalg`,
`geometry`, `matrices` and `transforms`. Annotations and docstrings have no places.

First every file of tests runs alone under coverage. A mutant meets the files that run
its statement, those that are most about its file first and 34 at most, until one fails.
`mutants.toml` says of each survivor what it is: `equivalent` (no test could fail, and
why) or `hole`.
"""

import argparse
import ast
import dataclasses
import json
import pathlib
import random
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator
from mutant_tests import (
    coverage,
    Covered,
    ROOT,
    Runner,
    spread,
    STARTING_S,
    survives,
    tests_of,
)

CLASSES = ROOT / "benchmarks" / "mutants.toml"
PACKAGES = ("linalg", "geometry", "matrices", "transforms")

OPERATORS = (
    *("ReplaceBinaryOperator_Add_Sub", "ReplaceBinaryOperator_Sub_Add"),
    *("ReplaceBinaryOperator_Mul_Div", "ReplaceBinaryOperator_Div_Mul"),
    *("ReplaceBinaryOperator_Mul_Add", "ReplaceBinaryOperator_FloorDiv_Mul"),
    *("ReplaceBinaryOperator_Pow_Mul", "ReplaceBinaryOperator_Mod_FloorDiv"),
    *("ReplaceBinaryOperator_BitOr_BitAnd", "ReplaceBinaryOperator_BitAnd_BitOr"),
    *("ReplaceComparisonOperator_Lt_LtE", "ReplaceComparisonOperator_LtE_Lt"),
    *("ReplaceComparisonOperator_Gt_GtE", "ReplaceComparisonOperator_GtE_Gt"),
    *("ReplaceComparisonOperator_Lt_Gt", "ReplaceComparisonOperator_Gt_Lt"),
    *("ReplaceComparisonOperator_Eq_NotEq", "ReplaceComparisonOperator_NotEq_Eq"),
    *("ReplaceComparisonOperator_Is_IsNot", "ReplaceComparisonOperator_IsNot_Is"),
    *("ReplaceUnaryOperator_Delete_USub", "ReplaceUnaryOperator_Delete_Not"),
    *("ReplaceUnaryOperator_USub_UAdd", "ReplaceUnaryOperator_Delete_Invert"),
    *("AddNot", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue"),
    *("ReplaceAndWithOr", "ReplaceOrWithAnd", "NumberReplacer"),
    *("ExceptionReplacer", "ZeroIterationForLoop"),
)
"""Of Cosmic Ray: those whose results still run. Most other changes of an operator
(`a << b`) stop at once with a TypeError, and would flatter the score."""


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes:
        path: of the file, from the root.
        operator: of Cosmic Ray.
        occurrence: which of the places in the file that the operator can change.
        line: of the change, from 1.
        before: the lines that change, as one.
        after: what becomes of them.
    """

    path: str
    operator: str
    occurrence: int
    line: int
    before: str
    after: str

    @property
    def key(self) -> str:
        """Names the mutant for as long as its lines stay the same."""
        return f"{self.path}: {self.before} -> {self.after}"


def sample(number: int, seed: int) -> list[Mutant]:
    """Draws places, and for each one of the changes that it allows."""
    by_place: dict[tuple[str, tuple[int, int]], list[tuple[str, int]]] = {}
    for package in PACKAGES:
        for file in sorted((ROOT / "manifold_optax" / package).rglob("*.py")):
            if file.name != "__init__.py":
                path = file.relative_to(ROOT).as_posix()
                for start, name, occurrence in _places(file.read_text()):
                    by_place.setdefault((path, start), []).append((name, occurrence))
    rng = random.Random(seed)
    chosen = rng.sample(sorted(by_place), min(number, len(by_place)))
    return [_made(path, at[0], *rng.choice(by_place[path, at])) for path, at in chosen]


def _places(source: str) -> Iterator[tuple[tuple[int, int], str, int]]:
    """Every (position, operator, occurrence) in the code of a file."""
    nodes = tuple(ast_nodes(get_ast(source)))
    annotations = tuple(_annotations(source))
    for name in OPERATORS:
        operator = get_operator(f"core/{name}")()
        found = (at for node in nodes for at in operator.mutation_positions(node))
        for occurrence, (start, _) in enumerate(found):
            if not any(first <= start < last for first, last in annotations):
                yield start, name, occurrence


def _annotations(source: str) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """From where to where the annotations of a file go, as (line, column)."""
    for node in ast.walk(ast.parse(source)):
        for name in ("annotation", "returns"):
            part = getattr(node, name, None)
            if isinstance(part, ast.expr) and part.end_lineno and part.end_col_offset:
                first = part.lineno, part.col_offset
                yield first, (part.end_lineno, part.end_col_offset)


def _made(path: str, line: int, name: str, occurrence: int) -> Mutant:
    source = (ROOT / path).read_text()
    old, new = source.splitlines(), changed(source, name, occurrence).splitlines()
    head = _same(old, new)
    tail = _same(old[:head:-1], new[:head:-1])
    before, after = old[head : len(old) - tail], new[head : len(new) - tail]
    return Mutant(path, name, occurrence, line, _one_line(before), _one_line(after))


def _same(first: Sequence[str], second: Sequence[str]) -> int:
    """How many lines at the start are equal."""
    pairs = enumerate(zip(first, second, strict=False))
    shorter = min(len(first), len(second))
    return next((i for i, (a, b) in pairs if a != b), shorter)


def _one_line(lines: Iterable[str]) -> str:
    return " ".join(" ".join(lines).split())


def changed(source: str, name: str, occurrence: int) -> str:
    """The text of a file after the change."""
    mutated = mutate_code(source, get_operator(f"core/{name}")(), occurrence)
    if mutated is None or mutated == source:
        raise RuntimeError(f"{name} changes nothing at its place {occurrence}")
    return mutated


def verdict(runner: Runner, mutant: Mutant, covered: Mapping[str, Covered]) -> str:
    """`survived`, or `killed: ` and the last line of the tests."""
    calls = tests_of(mutant.path, mutant.line, covered)
    if not calls:
        return "survived: no test runs it"
    source = (ROOT / mutant.path).read_text()
    code = changed(source, mutant.operator, mutant.occurrence)
    for tests in calls:
        limit = STARTING_S + 3 * sum(covered[file].seconds for file in tests)
        passed, output = survives(runner, mutant.path, code, tests, limit)
        if not passed:
            return f"killed: {_one_line(output.splitlines()[-3:])}"
    return "survived"


def run(
    mutants: Sequence[Mutant], runners: Sequence[Runner], work: pathlib.Path
) -> None:
    """Appends the verdict of every mutant that has none to `verdicts.jsonl`."""
    known = verdicts(work)
    covered = coverage(runners, work / "coverage.json")
    missing = [mutant for mutant in mutants if mutant.key not in known]
    done = spread(runners, missing, lambda r, mutant: verdict(r, mutant, covered))
    with (work / "verdicts.jsonl").open("a") as file:
        for number, (mutant, answer) in enumerate(done, 1):
            print(
                f"{number} of {len(missing)}  {answer[:60]}  {mutant.key}", flush=True
            )
            file.write(json.dumps({"key": mutant.key, "verdict": answer}) + "\n")
            file.flush()


def verdicts(work: pathlib.Path) -> dict[str, str]:
    """Key of a mutant → its last verdict."""
    file = work / "verdicts.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    entries = map(json.loads, lines)
    return {entry["key"]: entry["verdict"] for entry in entries}


def report(mutants: Sequence[Mutant], found: Mapping[str, str]) -> Iterator[str]:
    """The score by package as lines of Markdown, and every survivor with its class."""
    classes: dict[str, str] = tomllib.loads(CLASSES.read_text())
    head = ("package", "mutants", "killed", "equivalent", "holes", "score")
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for package in (*PACKAGES, "all"):
        inside = f"manifold_optax/{'' if package == 'all' else package + '/'}"
        keys = [m.key for m in mutants if m.path.startswith(inside) and m.key in found]
        killed = sum(found[key].startswith("killed") for key in keys)
        survivors = [key for key in keys if not found[key].startswith("killed")]
        equal = sum(classes.get(key, "").startswith("equivalent") for key in survivors)
        different = len(keys) - equal
        score = f"{100 * killed / different:.1f} %" if different else "-"
        holes = len(survivors) - equal
        yield f"| {package} | {len(keys)} | {killed} | {equal} | {holes} | {score} |"
    yield ""
    for mutant in mutants:
        if found.get(mutant.key, "killed").startswith("survived"):
            yield f"- `{mutant.key}` ({classes.get(mutant.key, 'not classified')})"
    missing = sum(mutant.key not in found for mutant in mutants)
    if missing:
        yield f"{missing} of {len(mutants)} mutants have not run."


def main() -> None:
    """Parses the command line, runs what is missing, and prints the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=pathlib.Path, required=True, help="directory")
    parser.add_argument("--number", type=int, default=300, help="mutants to draw")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing")
    parser.add_argument("--workers", type=int, default=2, help="mutants at a time")
    parser.add_argument("--report", action="store_true", help="run nothing")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    mutants = sample(options.number, options.seed)
    if not options.report:
        workers = range(options.workers)
        runners = [Runner(work / f"tree{i}", work / "programs") for i in workers]
        for runner in runners:
            runner.copy()
        run(mutants, runners, work)
    print("\n".join(report(mutants, verdicts(work))))


if __name__ == "__main__":
    main()
