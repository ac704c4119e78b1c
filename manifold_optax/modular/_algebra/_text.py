"""A module as a table: branches drawn, repeated layers folded, columns aligned.

Lines that stand below each other are applied one after the other, from the input at the
top to the output at the bottom. Branches get the same input, and the line below them
gets what they give. Nothing here knows what a module is.
"""

import dataclasses
import itertools
import re
from collections.abc import Sequence
from typing import TypeAlias

LEAST_REPEATS = 3
"""Layers in a row that are printed as one. Two are as easy to compare when both stand
there, and folding them would save no more lines than it adds."""

LONGEST_PERIOD = 64
"""Lines at most that are looked at as one layer, so that a chain of thousands of
different lines is printed in linear time."""

SAME = 1e-9
"""Relative difference up to which numbers are printed as one: above the rounding of
products of a thousand factors (1e-13), below what four digits show."""

Cell: TypeAlias = str | tuple[float, ...]
"""What stands in a column: a word, or numbers of which the range is printed."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line, and the branches below it."""

    label: str
    cells: tuple[Cell, ...] = ()
    branches: tuple[tuple["Entry", ...], ...] = ()
    is_path: bool = False
    """Whether numbers in the label count layers, so that layers which differ in them
    alone may be folded."""


def draw(chain: Sequence[Entry], header: Sequence[str]) -> str:
    """The chain as a table; columns that would be empty are left out."""
    empty = [""] * (len(header) - 1)
    rows = [list(header)]
    for label, cells in _lines(chain):
        rows.append([label, *(map(_shown, cells) if cells else empty)])
    columns = [c for c in zip(*rows, strict=True) if c[0] == header[0] or any(c[1:])]
    # Words are read from the left; numbers are compared by their last digits.
    aligned = []
    for column in columns:
        width = max(map(len, column))
        numeric = any(cell[:1].isdigit() for cell in column[1:])
        align = str.rjust if numeric and column[0] != header[0] else str.ljust
        aligned.append([align(cell, width) for cell in column])
    return "\n".join("  ".join(row).rstrip() for row in zip(*aligned, strict=True))


def number(value: float) -> str:
    """Four digits, without an exponent for the integers that masses are."""
    return f"{value:.4g}"


def _shown(cell: Cell) -> str:
    if isinstance(cell, str):
        return cell
    low, high = min(cell), max(cell)
    # Two infinities are equal, but their difference is no number.
    if low == high or high - low <= SAME * abs(high):
        return number(low)
    return f"{number(low)} to {number(high)}"


def _lines(chain: Sequence[Entry]) -> list[tuple[str, tuple[Cell, ...]]]:
    lines: list[tuple[str, tuple[Cell, ...]]] = []
    for entry in _folded(chain):
        lines.append((entry.label, entry.cells))
        last = len(entry.branches) - 1
        for index, branch in enumerate(entry.branches):
            first, rest = ("├─ ", "│  ") if index < last else ("└─ ", "   ")
            if last == 0:  # what is repeated: one branch, held together by a bar
                first = rest = "│  "
            inside = _lines(branch)
            lines.append((first + inside[0][0], inside[0][1]))
            lines += [(rest + label, cells) for label, cells in inside[1:]]
    return lines


def _folded(chain: Sequence[Entry]) -> list[Entry]:
    """The chain with runs of equal layers as one entry `12 ×`."""
    # Equal kinds get equal numbers, which are quick to compare.
    known: dict[object, int] = {}
    kinds = [known.setdefault(_kind(entry), len(known)) for entry in chain]
    folded, start = [], 0
    while start < len(chain):
        period, repeats = _run(kinds, start)
        layers = [
            chain[start + i * period : start + (i + 1) * period] for i in range(repeats)
        ]
        if repeats == 1:
            folded += layers[0]
        else:
            merged = tuple(map(_merged, zip(*layers, strict=True)))
            folded.append(Entry(f"{repeats} ×", branches=(merged,)))
        start += period * repeats
    return folded


def _run(kinds: Sequence[int], start: int) -> tuple[int, int]:
    """Length of a layer that repeats from `start` on, and how often; `(1, 1)`: none."""
    longest = min((len(kinds) - start) // LEAST_REPEATS, LONGEST_PERIOD)
    for period in range(1, longest + 1):
        end = start + period
        while end < len(kinds) and kinds[end] == kinds[end - period]:
            end += 1
        repeats = (end - start) // period
        if repeats >= LEAST_REPEATS:
            return period, repeats
    return 1, 1


def _kind(entry: Entry) -> object:
    """What two entries must share to be folded: all but numbers of paths and cells."""
    label = re.sub(r"\d+", "#", entry.label) if entry.is_path else entry.label
    cells = tuple(cell if isinstance(cell, str) else None for cell in entry.cells)
    branches = tuple(tuple(map(_kind, branch)) for branch in entry.branches)
    return label, entry.is_path, cells, branches


def _merged(entries: Sequence[Entry]) -> Entry:
    """One entry for several of one kind, each number with all its values."""
    first = entries[0]
    cells = []
    for column in zip(*(entry.cells for entry in entries), strict=True):
        numbers = [cell for cell in column if not isinstance(cell, str)]
        cells.append(tuple(itertools.chain(*numbers)) if numbers else column[0])
    branches = []
    for chains in zip(*(entry.branches for entry in entries), strict=True):
        branches.append(tuple(map(_merged, zip(*chains, strict=True))))
    label = _merged_path([e.label for e in entries]) if first.is_path else first.label
    return Entry(label, tuple(cells), tuple(branches), first.is_path)


def _merged_path(paths: Sequence[str]) -> str:
    """`layers/0…11/kernel` of the paths that differ in a number."""
    parts = zip(*(re.split(r"(\d+)", path) for path in paths), strict=True)
    return "".join(part[0] if len(set(part)) == 1 else _span(part) for part in parts)


def _span(numbers: Sequence[str]) -> str:
    """`0…3` of numbers in a row, `{0,2,5}` of others."""
    first = int(numbers[0])
    if [int(n) for n in numbers] == list(range(first, first + len(numbers))):
        return f"{numbers[0]}…{numbers[-1]}"
    return "{" + ",".join(numbers) + "}"
