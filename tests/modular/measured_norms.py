"""Mixed norms of numbers: measured, and attacked with the steepest changes."""

import functools
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from manifold_optax.modular._bounds._mixed_norm import joined, MixedNorm

Floats = NDArray[np.float64]


def norm_of(shape: Sequence[int], text: str) -> MixedNorm:
    """A norm from a text: for each axis a mark, or factors such as `2b3o`."""
    axes = []
    for size, marks in zip(shape, text.split(), strict=True):
        pairs = [(int(n or size), m) for n, m in re.findall(r"(\d*)([boims])", marks)]
        assert np.prod([n for n, _ in pairs]) == size, (shape, text)
        axes.append(joined(pairs))
    return MixedNorm(tuple(axes))


_ORDER = "bioms"
"""Marks from the norm that is taken last; `m` and `s` are not in one norm."""


class _Laid:
    """An array with its factors in the order of `_ORDER`."""

    def __init__(self, norm: MixedNorm) -> None:
        marks = [mark for _, mark in norm.factors]
        self.order = [k for mark in _ORDER for k in _places(marks, mark)]
        self.flat = tuple(norm.count(mark) for mark in _ORDER[:-2])
        self.flat += (norm.count("ms"),)
        self.split = tuple(size for size, _ in norm.factors)
        self.shape = norm.shape

    def out(self, array: Floats) -> Floats:
        """`[maxima, input, output, sums or maxima of each]`."""
        return array.reshape(self.split).transpose(self.order).reshape(self.flat)

    def back(self, flat: Floats) -> Floats:
        """The array itself."""
        sizes = tuple(self.split[k] for k in self.order)
        inverse = np.argsort(self.order) if self.order else []
        return flat.reshape(sizes).transpose(inverse).reshape(self.shape)


@functools.cache
def _laid(norm: MixedNorm) -> _Laid:
    return _Laid(norm)


def _places(marks: Sequence[str], mark: str) -> list[int]:
    return [k for k, have in enumerate(marks) if have == mark]


def _each(norm: MixedNorm, array: Floats) -> Floats:
    """The norm of each block of which the norm is the largest."""
    matrices = _laid(norm).out(array)
    if norm.has("ms"):
        sizes = np.abs(matrices)
        matrices = sizes.sum(3) if norm.has("s") else sizes.max(3)
    else:
        matrices = matrices[..., 0]
    if norm.has("i"):
        return np.linalg.norm(matrices, 2, (1, 2))
    return np.sqrt(np.square(matrices).sum((1, 2)))


def measured(norm: MixedNorm, array: Floats) -> float:
    """The norm of an array."""
    return float(np.max(_each(norm, np.asarray(array, np.float64)), initial=0.0))


def steepest(norm: MixedNorm, gradient: Floats) -> Floats:
    """The array of norm 1 with the largest inner product with a gradient."""
    laid = _laid(norm)
    blocks = laid.out(gradient)
    if norm.has("i"):
        left, _, right = np.linalg.svd(blocks[..., 0], full_matrices=False)
        return laid.back(left @ right)
    if norm.has("m"):
        length = np.abs(blocks).sum(3, keepdims=True)
        whole = np.sqrt(np.square(length).sum((1, 2), keepdims=True))
        return laid.back(np.sign(blocks) * length / np.maximum(whole, 1e-300))
    largest = np.abs(blocks).argmax(3)[..., None]
    values = np.take_along_axis(blocks, largest, 3)
    length = np.sqrt(np.square(values).sum((1, 2), keepdims=True))
    chosen = np.zeros(blocks.shape)
    np.put_along_axis(chosen, largest, values / np.maximum(length, 1e-300), 3)
    return laid.back(chosen)


def normal(norm: MixedNorm, array: Floats) -> Floats:
    """The linear function of dual norm 1 that measures an array."""
    laid = _laid(norm)
    blocks = laid.out(array)
    chosen = np.zeros(blocks.shape)
    k = int(np.argmax(_each(norm, array)))
    if norm.has("i"):
        left, _, right = np.linalg.svd(blocks[k, ..., 0], full_matrices=False)
        chosen[k, ..., 0] = np.outer(left[:, 0], right[0])
    elif norm.has("m"):
        largest = np.abs(blocks[k]).argmax(2)[..., None]
        values = np.take_along_axis(blocks[k], largest, 2)
        length = max(float(np.sqrt(np.square(values).sum())), 1e-300)
        np.put_along_axis(chosen[k], largest, values / length, 2)
    else:
        sums = np.abs(blocks[k]).sum(2, keepdims=True)
        length = max(float(np.sqrt(np.square(sums).sum())), 1e-300)
        signs = np.where(blocks[k] < 0, -1.0, 1.0) if norm.has("s") else blocks[k]
        chosen[k] = signs * (sums if norm.has("s") else 1.0) / length
    return laid.back(chosen)


def largest_ratio(
    wanted: MixedNorm,
    given: MixedNorm,
    starts: Sequence[Floats],
    *,
    apply: Callable[[Floats], Floats] = lambda x: x,
    transposed: Callable[[Floats], Floats] = lambda x: x,
    rounds: int = 4,
) -> float:
    """The largest `wanted(A x) / given(x)` that a few steps of ascent find.

    Args:
        wanted: norm of the results.
        given: norm of the arguments.
        starts: arguments to start from.
        apply: a linear map A.
        transposed: its transposed map.
        rounds: steps from each start; none makes the ratio smaller.
    """
    best = 0.0
    for start in starts:
        x = np.asarray(start, np.float64)
        x = x / max(measured(given, x), 1e-300)
        for _ in range(rounds):
            y = apply(x)
            best = max(best, measured(wanted, y))
            x = steepest(given, transposed(normal(wanted, y)))
        best = max(best, measured(wanted, apply(x)))
    return best


def starts_of(shape: Sequence[int], rng: np.random.Generator) -> list[Floats]:
    """Random, constant, one-hot and orthogonal arrays of a shape."""
    shape = tuple(shape)
    one = np.zeros(shape)
    one.reshape(-1)[rng.integers(one.size)] = 1.0
    diagonal = np.indices(shape).sum(0) % max((1, *shape)) == 0
    return [rng.standard_normal(shape), np.ones(shape), one, diagonal.astype(float)]


def factorings(size: int) -> Iterator[list[int]]:
    """The ways to write a size as a product of two, and itself."""
    yield [size]
    for first in range(2, size):
        if size % first == 0:
            yield [first, size // first]


def some_norm(
    shape: Sequence[int], rng: np.random.Generator, marks: str = "boi"
) -> MixedNorm:
    """A norm of arrays of a shape, at random."""
    axes = []
    for size in shape:
        ways = list(factorings(size))
        sizes = ways[rng.integers(len(ways))]
        axes.append(joined((n, marks[rng.integers(len(marks))]) for n in sizes))
    return MixedNorm(tuple(axes))
