"""Patterns against arrays that hold the positions themselves."""

import math

import numpy as np
import pytest

from manifold_optax.modular._uses._provenance import (
    blank,
    moved,
    NOTHING,
    Pattern,
    placed,
    positions,
    reshaped,
    sliced,
    whole,
)

ELSEWHERE = -1
SHAPE = (4, 6, 3)


def coordinates(pattern: Pattern, shape: tuple[int, ...], axis: int) -> np.ndarray:
    """The position on an axis of the leaf of each entry of the array, by a pattern."""
    total = np.zeros(shape, int)
    inside = np.ones(shape, bool)
    index = np.indices(shape)
    for dim, factors in enumerate(pattern):
        rest = index[dim] if dim < len(shape) else np.zeros(shape, int)
        for factor in reversed(factors):
            rest, own = rest // factor.total, rest % factor.total
            own = own - factor.before
            inside &= (own >= 0) & (own < factor.size)
            if factor.axis == axis:
                total += factor.start + factor.stride * own
    return np.where(inside, total, ELSEWHERE)


def _moves(
    rng: np.random.Generator, pattern: Pattern, arrays: list[np.ndarray]
) -> tuple[Pattern | None, list[np.ndarray]]:
    """A random operation on a pattern and on arrays of positions."""
    shape = arrays[0].shape
    dim = int(rng.integers(len(shape)))
    size = shape[dim]
    kind = rng.choice(["transpose", "slice", "pad", "merge", "cut", "index"])
    if kind == "transpose":
        order = [int(i) for i in rng.permutation(len(shape))]
        new = [a.transpose(order) for a in arrays]
        return moved(pattern, order, new[0].shape), new
    if kind == "slice":
        step = int(rng.integers(1, 3))
        start = int(rng.integers(size))
        count = int(rng.integers(1, (size - start - 1) // step + 2))
        window = slice(start, start + (count - 1) * step + 1, step)
        new = [a[(slice(None),) * dim + (window,)] for a in arrays]
        return sliced(pattern, dim, start, count, step), new
    if kind == "pad":
        low, high = (int(i) for i in rng.integers(3, size=2))
        edges = [(low, high) if d == dim else (0, 0) for d in range(len(shape))]
        new = [np.pad(a, edges, constant_values=ELSEWHERE) for a in arrays]
        return placed(pattern, dim, low, high), new
    if kind == "index" and len(shape) > 1:
        at = int(rng.integers(size))
        new = [a.take(at, dim) for a in arrays]
        one = sliced(pattern, dim, at, 1)
        sources = [d for d in range(len(shape)) if d != dim]
        return one and moved(one, sources, new[0].shape), new
    if kind == "merge" and dim + 1 < len(shape):
        to = (*shape[:dim], size * shape[dim + 1], *shape[dim + 2 :])
    else:
        parts = [n for n in range(1, size + 1) if size % n == 0]
        part = int(rng.choice(parts))
        to = (*shape[:dim], part, size // part, *shape[dim + 1 :])
    return reshaped(pattern, to), [a.reshape(to) for a in arrays]


@pytest.mark.parametrize("seed", range(40))
def test_patterns_are_the_positions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pattern: Pattern | None = whole(SHAPE)
    arrays = [*np.indices(SHAPE)]
    for _ in range(8):
        pattern, arrays = _moves(rng, pattern, arrays)
        if pattern is None or math.prod(arrays[0].shape) > 5000:
            break
        shape = arrays[0].shape
        assert [math.prod(f.total for f in dim) for dim in pattern[:-1]] == [*shape]
        if any(f.axis == NOTHING and f.size > 1 for dim in pattern for f in dim):
            break  # A window across two factors: what it has of the leaf is forgotten.
        for axis, array in enumerate(arrays):
            np.testing.assert_array_equal(coordinates(pattern, shape, axis), array)


def test_uneven_cuts_are_not_followed() -> None:
    assert reshaped(whole((4, 3)), (6, 2)) is None
    merged = reshaped(whole((4, 3)), (12,))
    assert merged is not None
    assert reshaped(merged, (4, 3)) == whole((4, 3))


def test_a_window_across_two_factors_is_forgotten() -> None:
    merged = reshaped(moved(whole((4, 3)), (1, 0), (3, 4)), (12,))
    assert merged is not None
    assert sliced(merged, 0, 2, 5) == (blank(5), ())


def test_the_heads_of_the_middle_part_of_three() -> None:
    parts = reshaped(whole((24,)), (3, 2, 4))
    assert parts is not None
    middle = sliced(parts, 0, 1, 1)
    assert middle is not None
    where, head = positions(middle, 0, [1])
    np.testing.assert_array_equal(where, np.arange(8, 16))
    np.testing.assert_array_equal(head, np.repeat([0, 1], 4))
