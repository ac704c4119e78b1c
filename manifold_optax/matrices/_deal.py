"""Which device owns which matrix: dealt by cost, packed into one buffer per owner."""

import dataclasses
import heapq
import itertools
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array


@dataclasses.dataclass(frozen=True)
class OwnerClass:
    """Owners, consecutive in their numbering, that own equally many of each shape."""

    first: int
    owners: int
    counts: tuple[int, ...]
    """Matrices of each stack that one owner has."""


@dataclasses.dataclass(frozen=True)
class Deal:
    """The matrices of several stacks, dealt to owners.

    Owners take the matrices of a stack in their order: the first owner the first
    `counts`, and so on. All methods are about static facts and layout.
    """

    classes: tuple[OwnerClass, ...]

    @property
    def owners(self) -> int:
        """Number of owners."""
        return sum(c.owners for c in self.classes)

    def start(self, which: int, stack: int) -> int:
        """Position in a stack of the first matrix that class `which` owns."""
        return sum(c.owners * c.counts[stack] for c in self.classes[:which])

    def width(self, sizes: Sequence[int]) -> int:
        """Entries of the fullest owner's buffer, given those of a row of each stack."""
        return max(_total(c.counts, sizes) for c in self.classes)

    def pack(self, stacks: Sequence[Array]) -> Array:
        """Stacks `[count, size]` → `[owners, width]`, with zeros at the ends."""
        sizes = [stack.shape[1] for stack in stacks]
        width = self.width(sizes)
        rows = []
        for which, c in enumerate(self.classes):
            columns = []
            for index, (stack, count) in enumerate(zip(stacks, c.counts, strict=True)):
                start = self.start(which, index)
                part = stack[start : start + c.owners * count]
                columns.append(part.reshape(c.owners, count * sizes[index]))
            row = jnp.concatenate(columns, axis=1)
            rows.append(jnp.pad(row, ((0, 0), (0, width - row.shape[1]))))
        return jnp.concatenate(rows)

    def unpack(self, buffer: Array, sizes: Sequence[int]) -> list[Array]:
        """`[owners, width]` → stacks `[count, size]`; the inverse of `pack`."""
        parts: list[list[Array]] = [[] for _ in sizes]
        for c in self.classes:
            rows = buffer[c.first : c.first + c.owners]
            widths = [n * size for n, size in zip(c.counts, sizes, strict=True)]
            starts = itertools.accumulate(widths, initial=0)
            for index, (start, width) in enumerate(zip(starts, widths, strict=False)):
                part = rows[:, start : start + width]
                count = c.owners * c.counts[index]
                parts[index].append(part.reshape(count, sizes[index]))
        return [jnp.concatenate(part) for part in parts]


def deal(counts: Sequence[int], costs: Sequence[int], owners: int) -> Deal:
    """Deals `counts[i]` matrices of cost `costs[i]`, the dearest first.

    Each goes to the owner with the least work so far (longest-processing-time first:
    at most 4/3 of the best possible makespan; R. L. Graham, 1969).
    """
    heap = [(0, owner) for owner in range(owners)]
    owned = [[0] * len(counts) for _ in range(owners)]
    for index in sorted(range(len(counts)), key=lambda i: -costs[i]):
        for _ in range(counts[index]):
            load, owner = heapq.heappop(heap)
            owned[owner][index] += 1
            heapq.heappush(heap, (load + costs[index], owner))
    owned.sort(reverse=True)
    classes, first = [], 0
    for each, same in itertools.groupby(owned):
        size = len(list(same))
        classes.append(OwnerClass(first, size, tuple(each)))
        first += size
    return Deal(tuple(classes))


def _total(counts: Sequence[int], sizes: Sequence[int]) -> int:
    return sum(n * size for n, size in zip(counts, sizes, strict=True))
