"""Reader of compiled programs: XLA's optimized text as computations and calls.

Only what executes is looked at: the entry, the computations that it reaches, and how
often each of them runs.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import jax

Tally: TypeAlias = dict[tuple[str, bool], int | float]
"""Quantities that one device executes; the flag says whether inside a loop."""

UNKNOWN = "unknown loop "
"""Prefix under which a tally names the loops whose trip count XLA does not know."""


@dataclasses.dataclass(frozen=True)
class ArrayType:
    """Element type and sizes of one array."""

    dtype: str
    sizes: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Bytes of the array; types below eight bits are packed, a token has none."""
        # The width is the first number of the name: bf16, u16, f8e4m3fn, s4, c64. A
        # predicate is the one type without it that has data; XLA keeps a byte for it.
        width = re.match(r"[a-z]+(\d+)", self.dtype)
        bits = int(width[1]) if width else 8 * (self.dtype == "pred")
        return math.ceil(math.prod(self.sizes) * bits / 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    result: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    @property
    def starts(self) -> bool:
        """Whether this is the first half of an asynchronous pair."""
        return self.opcode.endswith("-start")

    @property
    def operation(self) -> str:
        """The opcode, without the `-start` of an asynchronous pair."""
        return self.opcode.removesuffix("-start")

    def called(self, *attributes: str) -> tuple[str, ...]:
        """Names of the computations that stand under these attributes."""
        pattern = rf"\b(?:{'|'.join(attributes)})=(?:%([\w.\-]+)|\{{([^}}]*)\}})"
        found: list[str] = []
        for one, several in re.findall(pattern, self.attributes):
            found += [one] if one else re.findall(r"%([\w.\-]+)", several)
        return tuple(found)

    @property
    def trips(self) -> int | None:
        """How often the body of this loop runs; `None` where XLA does not know."""
        known = r'"known_trip_count":\s*\{\s*"n":\s*"?(\d+)'
        found = re.search(known, self.attributes)
        return int(found[1]) if found else None


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program: its computations by name, and where it begins."""

    entry: str
    computations: dict[str, dict[str, Instruction]]
    devices: int


Measure: TypeAlias = Callable[[Program, dict[str, Instruction], Instruction], Tally]
"""What one instruction of a computation adds by itself, without what it calls."""


def read(compiled: Any) -> Program:
    """The program of `jax.jit(f).lower(...).compile()`.

    Raises:
        TypeError: for a lowered program, and for anything without `as_text()`.
        ValueError: for text other than one HLO module.
    """
    if isinstance(compiled, jax.stages.Lowered):
        raise TypeError(
            "A lowered program shows no collectives and no fusions, because XLA has "
            "not partitioned it yet; call .compile() on it and pass the result."
        )
    if not callable(getattr(compiled, "as_text", None)):
        raise TypeError(
            "Give what jax.jit(f).lower(...).compile() returns, got "
            f"{type(compiled).__name__}."
        )
    return parse(compiled.as_text() or "")


def parse(text: str) -> Program:
    """Computations of the text of one HLO module.

    Raises:
        ValueError: for text other than one HLO module, or a line that is not HLO.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    entries: list[str] = []
    inside: dict[str, Instruction] | None = None
    for line in text.splitlines():
        opening = re.match(r"(ENTRY )?%([\w.\-]+) .*\{$", line)
        if opening:
            inside = computations.setdefault(opening[2], {})
            entries += [opening[2]] if opening[1] else []
        elif line.startswith("}"):
            inside = None
        elif inside is not None and line.strip():
            instruction = _instruction(line)
            inside[instruction.name] = instruction
    if len(entries) != 1:
        raise ValueError(
            "Expected the text of one compiled HLO module, with one ENTRY, got "
            f"{len(entries)} in {text[:60]!r}."
        )
    sizes = re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", text.split("\n")[0])
    return Program(entries[0], computations, math.prod(map(int, sizes)))


def elements(result: str) -> list[str]:
    """Types of the elements of a tuple; of an array, its own."""
    if not result.startswith("("):
        return [result]
    parts, depth, start = [], 0, 1
    for at, letter in enumerate(result):
        depth += (letter in "([{") - (letter in ")]}")
        if (letter == "," and depth == 1) or at == len(result) - 1:
            parts.append(result[start:at].strip())
            start = at + 1
    return [part for part in parts if part]


def arrays(result: str) -> list[ArrayType]:
    """All arrays of a type, of nested tuples too."""
    found = re.findall(r"([a-z]\w*)\[([^\]]*)\]", result)
    return [
        ArrayType(dtype, tuple(int(n) for n in re.findall(r"\d+", sizes)))
        for dtype, sizes in found
    ]


def total(
    program: Program,
    measure: Measure,
    weight: Callable[[Tally], int | float],
    unknown_trips: int | None = None,
) -> Tally:
    """Sum of `measure` over everything that one device executes in one call.

    Bodies of loops count as often as they run, conditions once more; where XLA does not
    know how often, `unknown_trips` says it (`None`: both count once), and the loop is
    named under `UNKNOWN`, if it has anything to count. Of a conditional the branch of
    the greatest `weight` counts.
    """
    return _Walk(program, measure, weight, unknown_trips).of(program.entry)


def of_entry(
    program: Program,
    measure: Measure,
    weight: Callable[[Tally], int | float],
    unknown_trips: int | None = None,
) -> dict[str, Tally]:
    """What `total` sums, for each instruction of the entry by its name."""
    walk = _Walk(program, measure, weight, unknown_trips)
    entry = program.computations[program.entry]
    found: dict[str, Tally] = {}
    for name, instruction in entry.items():
        found[name] = dict(measure(program, entry, instruction))
        for part in walk.parts(instruction):
            _add(found[name], part)
    return found


@dataclasses.dataclass(frozen=True)
class _Walk:
    """`total` of each computation that was reached, kept because several call it."""

    program: Program
    measure: Measure
    weight: Callable[[Tally], int | float]
    unknown_trips: int | None
    done: dict[str, Tally] = dataclasses.field(default_factory=dict)

    def of(self, name: str) -> Tally:
        if name not in self.done:
            computation = self.program.computations[name]
            tally: Tally = {}
            for instruction in computation.values():
                _add(tally, self.measure(self.program, computation, instruction))
                for part in self.parts(instruction):
                    _add(tally, part)
            self.done[name] = tally
        return self.done[name]

    def parts(self, instruction: Instruction) -> Iterator[Tally]:
        if instruction.operation in ("call", "fusion", "async"):
            yield from map(self.of, instruction.called("to_apply", "calls"))
        elif instruction.opcode == "while":
            yield self.loop(instruction)
        elif instruction.opcode == "conditional":
            branches = ("branch_computations", "true_computation", "false_computation")
            called = instruction.called(*branches)
            yield max(map(self.of, called), key=self.weight)

    def loop(self, instruction: Instruction) -> Tally:
        trips = instruction.trips
        known = self.unknown_trips if trips is None else trips
        body, condition = (1, 1) if known is None else (known, known + 1)
        tally: Tally = {}
        for attribute, times in (("body", body), ("condition", condition)):
            for name in instruction.called(attribute):
                _add(tally, self.of(name), times)
        tally = _inside(tally)
        if trips is None and tally:
            tally[UNKNOWN + instruction.name, True] = 1
        return tally


def _add(tally: Tally, more: Tally, times: int = 1) -> None:
    for key, amount in more.items():
        tally[key] = tally.get(key, 0) + times * amount


def _inside(tally: Tally) -> Tally:
    """The same tally, all of it inside a loop."""
    moved: Tally = {}
    for (what, _), amount in tally.items():
        _add(moved, {(what, True): amount})
    return moved


def unknown_loops(tally: Tally) -> tuple[str, ...]:
    """Names of the loops of a tally whose trip count XLA does not know."""
    named = {what for what, _ in tally if what.startswith(UNKNOWN)}
    return tuple(sorted(what.removeprefix(UNKNOWN) for what in named))


def _instruction(line: str) -> Instruction:
    """`%name = type opcode(operands), attributes`, without the metadata."""
    found = re.match(r"\s*(?:ROOT )?%([\w.\-]+) = (.*)", line)
    if found:
        name, rest = found.groups()
        # A type is a word, or a tuple with spaces in it; layouts have brackets too.
        width = _closing(rest, 0) if rest.startswith("(") else rest.find(" ")
        result, rest = rest[:width], rest[width:].lstrip()
        opcode = re.match(r"([a-z][\w\-]*)\(", rest)
        if opcode:
            end = _closing(rest, opcode.end() - 1)
            operands = re.findall(r"%([\w.\-]+)", rest[:end])
            quoted = r'metadata=\{(?:[^"}]|"(?:[^"\\]|\\.)*")*\}'
            attributes = re.sub(quoted, "", rest[end:])
            return Instruction(name, result, opcode[1], tuple(operands), attributes)
    raise ValueError(f"Cannot read this line of a compiled program: {line.strip()!r}.")


def _closing(text: str, start: int) -> int:
    """Position after the parenthesis that closes the one at `start`."""
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == "(") - (text[at] == ")")
        if not depth:
            return at + 1
    return len(text)
