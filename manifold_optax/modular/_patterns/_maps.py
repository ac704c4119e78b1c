"""Values of a graph as linear maps of one of them: one rule for each operation."""

import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np

from manifold_optax.modular._computation._constants import (
    array_given,
    constant_number,
)
from manifold_optax.modular._computation._graph import Operation, Value
from manifold_optax.modular._patterns._tables import is_table
from manifold_optax.modular._patterns._weighted import (
    entries,
    joined,
    nothing,
    stacked,
    total,
    Weighted,
)

_MOST_TERMS = 2048
"""Entries in one sum. The matrix of a longer sum would take seconds to bound."""


class Maps:
    """Values as maps of a root; few operations away from it."""

    def __init__(self, root: Value, given: Mapping[Value, np.ndarray]) -> None:
        self.root = root
        self.given = given
        self.leading = len(root.shape) - 1
        self._known: dict[Value, Weighted | None] = {}

    def of(self, value: Value) -> Weighted | None:
        """The map that makes a value; `None` if it has no rule, or is too large."""
        if value not in self._known:
            self._known[value] = self._of(value)
        return self._known[value]

    def known(self, value: Value) -> np.ndarray | None:
        """The array of a table, which may depend on what is given."""
        return array_given(value, self.given)

    def _of(self, value: Value) -> Weighted | None:
        if value is self.root:
            return entries(self.leading, value.shape[-1])
        if is_table(value):
            zero = constant_number(value) == 0
            shape = value.shape[self.leading :]
            return nothing(self.leading, shape) if zero else None
        operation = value.operation
        leading = self.root.shape[: self.leading]
        if operation is None or value.shape[: self.leading] != leading:
            return None
        if operation.name in _RULES:
            found = _RULES[operation.name](self, operation)
        else:
            found = _RESULTS[operation.name](self, operation, value.index)
        return found if found is not None and found.fits else None


def _copy(maps: Maps, operation: Operation, index: int) -> Weighted | None:
    return maps.of(operation.operands[index])


def _moved(
    maps: Maps,
    operation: Operation,
    move: Callable[[np.ndarray, int], np.ndarray],
) -> Weighted | None:
    """Applies a move of entries; its second argument counts the axes before them."""
    x = maps.of(operation.operands[0])
    if x is None:
        return None
    before = 1 + maps.leading
    return Weighted(maps.leading, move(x.sources, 1), move(x.weights, before))


def _reshape(maps: Maps, operation: Operation) -> Weighted | None:
    shape = operation.results[0].shape[maps.leading :]
    return _moved(maps, operation, lambda x, n: x.reshape(*x.shape[:n], *shape))


def _transpose(maps: Maps, operation: Operation) -> Weighted | None:
    permutation, k = operation.params["permutation"], maps.leading
    if tuple(permutation[:k]) != tuple(range(k)):
        return None
    rest = [axis - k for axis in permutation[k:]]
    return _moved(
        maps,
        operation,
        lambda x, n: x.transpose(*range(n), *(n + axis for axis in rest)),
    )


def _broadcast(maps: Maps, operation: Operation) -> Weighted | None:
    places, k = operation.params["broadcast_dimensions"], maps.leading
    if tuple(places[:k]) != tuple(range(k)):
        return None
    shape = operation.results[0].shape[k:]

    def move(x: np.ndarray, n: int) -> np.ndarray:
        sizes = [1] * len(shape)
        for place, size in zip(places[k:], x.shape[n:], strict=True):
            sizes[place - k] = size
        return np.broadcast_to(x.reshape(*x.shape[:n], *sizes), (*x.shape[:n], *shape))

    return _moved(maps, operation, move)


def _slice(maps: Maps, operation: Operation) -> Weighted | None:
    params, k = operation.params, maps.leading
    starts, limits = params["start_indices"], params["limit_indices"]
    strides = params["strides"] or (1,) * len(starts)
    cuts = tuple(map(slice, starts[k:], limits[k:], strides[k:]))
    return _moved(maps, operation, lambda x, n: x[(slice(None),) * n + cuts])


def _split(maps: Maps, operation: Operation, index: int) -> Weighted | None:
    sizes, axis = (
        operation.params["sizes"],
        int(operation.params["axis"]) - maps.leading,
    )
    start = sum(sizes[:index])
    cut = slice(start, start + sizes[index])
    if axis < 0:
        return None
    return _moved(maps, operation, lambda x, n: x[(slice(None),) * (n + axis) + (cut,)])


def _unstack(maps: Maps, operation: Operation, index: int) -> Weighted | None:
    axis = int(operation.params["axis"]) - maps.leading
    if axis < 0:
        return None
    return _moved(maps, operation, lambda x, n: x.take(index, n + axis))


def _reverse(maps: Maps, operation: Operation) -> Weighted | None:
    axes = [axis - maps.leading for axis in operation.params["dimensions"]]
    if min(axes, default=0) < 0:
        return None
    return _moved(maps, operation, lambda x, n: np.flip(x, tuple(n + i for i in axes)))


def _pad(maps: Maps, operation: Operation) -> Weighted | None:
    config, k = operation.params["padding_config"], maps.leading
    if constant_number(operation.operands[1]) != 0 or any(map(any, config[:k])):
        return None
    if any(low < 0 or high < 0 or inner for low, high, inner in config[k:]):
        return None
    widths = [(low, high) for low, high, _ in config[k:]]
    return _moved(maps, operation, lambda x, n: np.pad(x, [(0, 0)] * n + widths))


def _sum(maps: Maps, operation: Operation) -> Weighted | None:
    axes = [axis - maps.leading for axis in operation.params["axes"]]
    if min(axes, default=0) < 0:
        return None

    terms = math.prod(operation.operands[0].shape[a] for a in operation.params["axes"])
    if terms > _MOST_TERMS:
        return None

    def move(x: np.ndarray, n: int) -> np.ndarray:
        ends = list(range(1, 1 + len(axes)))
        x = np.moveaxis(x, [n + axis for axis in axes], ends)
        return x.reshape(-1, *x.shape[1 + len(axes) :])

    return _moved(maps, operation, move)


def _cumulative(maps: Maps, operation: Operation) -> Weighted | None:
    """Sums of the entries before: one term for each distance."""
    axis = int(operation.params["axis"]) - maps.leading
    x = maps.of(operation.operands[0])
    if x is None or axis < 0 or x.shape[axis] > _MOST_TERMS:
        return None
    whole: Weighted | None = None
    for distance in range(x.shape[axis]):
        shift = -distance if operation.params["reverse"] else distance
        place = np.arange(x.shape[axis]) - shift
        inside = (place >= 0) & (place < x.shape[axis])
        inside = inside.reshape([-1 if i == axis else 1 for i in range(len(x.shape))])
        moved = Weighted(
            maps.leading,
            np.roll(x.sources, shift, 1 + axis),
            np.roll(x.weights, shift, 1 + maps.leading + axis) * inside,
        )
        whole = moved if whole is None else total(whole, moved)
        if whole is None:
            return None
    return whole


def _negative(maps: Maps, operation: Operation) -> Weighted | None:
    x = maps.of(operation.operands[0])
    return None if x is None else x.scaled(np.asarray(-1.0))


def _scale(maps: Maps, operation: Operation) -> Weighted | None:
    """A product with, or a quotient by, an array that is known."""
    a, b = operation.operands
    known, other = (a, b) if is_table(a) else (b, a)
    array, x = maps.known(known), maps.of(other)
    if array is None or x is None:
        return None
    factor = array.astype(complex if np.iscomplexobj(array) else float)
    if operation.name == "div":
        with np.errstate(all="ignore"):
            factor = np.asarray(1 / factor)
    if not np.isfinite(factor).all():
        return None
    return x.placed(operation.results[0].shape[maps.leading :]).scaled(factor)


def _add(maps: Maps, operation: Operation) -> Weighted | None:
    a, b = (maps.of(operand) for operand in operation.operands)
    if a is None or b is None:
        return None
    shape = operation.results[0].shape[maps.leading :]
    sign = np.asarray(-1.0 if operation.name == "sub" else 1.0)
    return total(a.placed(shape), b.placed(shape).scaled(sign))


def _concatenate(maps: Maps, operation: Operation) -> Weighted | None:
    axis = int(operation.params["dimension"]) - maps.leading
    parts = [x for x in map(maps.of, operation.operands) if x is not None]
    if axis < 0 or len(parts) < len(operation.operands):
        return None
    return joined(parts, axis)


def _stack(maps: Maps, operation: Operation) -> Weighted | None:
    axis = int(operation.params["axis"]) - maps.leading
    parts = [x for x in map(maps.of, operation.operands) if x is not None]
    if axis < 0 or len(parts) < len(operation.operands):
        return None
    shape = parts[0].shape
    thin = [part.reshaped((*shape[:axis], 1, *shape[axis:])) for part in parts]
    return joined(thin, axis)


def _complex(maps: Maps, operation: Operation) -> Weighted | None:
    """Pairs as complex numbers: the weights become complex, the root stays real."""
    a, b = (maps.of(operand) for operand in operation.operands)
    return None if a is None or b is None else total(a, b.scaled(np.asarray(1j)))


def _part(maps: Maps, operation: Operation) -> Weighted | None:
    x = maps.of(operation.operands[0])
    parts = {"real": np.real, "imag": np.imag, "conj": np.conj}
    if x is None:
        return None
    return dataclasses.replace(x, weights=parts[operation.name](x.weights))


def _select(maps: Maps, operation: Operation) -> Weighted | None:
    which = maps.known(operation.operands[0])
    shape = operation.results[0].shape[maps.leading :]
    whole: Weighted | None = nothing(maps.leading, shape)
    for case, operand in enumerate(operation.operands[1:]):
        x = maps.of(operand)
        if which is None or x is None or whole is None:
            return None
        chosen = (which == case).astype(np.float64)
        whole = total(whole, x.placed(shape).scaled(chosen))
    return whole


def _product(maps: Maps, operation: Operation) -> Weighted | None:
    """A product of the last axis with a matrix that is known."""
    a, b = operation.operands
    (left, right), (batch, _) = operation.params["dimension_numbers"]
    matrix, x = maps.known(b), None if is_table(a) else maps.of(a)
    if matrix is None or x is None or batch or len(b.shape) != 2:
        return None
    if tuple(left) != (maps.leading,) or len(x.shape) != 1:
        return None
    matrix = np.broadcast_to(matrix, b.shape).astype(np.float64)
    matrix = matrix if right[0] == 0 else matrix.T
    sources, weights = [], []
    for source, weight in zip(x.sources, x.weights, strict=True):
        for i, row in enumerate(matrix):
            sources.append(np.full(len(row), source[i]))
            weights.append(weight[..., i : i + 1] * row)
    return stacked(maps.leading, sources, weights)


_RULES: dict[str, Callable[[Maps, Operation], Weighted | None]] = {
    **dict.fromkeys(("add", "add_any", "sub"), _add),
    **dict.fromkeys(("mul", "div"), _scale),
    **dict.fromkeys(("real", "imag", "conj"), _part),
    **dict.fromkeys(("reshape", "squeeze"), _reshape),
    "broadcast_in_dim": _broadcast,
    "complex": _complex,
    "concatenate": _concatenate,
    "cumsum": _cumulative,
    "dot_general": _product,
    "neg": _negative,
    "pad": _pad,
    "reduce_sum": _sum,
    "rev": _reverse,
    "select_n": _select,
    "slice": _slice,
    "stack": _stack,
    "transpose": _transpose,
}

_RESULTS: dict[str, Callable[[Maps, Operation, int], Weighted | None]] = {
    **dict.fromkeys(("convert_element_type", "copy", "copy_p"), _copy),
    **dict.fromkeys(("reduce_precision", "stop_gradient"), _copy),
    **dict.fromkeys(("optimization_barrier", "sharding_constraint"), _copy),
    "split": _split,
    "unstack": _unstack,
}
"""Rules of operations that may have several results; the last argument says which."""

LINEAR = frozenset(_RULES) | frozenset(_RESULTS)
"""Operations that are linear in what they are applied to, if the rest is constant."""
