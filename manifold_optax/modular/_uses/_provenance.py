"""Which part of a parameter each axis of an array comes from.

An array that is made from a leaf by reshapes, transposes, slices and concatenations,
or that is the result of a product with the leaf, has axes that run over axes of the
leaf. A `Pattern` says so: for each axis of the array its factors, the slowest first;
and after those of the last axis the positions at which other axes were indexed, as
factors of one entry.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

NOTHING = -1
"""The axis of a factor that runs over nothing of the leaf."""


class Factor(NamedTuple):
    """A range of an axis of the array that runs over an axis of the leaf.

    The factor has `before + size + after` entries. Entry `before + i` is at the
    position `start + i * stride` of the leaf's axis, plus what the other factors of
    the same axis add. The entries before and after come from elsewhere: other parts of
    a concatenation, or padding.
    """

    axis: int
    start: int
    stride: int
    size: int
    before: int = 0
    after: int = 0

    @property
    def total(self) -> int:
        """Number of entries."""
        return self.before + self.size + self.after

    @property
    def padded(self) -> bool:
        """Whether some entries come from elsewhere."""
        return self.before > 0 or self.after > 0


Dim: TypeAlias = tuple[Factor, ...]
Pattern: TypeAlias = tuple[Dim, ...]


def whole(shape: Sequence[int]) -> Pattern:
    """The leaf itself. Axes of size 1 have no factor."""
    dims = (
        (Factor(axis, 0, 1, size),) if size > 1 else ()
        for axis, size in enumerate(shape)
    )
    return (*dims, ())


def foreign(shape: Sequence[int]) -> Pattern:
    """An array whose axes have nothing of the leaf."""
    return (*map(blank, shape), ())


def blank(size: int) -> Dim:
    """An axis that has nothing of the leaf."""
    return (Factor(NOTHING, 0, 0, size),) if size > 1 else ()


def axes_in(pattern: Pattern, dims: Sequence[int]) -> frozenset[int]:
    """The axes of the leaf over which these axes of the array run."""
    found = {factor.axis for dim in dims for factor in pattern[dim]}
    return frozenset(found - {NOTHING})


def moved(
    pattern: Pattern,
    sources: Sequence[int | None],
    shape: Sequence[int],
    *,
    parts: bool = False,
) -> Pattern:
    """The pattern of an array whose axes are axes of the old one, or new.

    Args:
        pattern: that of the old array.
        sources: for each axis of the new array the old axis, `None` for a new one.
        shape: of the new array; an old axis whose size has changed counts as new.
        parts: whether what is left of an axis of the leaf is kept where some of its
            factors are gone.
    """
    dims, kept = [], set()
    for source, size in zip(sources, shape, strict=True):
        if source is None or _total(pattern[source]) != size:
            dims.append(blank(size))
        else:
            dims.append(pattern[source])
            kept.add(source)
    left = [
        factor
        for index, dim in enumerate(pattern)
        for factor in dim
        if index not in kept
    ]
    gone = {factor.axis for factor in left if factor.total > 1} - {NOTHING}
    if gone and not parts:
        for index, dim in enumerate(dims):
            if any(factor.axis in gone for factor in dim):
                dims[index] = blank(_total(dim))
    single = [f for f in left if f.total == 1 and f.axis not in gone]
    return _settled([*dims, single])


def reshaped(pattern: Pattern, shape: Sequence[int]) -> Pattern | None:
    """The pattern after a reshape; `None` if the new axes cut factors unevenly."""
    if 0 in shape:  # Nothing of the leaf is left.
        return foreign(shape)
    longer = [factor for dim in pattern for factor in dim if factor.total > 1]
    stack = [*_merged(longer)][::-1]
    dims = []
    for size in shape:
        dim: list[Factor] = []
        while size > 1:
            factor = stack.pop()
            if size % factor.total == 0:
                dim.append(factor)
                size //= factor.total
                continue
            parts = (
                _cut(factor, factor.total // size) if not factor.total % size else ()
            )
            if not parts:
                return None
            dim.append(parts[0])
            stack.append(parts[1])
            size = 1
        dims.append(_merged(dim))
    single = [factor for dim in pattern for factor in dim if factor.total == 1]
    return _settled([*dims, single])


def sliced(
    pattern: Pattern, dim: int, start: int, count: int, step: int = 1
) -> Pattern | None:
    """The pattern of `count` entries of an axis; `None` if the leaf is not in them."""
    factors = pattern[dim]
    if not factors or (count == _total(factors) and step == 1):
        return pattern
    first, *more = factors
    minor = _total(more)
    if count == 1 and more:
        kept = _entry(factors, start)
    elif start % minor == 0 and count % minor == 0 and (step == 1 or minor == 1):
        taken = _window(first, start // minor, count // minor, step)
        kept = None if taken is None else (taken, *more)
    else:
        kept = blank(count)
    if kept is None:
        return None
    return _settled([*pattern[:dim], kept, *pattern[dim + 1 :]])


def placed(pattern: Pattern, dim: int, before: int, after: int) -> Pattern:
    """The pattern of an array with entries from elsewhere around it."""
    if before == after == 0:
        return pattern
    first, *more = pattern[dim] or (Factor(NOTHING, 0, 0, 1),)
    minor = _total(more)
    if before % minor or after % minor:
        wide = blank(before + _total(pattern[dim]) + after)
    else:
        first = first._replace(
            before=first.before + before // minor, after=first.after + after // minor
        )
        wide = (first, *more)
    return (*pattern[:dim], wide, *pattern[dim + 1 :])


def places(pattern: Pattern) -> tuple[int, ...]:
    """Where in an array of concatenated parts the part of the leaf stands."""
    return tuple(factor.before for dim in pattern for factor in dim if factor.padded)


def positions(
    pattern: Pattern, axis: int, apart: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """The positions of an axis of the leaf in the array.

    Args:
        pattern: that of the array.
        axis: of the leaf.
        apart: axes of the array along which entries belong to different matrices.

    Returns:
        The positions, and for each of them to which matrix it belongs: a number.
    """
    found = np.zeros(1, np.int64)
    matrix = np.zeros(1, np.int64)
    for dim, factors in enumerate(pattern):
        for factor in factors:
            if factor.axis != axis:
                continue
            steps = np.arange(factor.size)
            places = factor.start + factor.stride * steps
            found = np.add.outer(found, places).ravel()
            own = steps if dim in apart else np.zeros_like(steps)
            scale = factor.size if dim in apart else 1
            matrix = np.add.outer(matrix * scale, own).ravel()
    return found, matrix


def _total(factors: Sequence[Factor]) -> int:
    return math.prod(factor.total for factor in factors)


def _cut(factor: Factor, minor: int) -> tuple[Factor, Factor] | None:
    """A factor as a slow and a fast one of `minor` entries."""
    axis, start, stride, size, before, after = factor
    if not (before % minor or size % minor or after % minor):
        slow = Factor(
            axis, start, stride * minor, size // minor, before // minor, after // minor
        )
        return slow, Factor(axis, 0, stride, minor)
    row, offset = divmod(before, minor)
    if offset + size > minor:
        return None
    slow = Factor(NOTHING, 0, 0, 1, row, factor.total // minor - row - 1)
    fast = Factor(axis, start, stride, size, offset, minor - offset - size)
    return slow, fast


def _entry(factors: Dim, index: int) -> Dim | None:
    """One entry of an axis; `None` if it is elsewhere."""
    found = []
    for factor in reversed(factors):
        index, own = divmod(index, factor.total)
        taken = _window(factor, own, 1, 1)
        if taken is None:
            return None
        found.append(taken)
    return tuple(reversed(found))


def _window(factor: Factor, start: int, count: int, step: int) -> Factor | None:
    """Entries `start`, `start + step`, … of a factor; `None` if all are elsewhere."""
    low = max(0, -((start - factor.before) // step))
    high = min(count - 1, (factor.before + factor.size - 1 - start) // step)
    if low > high:
        return None
    first = start + low * step - factor.before
    return Factor(
        factor.axis,
        factor.start + factor.stride * first,
        factor.stride * step,
        high - low + 1,
        low,
        count - 1 - high,
    )


def _merged(factors: Sequence[Factor]) -> Dim:
    """The same entries with as few factors as possible."""
    done: list[Factor] = []
    for factor in factors:
        last = done[-1] if done else None
        if last is None or not _continues(last, factor):
            done.append(factor)
            continue
        size = factor.size
        done[-1] = Factor(
            last.axis,
            last.start,
            factor.stride,
            last.size * size,
            last.before * size,
            last.after * size,
        )
    return tuple(done)


def _continues(slow: Factor, fast: Factor) -> bool:
    """Whether two factors that follow each other are one."""
    even = fast.start == 0 and slow.stride == fast.stride * fast.size
    return slow.axis == fast.axis and even and not fast.padded


def _settled(dims: Sequence[Sequence[Factor]]) -> Pattern:
    """`dims` without needless factors of one entry.

    The start of such a factor is added to that of the slowest other factor of the same
    axis, if there is one.
    """
    kept = [[factor for factor in dim if factor.total > 1] for dim in dims]
    for own, single in (
        (own, factor) for own, dim in enumerate(dims) for factor in dim
    ):
        if single.total > 1 or single.axis == NOTHING:
            continue
        same = [
            (factor.stride, dim, index)
            for dim, factors in enumerate(kept)
            for index, factor in enumerate(factors)
            if factor.axis == single.axis
        ]
        if same:
            _, dim, index = max(same)
            factor = kept[dim][index]
            start = factor.start + single.start
            kept[dim][index] = factor._replace(start=start)
        else:
            kept[own].append(single)
    return tuple(map(tuple, kept))
