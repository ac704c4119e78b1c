"""Constant linear maps of one value along its last axis that are spelled as sums.

Rotary positions, x - mean(x), shifted and weighted copies: several uses of one value
that meet again. Norms of the parts would add up; the whole map has one norm.
"""

import dataclasses
import heapq
import itertools
import math
import weakref
from collections.abc import Callable

import numpy as np

from manifold_optax.modular._constants import (
    compact_array,
    constant_number,
    is_constant,
)
from manifold_optax.modular._graph import Operation, Value
from manifold_optax.modular._patterns._weighted import (
    entries,
    joined,
    nothing,
    operator_norm,
    stacked,
    total,
    Weighted,
)

_JOINS = frozenset({"add", "add_any", "concatenate", "select_n", "stack", "sub"})
"""Operations in which several uses of a value can meet."""

_MOST_STEPS = 64
"""Operations between a value and the root of its map; rotary positions take 20."""

_MOST_TERMS = 2048
"""Entries in one sum. The matrix of a longer sum would take seconds to bound."""


def linear(value: Value) -> Operation | None:
    """The linear map that a value is the result of.

    Args:
        value: any value of a traced graph.

    Returns:
        An operation `"linear"` of one operand of the same shape up to the last axis,
        with the parameters `axes` (the last one) and `norm`, the largest operator norm
        over the other axes, from above. `None` for any other value, and for maps in
        which no two uses of a value meet.
    """
    operation = value.operation
    if operation is None or not value.is_float or not _may_join(operation):
        return None
    root = _root(value)
    if root is None or root.shape[:-1] != value.shape[:-1] or not value.shape:
        return None
    if len(root.shape) != len(value.shape):
        return None
    if root.shape[-1] == 0 or value.shape[-1] == 0:
        return None
    found = _Map(root).of(value)
    if found is None or np.iscomplexobj(found.weights):
        return None
    norm = operator_norm(found, root.shape[-1])
    return Operation(
        "linear",
        (root,),
        {"norm": norm, "axes": (len(root.shape) - 1,)},
        results=[value],
        sources=operation.sources,
    )


def _may_join(operation: Operation) -> bool:
    """Whether it joins values, or brings such a join into shape."""
    for _ in range(3):
        if operation.name != "reshape":
            break
        inner = operation.operands[0].operation
        if inner is None:
            return False
        operation = inner
    return operation.name in _JOINS


def _root(value: Value) -> Value | None:
    """The nearest value that a value is a linear function of, after a join.

    Walks back from the value that lies deepest. Where that one is not linear, no other
    can lie behind it, and the search ends: `x + f(x)` costs two steps.
    """
    order = itertools.count()
    heap, waiting, joined_once = [(0, next(order), value)], {value}, False
    for _ in range(_MOST_STEPS):
        if len(heap) == 1 and joined_once:
            return heap[0][2]
        operation = heapq.heappop(heap)[2].operation
        below = None if operation is None else _arguments(operation)
        if not below:
            return None
        joined_once |= len(below) > 1
        for operand in below:
            if operand not in waiting:
                waiting.add(operand)
                heapq.heappush(heap, (-_depth(operand), next(order), operand))
    return None


def _arguments(operation: Operation) -> list[Value] | None:
    """The operands that its results are linear in; `None` if they are not linear."""
    rule = _RULES.get(operation.name)
    unknown = [x for x in operation.operands if not is_constant(x)]
    if rule is None or not all(x.is_float for x in unknown):
        return None
    if operation.name in ("mul", "dot_general") and len(unknown) > 1:
        return None
    if operation.name in ("div", "select_n"):
        fixed = operation.operands[1 if operation.name == "div" else 0]
        return None if fixed in unknown else unknown
    return unknown


_DEPTHS: weakref.WeakKeyDictionary[Value, int] = weakref.WeakKeyDictionary()


def _depth(value: Value) -> int:
    """How many operations lie between a value and the inputs, at most."""
    stack = [value]
    while stack:
        operands = stack[-1].operation.operands if stack[-1].operation else ()
        missing = [x for x in operands if x not in _DEPTHS]
        if stack[-1] in _DEPTHS or not missing:
            done = stack.pop()
            _DEPTHS[done] = 1 + max((_DEPTHS[x] for x in operands), default=0)
        else:
            stack.extend(missing)
    return _DEPTHS[value]


class _Map:
    """Values as maps of a root; at most `_MOST_STEPS` operations away from it."""

    def __init__(self, root: Value) -> None:
        self.root = root
        self.leading = len(root.shape) - 1
        self._known: dict[Value, Weighted | None] = {}

    def of(self, value: Value) -> Weighted | None:
        """The map that makes a value; `None` if it has no rule, or is too large."""
        if value not in self._known:
            self._known[value] = self._of(value)
        return self._known[value]

    def _of(self, value: Value) -> Weighted | None:
        if value is self.root:
            return entries(self.leading, value.shape[-1])
        if is_constant(value):
            zero = constant_number(value) == 0
            shape = value.shape[self.leading :]
            return nothing(self.leading, shape) if zero else None
        operation = value.operation
        leading = self.root.shape[: self.leading]
        if operation is None or value.shape[: self.leading] != leading:
            return None
        found = _RULES[operation.name](self, operation, value.index)
        return found if found is not None and found.fits else None


Rule = Callable[[_Map, Operation, int], Weighted | None]


def _copy(maps: _Map, operation: Operation, index: int) -> Weighted | None:
    return maps.of(operation.operands[index])


def _moved(
    maps: _Map,
    operation: Operation,
    move: Callable[[np.ndarray, int], np.ndarray],
) -> Weighted | None:
    """Applies a move of entries; its second argument counts the axes before them."""
    x = maps.of(operation.operands[0])
    if x is None:
        return None
    before = 1 + maps.leading
    return Weighted(maps.leading, move(x.sources, 1), move(x.weights, before))


def _reshape(maps: _Map, operation: Operation, index: int) -> Weighted | None:
    shape = operation.results[0].shape[maps.leading :]
    return _moved(maps, operation, lambda x, n: x.reshape(*x.shape[:n], *shape))


def _transpose(maps: _Map, operation: Operation, index: int) -> Weighted | None:
    permutation, k = operation.params["permutation"], maps.leading
    if tuple(permutation[:k]) != tuple(range(k)):
        return None
    rest = [axis - k for axis in permutation[k:]]
    return _moved(
        maps,
        operation,
        lambda x, n: x.transpose(*range(n), *(n + axis for axis in rest)),
    )


def _broadcast(maps: _Map, operation: Operation, index: int) -> Weighted | None:
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


def _slice(maps: _Map, operation: Operation, index: int) -> Weighted | None:
    params, k = operation.params, maps.leading
    starts, limits = params["start_indices"], params["limit_indices"]
    strides = params["strides"] or (1,) * len(starts)
    cuts = tuple(map(slice, starts[k:], limits[k:], strides[k:]))
    return _moved(maps, operation, lambda x, n: x[(slice(None),) * n + cuts])


def _split(maps: _Map, operation: Operation, index: int) -> Weighted | None:
    sizes, axis = operation.params["sizes"], operation.params["axis"] - maps.leading
    start = sum(sizes[:index])
    cut = slice(start, start + sizes[index])
    if axis < 0:
        return None
    return _moved(maps, operation, lambda x, n: x[(slice(None),) * (n + axis) + (cut,)])


def _unstack(maps: _Map, operation: Operation, index: int) -> Weighted | None:
    axis = operation.params["axis"] - maps.leading
    if axis < 0:
        return None
    return _moved(maps, operation, lambda x, n: x.take(index, n + axis))


def _reverse(maps: _Map, operation: Operation, index: int) -> Weighted | None:
    axes = [axis - maps.leading for axis in operation.params["dimensions"]]
    if min(axes, default=0) < 0:
        return None
    return _moved(maps, operation, lambda x, n: np.flip(x, [n + axis for axis in axes]))


def _pad(maps: _Map, operation: Operation, index: int) -> Weighted | None:
    config, k = operation.params["padding_config"], maps.leading
    if constant_number(operation.operands[1]) != 0 or any(map(any, config[:k])):
        return None
    if any(low < 0 or high < 0 or inner for low, high, inner in config[k:]):
        return None
    widths = [(low, high) for low, high, _ in config[k:]]
    return _moved(maps, operation, lambda x, n: np.pad(x, [(0, 0)] * n + widths))


def _sum(maps: _Map, operation: Operation, index: int) -> Weighted | None:
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


def _negative(maps: _Map, operation: Operation, index: int) -> Weighted | None:
    x = maps.of(operation.operands[0])
    return None if x is None else x.scaled(np.asarray(-1.0))


def _scale(maps: _Map, operation: Operation, index: int) -> Weighted | None:
    """A product with, or a quotient by, an array that is known."""
    a, b = operation.operands
    known, other = (a, b) if is_constant(a) else (b, a)
    array, x = compact_array(known), maps.of(other)
    if array is None or x is None:
        return None
    factor = array.astype(complex if np.iscomplexobj(array) else float)
    if operation.name == "div":
        with np.errstate(all="ignore"):
            factor = 1 / factor
    if not np.isfinite(factor).all():
        return None
    return x.placed(operation.results[0].shape[maps.leading :]).scaled(factor)


def _add(maps: _Map, operation: Operation, index: int) -> Weighted | None:
    a, b = (maps.of(operand) for operand in operation.operands)
    if a is None or b is None:
        return None
    shape = operation.results[0].shape[maps.leading :]
    sign = np.asarray(-1.0 if operation.name == "sub" else 1.0)
    return total(a.placed(shape), b.placed(shape).scaled(sign))


def _concatenate(maps: _Map, operation: Operation, index: int) -> Weighted | None:
    axis = operation.params["dimension"] - maps.leading
    parts = [x for x in map(maps.of, operation.operands) if x is not None]
    if axis < 0 or len(parts) < len(operation.operands):
        return None
    return joined(parts, axis)


def _stack(maps: _Map, operation: Operation, index: int) -> Weighted | None:
    axis = operation.params["axis"] - maps.leading
    parts = [x for x in map(maps.of, operation.operands) if x is not None]
    if axis < 0 or len(parts) < len(operation.operands):
        return None
    shape = parts[0].shape
    thin = [part.reshaped((*shape[:axis], 1, *shape[axis:])) for part in parts]
    return joined(thin, axis)


def _complex(maps: _Map, operation: Operation, index: int) -> Weighted | None:
    """Pairs as complex numbers: the weights become complex, the root stays real."""
    a, b = (maps.of(operand) for operand in operation.operands)
    return None if a is None or b is None else total(a, b.scaled(np.asarray(1j)))


def _part(maps: _Map, operation: Operation, index: int) -> Weighted | None:
    x = maps.of(operation.operands[0])
    parts = {"real": np.real, "imag": np.imag, "conj": np.conj}
    if x is None:
        return None
    return dataclasses.replace(x, weights=parts[operation.name](x.weights))


def _select(maps: _Map, operation: Operation, index: int) -> Weighted | None:
    which = compact_array(operation.operands[0])
    shape = operation.results[0].shape[maps.leading :]
    whole: Weighted | None = nothing(maps.leading, shape)
    for case, operand in enumerate(operation.operands[1:]):
        x = maps.of(operand)
        if which is None or x is None or whole is None:
            return None
        chosen = (which == case).astype(np.float64)
        whole = total(whole, x.placed(shape).scaled(chosen))
    return whole


def _product(maps: _Map, operation: Operation, index: int) -> Weighted | None:
    """A product of the last axis with a matrix that is known."""
    a, b = operation.operands
    (left, right), (batch, _) = operation.params["dimension_numbers"]
    matrix, x = compact_array(b), None if is_constant(a) else maps.of(a)
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


_RULES: dict[str, Rule] = {
    **dict.fromkeys(("convert_element_type", "copy", "copy_p"), _copy),
    **dict.fromkeys(("reduce_precision", "stop_gradient"), _copy),
    **dict.fromkeys(("optimization_barrier", "sharding_constraint"), _copy),
    **dict.fromkeys(("reshape", "squeeze"), _reshape),
    **dict.fromkeys(("add", "add_any", "sub"), _add),
    **dict.fromkeys(("mul", "div"), _scale),
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "dot_general": _product,
    **dict.fromkeys(("real", "imag", "conj"), _part),
    "complex": _complex,
    "neg": _negative,
    "pad": _pad,
    "reduce_sum": _sum,
    "rev": _reverse,
    "select_n": _select,
    "slice": _slice,
    "split": _split,
    "stack": _stack,
    "transpose": _transpose,
    "unstack": _unstack,
}
