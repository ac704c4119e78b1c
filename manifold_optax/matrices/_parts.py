"""The parts in which an exchange travels, so that one is under way behind the other."""

import itertools
from collections.abc import Sequence

from manifold_optax.matrices._deal import Deal, OwnerClass, total_of


def parts_of(deal: Deal, sizes: Sequence[int], most: int) -> tuple[Deal, ...]:
    """Cuts a deal into parts that send no more than the whole.

    Owners keep their numbers of matrices, so that the work is dealt as in the whole. A
    part is as wide as its fullest owner; widths that do not add up to that of the whole
    would be sent as padding, so that fewer parts are made then.

    Args:
        deal: the whole.
        sizes: entries of one matrix of each stack.
        most: number of parts at most.

    Returns:
        The parts, in the order in which they travel. Each takes the matrices of a stack
        that follow those of the parts before it.
    """
    for number in range(most, 1, -1):
        parts = _cut(deal, sizes, number)
        if parts is not None:
            return parts
    return (deal,)


def _cut(deal: Deal, sizes: Sequence[int], number: int) -> tuple[Deal, ...] | None:
    """`number` parts of nearly equal width; `None` where they would send more."""
    fullest = max(deal.classes, key=lambda own: total_of(own.counts, sizes))
    runs = _runs(fullest.counts, sizes, number)
    if runs is None:
        return None
    widths = [total_of(counts, sizes) for counts in runs]
    filled = [
        runs if own is fullest else _fill(own.counts, sizes, widths)
        for own in deal.classes
    ]
    if any(found is None for found in filled):
        return None
    return tuple(
        _merged(deal, [found[part] for found in filled if found is not None])
        for part in range(number)
    )


def _runs(
    counts: Sequence[int], sizes: Sequence[int], number: int
) -> list[tuple[int, ...]] | None:
    """The matrices of one owner, the largest first, in runs of nearly equal width."""
    order = sorted(range(len(counts)), key=lambda stack: -sizes[stack])
    line = [stack for stack in order for _ in range(counts[stack])]
    ends = list(itertools.accumulate(sizes[stack] for stack in line))
    if len(line) < number:
        return None
    cuts = [0]
    for part in range(1, number):
        # At least one matrix each, here and in the parts that follow.
        allowed = range(cuts[-1] + 1, len(line) - (number - part) + 1)
        wanted = part * ends[-1] / number
        cuts.append(min(allowed, key=lambda stop: abs(ends[stop - 1] - wanted)))
    cuts.append(len(line))
    return [
        tuple(line[start:stop].count(stack) for stack in range(len(counts)))
        for start, stop in itertools.pairwise(cuts)
    ]


def _fill(
    counts: Sequence[int], sizes: Sequence[int], widths: Sequence[int]
) -> list[tuple[int, ...]] | None:
    """The matrices of one owner, the largest first, into parts of given widths."""
    left, parts = list(counts), []
    for width in widths:
        taken, room = [0] * len(counts), width
        for stack in sorted(range(len(counts)), key=lambda stack: -sizes[stack]):
            taken[stack] = min(left[stack], room // sizes[stack])
            left[stack] -= taken[stack]
            room -= taken[stack] * sizes[stack]
        parts.append(tuple(taken))
    return None if any(left) else parts


def _merged(deal: Deal, counts: Sequence[tuple[int, ...]]) -> Deal:
    """The deal of a part; neighbouring classes that own the same become one."""
    classes: list[OwnerClass] = []
    for own, few in zip(deal.classes, counts, strict=True):
        if classes and classes[-1].counts == few:
            last = classes.pop()
            classes.append(OwnerClass(last.first, last.owners + own.owners, few))
        else:
            classes.append(OwnerClass(own.first, own.owners, few))
    return Deal(tuple(classes), deal.positions)
