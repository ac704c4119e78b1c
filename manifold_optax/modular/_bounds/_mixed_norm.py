"""Mixed norms of arrays: over some axes a maximum, over others a Euclidean norm.

A norm is written by a mark for every axis, or for every factor of an axis (a row of 768
numbers that are 12 heads of 64 has the factors 12 and 64):

    `"b"`: the maximum over the axis: a batch of positions, heads, layers;
    `"o"`: the Euclidean norm over the axis;
    `"i"`: the axis is the input of a linear map whose output are the axes `"o"`: the
        operator norm of that map;
    `"s"`: the sum over the axis, taken before the norms over the others;
    `"m"`: the maximum over the axis, taken before the Euclidean norm over others; not
        beside `"s"` or `"i"`.

`[tokens, features]` under `"bo"` is the largest Euclidean norm of a token; a matrix
`[in, out]` under `"io"` is its spectral norm, under `"bo"` its longest row. Logits
`[heads, keys]` have under `"ob"` the largest over keys of the Euclidean norm over
heads, under `"om"` the Euclidean norm over heads of the largest over keys.
"""

import functools
import itertools
import math
from collections.abc import Iterable, Sequence, Set
from typing import NamedTuple

Factors = tuple[tuple[int, str], ...]
"""Pairs of a size and a mark, the slowest first; sizes of 1 are left out."""


class MixedNorm(NamedTuple):
    """A mixed norm of arrays of one shape; see the module.

    Attributes:
        axes: the factors of every axis.
    """

    axes: tuple[Factors, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the arrays that it measures."""
        return tuple(math.prod(size for size, _ in axis) for axis in self.axes)

    @property
    def factors(self) -> Factors:
        """All factors, one axis after the other."""
        return tuple(factor for axis in self.axes for factor in axis)

    def count(self, marks: str) -> int:
        """The product of the sizes under these marks."""
        return math.prod(size for size, mark in self.factors if mark in marks)

    @property
    def of_ones(self) -> float:
        """The norm of an array of ones; an operator norm is bounded by Frobenius's."""
        return math.sqrt(self.count("oi")) * self.count("s")

    def has(self, marks: str) -> bool:
        """Whether one of these marks occurs."""
        return any(mark in marks for _, mark in self.factors)

    def __str__(self) -> str:
        names = {"b": "max", "o": "2", "i": "in", "s": "1", "m": "max each"}
        axes = ("·".join(f"{n}:{names[m]}" for n, m in axis) for axis in self.axes)
        return f"[{', '.join(axis or '1' for axis in axes)}]"


def joined(factors: Iterable[tuple[int, str]]) -> Factors:
    """Neighbours under one mark made one factor, and sizes of 1 left out."""
    kept: list[tuple[int, str]] = []
    for size, mark in factors:
        if size == 1:
            continue
        if kept and kept[-1][1] == mark:
            kept[-1] = (kept[-1][0] * size, mark)
        else:
            kept.append((size, mark))
    return tuple(kept)


def mixed_norm(shape: Sequence[int], marks: str) -> MixedNorm:
    """The norm with one mark for each axis of a shape."""
    pairs = zip(shape, marks, strict=True)
    return MixedNorm(tuple(joined([pair]) for pair in pairs))


def natural_norm(shape: Sequence[int]) -> MixedNorm:
    """The Euclidean norm over the last axis, the largest over all others."""
    return mixed_norm(shape, "b" * (len(shape) - 1) + "o" * min(len(shape), 1))


@functools.lru_cache(maxsize=65536)
def reshaped(norm: MixedNorm, shape: tuple[int, ...]) -> MixedNorm | None:
    """The same norm of the reshaped array; `None` if its factors are cut."""
    if 0 in shape:  # Without entries there is nothing to measure.
        return mixed_norm(shape, "b" * len(shape))
    axes: list[Factors] = []
    waiting = list(reversed(joined(norm.factors)))
    for size in shape:
        axis: list[tuple[int, str]] = []
        while size > 1:
            factor, mark = waiting.pop()
            taken = math.gcd(factor, size)
            if taken != min(factor, size):
                return None
            if taken < factor:
                waiting.append((factor // taken, mark))
            axis.append((taken, mark))
            size //= taken
        axes.append(joined(axis))
    return MixedNorm(tuple(axes))


def resized(factors: Factors, size: int, *, aligned: bool) -> Factors:
    """The norm of a piece of an axis, or of an axis that has this one as a piece.

    A repeated block stays one where the pieces are whole blocks; else the whole axis is
    measured by the Euclidean norm.
    """
    if len(factors) <= 1:
        return joined([(size, factors[0][1])]) if factors else joined([(size, "b")])
    inner = math.prod(n for n, _ in factors[1:])
    if aligned and size % inner == 0:
        return joined([(size // inner, factors[0][1]), *factors[1:]])
    return joined([(size, "o")])


def coarse(norm: MixedNorm) -> MixedNorm:
    """The Euclidean norm over every axis that has more than one factor."""
    return euclidean(norm, {k for k, axis in enumerate(norm.axes) if len(axis) > 1})


def euclidean(norm: MixedNorm, axes: Set[int]) -> MixedNorm:
    """The Euclidean norm over some axes, over the others as before."""
    return MixedNorm(
        tuple(
            joined((n, "o") for n, _ in axis) if k in axes else axis
            for k, axis in enumerate(norm.axes)
        )
    )


def remarked(norm: MixedNorm, old: str, new: str) -> MixedNorm:
    """The same norm with the mark `new` in the place of the marks `old`."""
    return MixedNorm(
        tuple(
            joined((n, new if mark in old else mark) for n, mark in axis)
            for axis in norm.axes
        )
    )


def outermost(norm: MixedNorm) -> MixedNorm:
    """A norm that is no larger, without maxima and sums inside Euclidean norms."""
    norm = remarked(norm, "m", "b")
    return remarked(norm, "s", "o") if norm.has("o") else norm


_RATIOS = {
    ("b", "b"): 0.0, ("b", "o"): 0.0, ("b", "i"): 0.0, ("b", "s"): 0.0,
    ("o", "b"): 0.5, ("o", "o"): 0.0, ("o", "i"): 0.0, ("o", "s"): 0.0,
    ("i", "b"): 0.5, ("i", "o"): 0.0, ("i", "i"): 0.0, ("i", "s"): 0.0,
    ("s", "b"): 1.0, ("s", "o"): 0.5, ("s", "i"): 0.5, ("s", "s"): 0.0,
    ("b", "m"): 0.0, ("o", "m"): 0.5, ("i", "m"): 0.5, ("s", "m"): 1.0,
    ("m", "b"): 0.5, ("m", "o"): 0.0, ("m", "i"): 0.5, ("m", "s"): 0.0,
    ("m", "m"): 0.0,
}  # fmt: skip
"""(wanted, given) → k: the wanted norm over n entries is at most n^k times the given.

An entry is no more than the Euclidean norm, that no more than the sum; n entries below
1 have a sum below n and a Euclidean norm below √n; and Cauchy-Schwarz for the rest. A
maximum before a Euclidean norm is at least the same after it, and at most this norm.
What inputs and outputs of operators add is in `_turned`."""

_EVEN_RATIOS = {**_RATIOS, ("b", "o"): -0.5, ("b", "s"): -1.0, ("o", "s"): -0.5}
"""The same for values whose entries are all of one size."""


@functools.lru_cache(maxsize=65536)
def ratio(wanted: MixedNorm, given: MixedNorm, *, even: bool = False) -> float:
    """The least c that we know with wanted(x) ≤ c · given(x) for all x.

    Args:
        wanted: a norm.
        given: a norm of arrays of the same shape.
        even: for all x whose entries are of one size, rather than for all x.
    """
    found = [_common(*pair) for pair in zip(wanted.axes, given.axes, strict=True)]
    cut = {k for k, pairs in enumerate(found) if pairs is None}
    if cut:  # By way of the Euclidean norm over the axes whose factors do not fit.
        mine, yours = euclidean(wanted, cut), euclidean(given, cut)
        first, last = ratio(wanted, mine, even=even), ratio(yours, given, even=even)
        return first * ratio(mine, yours, even=even) * last
    table = _EVEN_RATIOS if even else _RATIOS
    product = 1.0
    counts: dict[tuple[str, str], int] = {}
    for size, want, give in itertools.chain(*filter(None, found)):
        exponent = table[want, give]
        product *= size**exponent if exponent else 1.0
        pair = ("o" if want == "s" else want, give)
        counts[pair] = counts.get(pair, 1) * size
    return product * _turned(counts)


def _turned(counts: dict[tuple[str, str], int]) -> float:
    """What it costs that some inputs of an operator become outputs, or the reverse.

    To fix an index costs √n where the norm over it was an operator's. So all that
    changes sides may be fixed, or the Frobenius norm be taken, which is at most √rank
    times the operator norm. The transposed operator has the same norm.
    """
    pairs = (("i", "i"), ("i", "o"), ("o", "i"), ("o", "o"))
    inputs, to_input, to_output, outputs = (counts.get(pair, 1) for pair in pairs)
    if inputs == outputs == 1:
        return 1.0
    least = min(to_input * to_output, inputs * to_output, to_input * outputs)
    return math.sqrt(least) if least > 1 else 1.0


def _common(mine: Factors, yours: Factors) -> list[tuple[int, str, str]] | None:
    """Two factorings of one axis made one; `None` if they cut each other."""
    pairs: list[tuple[int, str, str]] = []
    left, right = list(reversed(mine)), list(reversed(yours))
    while left and right:
        (a, want), (b, give) = left.pop(), right.pop()
        taken = math.gcd(a, b)
        if taken != min(a, b):
            return None
        pairs.append((taken, want, give))
        if a > taken:
            left.append((a // taken, want))
        if b > taken:
            right.append((b // taken, give))
    return pairs
