"""Which device owns which matrix: dealt by cost, packed into one buffer per owner."""

import dataclasses
import itertools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

_SLACK = 1.05
"""Work of the busiest owner that fewer bytes may cost, the best possible being 1."""


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

    Owners take the matrices of a stack in the order of their positions: the first the
    first `counts`, and so on. All methods are about static facts and layout.
    """

    classes: tuple[OwnerClass, ...]
    positions: tuple[int, ...]
    """Position of each owner among all, class after class."""

    @property
    def owners(self) -> int:
        """Number of owners."""
        return len(self.positions)

    @property
    def in_order(self) -> bool:
        """Whether owners stand in the order of their numbers."""
        return self.positions == tuple(range(self.owners))

    def count(self, stack: int) -> int:
        """Number of matrices of a stack."""
        return self.start(len(self.classes), stack)

    def start(self, which: int, stack: int) -> int:
        """Position in a stack of the first matrix that class `which` owns."""
        return sum(c.owners * c.counts[stack] for c in self.classes[:which])

    def width(self, sizes: Sequence[int]) -> int:
        """Entries of the fullest owner's buffer, given those of a row of each stack."""
        return max(total_of(c.counts, sizes) for c in self.classes)

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
        joined = jnp.concatenate(rows)
        return joined if self.in_order else joined[jnp.asarray(self.positions)]

    def unpack(self, buffer: Array, sizes: Sequence[int]) -> list[Array]:
        """`[owners, width]` → stacks `[count, size]`; the inverse of `pack`."""
        if not self.in_order:
            buffer = buffer[jnp.argsort(jnp.asarray(self.positions))]
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


def deal(
    counts: Sequence[int],
    costs: Sequence[int],
    sizes: Sequence[int],
    loads: Sequence[float],
) -> tuple[Deal, list[float]]:
    """Deals matrices to owners, the dearest first.

    Each goes to the owner that receives the fewest entries, among those whom it does
    not load beyond `_SLACK` times the best possible; where there is none, to the one
    with the least work (longest-processing-time first: at most 4/3 of the best;
    R. L. Graham, 1969).

    Args:
        counts: number of matrices of each stack.
        costs: of one matrix of each stack.
        sizes: entries of one matrix of each stack.
        loads: what each owner has to do already.

    Returns:
        The deal, and the loads with it.
    """
    work, full = np.array(loads, float), np.zeros(len(loads))
    owned = np.zeros((len(loads), len(counts)), int)
    total = work.sum() + total_of(counts, costs)
    best = max(total / len(loads), work.max(), *costs)
    for index in sorted(range(len(counts)), key=lambda i: -costs[i]):
        for _ in range(counts[index]):
            after = work + costs[index]
            fits = after <= _SLACK * best
            key = np.where(fits, full, np.inf) if fits.any() else after
            # Of equals the one with less to do, then the first.
            owner = np.lexsort((work, key))[0]
            owned[owner, index] += 1
            work[owner] += costs[index]
            full[owner] += sizes[index]
    order = sorted(range(len(loads)), key=lambda owner: [-n for n in owned[owner]])
    classes, first = [], 0
    for each, same in itertools.groupby(tuple(map(int, owned[o])) for o in order):
        number = len(list(same))
        classes.append(OwnerClass(first, number, each))
        first += number
    positions = tuple(order.index(owner) for owner in range(len(loads)))
    return Deal(tuple(classes), positions), work.tolist()


def total_of(counts: Sequence[int], sizes: Sequence[int]) -> int:
    """The sum of `sizes`, each as often as `counts` says: of entries, or of costs."""
    return sum(n * size for n, size in zip(counts, sizes, strict=True))
