"""Constant linear maps of one value along its last axis that are spelled as sums.

Rotary positions, x - mean(x), shifted and weighted copies: several uses of one value
that meet again. Norms of the parts would add up; the whole map has one norm.
"""

import heapq
import itertools
import weakref

import numpy as np

from manifold_optax.modular._computation._graph import Operation, Value
from manifold_optax.modular._patterns._maps import LINEAR, Maps
from manifold_optax.modular._patterns._tables import is_table, positions
from manifold_optax.modular._patterns._weighted import grams, operator_norm, Weighted

_JOINS = frozenset(
    {"add", "add_any", "concatenate", "cumsum", "select_n", "stack", "sub"}
)
"""Operations in which several uses of a value can meet, or several of its entries."""

_MOST_STEPS = 64
"""Operations between a value and the root of its map; rotary positions take 20."""

_POINTS = (1, 7, 53, 401, 3001, 20011, 150001)
"""Positions at which a map is formed whose positions are an input. Its Gram matrix is
analytic in the position; if it is the same at all of these, it is constant. The
frequencies of rotary positions reach from 1 to 1e-6, and the points match them."""

_ROUNDING = 1e-5
"""Rounding of products of float32 cosines; bfloat16 ones are not recognised."""


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
    found = _root(value)
    if found is None or not value.shape:
        return None
    root, places = found
    if len(root.shape) != len(value.shape) or root.shape[:-1] != value.shape[:-1]:
        return None
    if root.shape[-1] == 0 or value.shape[-1] == 0 or len(places) > 1:
        return None
    norm = _norm(value, root, places)
    if norm is None:
        return None
    return Operation(
        "linear",
        (root,),
        {"norm": norm, "axes": (len(root.shape) - 1,)},
        results=[value],
        sources=operation.sources,
    )


def _norm(value: Value, root: Value, places: set[Value]) -> float | None:
    """The norm of a map, if it is known or the same at all positions."""
    maps: list[Weighted] = []
    for point in _POINTS if places else (0,):
        if any(np.iinfo(x.dtype).max < point for x in places):
            break
        given = {x: np.full((1,) * len(x.shape), point, x.dtype) for x in places}
        found = Maps(root, given).of(value)
        if found is None or np.iscomplexobj(found.weights):
            return None
        maps.append(found)
    if places and not _agree([grams(x, root.shape[-1]) for x in maps]):
        return None
    return operator_norm(maps[0], root.shape[-1])


def _agree(maps: list[list[np.ndarray] | None]) -> bool:
    """Whether the Gram matrices of maps are the same."""
    first = maps[0]
    for other in maps[1:]:
        if first is None or other is None or len(first) != len(other):
            return False
        for a, b in zip(first, other, strict=True):
            if a.shape != b.shape or not np.allclose(a, b, atol=_ROUNDING):
                return False
    return True


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


def _root(value: Value) -> tuple[Value, set[Value]] | None:
    """The nearest value that a value is a linear function of, and its positions.

    Walks back from the value that lies deepest. Where that one is not linear, no other
    can lie behind it, and the search ends: `x + f(x)` costs two steps.
    """
    order = itertools.count()
    heap, waiting, joined_once = [(0, next(order), value)], {value}, False
    places: set[Value] = set()
    for _ in range(_MOST_STEPS):
        if len(heap) == 1 and joined_once:
            return heap[0][2], places
        operation = heapq.heappop(heap)[2].operation
        below = None if operation is None else _arguments(operation)
        if operation is None or not below:
            return None
        joined_once |= len(below) > 1 or operation.name == "cumsum"
        for operand in operation.operands:
            places.update(positions(operand) or ())
        for operand in below:
            if operand not in waiting:
                waiting.add(operand)
                heapq.heappush(heap, (-_depth(operand), next(order), operand))
    return None


def _arguments(operation: Operation) -> list[Value] | None:
    """The operands that its results are linear in; `None` if they are not linear."""
    unknown = [x for x in operation.operands if not is_table(x)]
    if operation.name not in LINEAR or not all(x.is_float for x in unknown):
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
