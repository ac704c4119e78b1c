"""Softmax and log-softmax: an exponential over its own sum."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.extend.core import Primitive

from manifold_optax.modular._computation._constants import (
    compact_array,
    constant_number,
)
from manifold_optax.modular._computation._graph import (
    constant,
    made_by,
    Operation,
    Value,
)
from manifold_optax.modular._patterns._layout import (
    bare,
    identity,
    Layout,
    merged,
    STRUCTURE,
)
from manifold_optax.modular._patterns._leaves import factors, Leaf, terms
from manifold_optax.modular._patterns._same import same

_DEEPEST = 8
"""Operations between a shift and the maximum that it is: about five."""


def softmax(value: Value) -> Operation | None:
    """The softmax or log-softmax that a value is.

    Args:
        value: any value of a traced graph.

    Returns:
        An operation `"softmax"` or `"log_softmax"` whose operand has the shape of the
        value, and whose parameter `axes` says over which axes it sums; `None` for any
        other value. A shift that is constant along the axes is left out of the operand.
    """
    operation = value.operation
    if operation is None or not value.is_float:
        return None
    if operation.name in ("div", "mul"):
        return _quotient(value)
    if operation.name == "sub":
        return _log_softmax(value)
    if operation.name == "exp":
        logarithm = _log_softmax(bare(operation.operands[0]))
        if logarithm is not None:
            return _named("softmax", logarithm.operands[0], logarithm.params, value)
    return None


def _quotient(value: Value) -> Operation | None:
    """An exponential over its own sum."""
    for total in factors(value)[1]:
        made = total.value.operation
        if total.weight != -1 or made is None or made.name != "reduce_sum":
            continue
        summed, axes = (
            bare(made.operands[0]),
            tuple(sorted(map(int, made.params["axes"]))),
        )
        if summed.shape != value.shape or not _is_put_back(total, axes, value.shape):
            continue
        for positive in _with_the_same_sum(summed):
            number, leaves = factors(
                value, lambda leaf, p=positive: same(leaf.value, p)
            )
            others = [leaf for leaf in leaves if leaf.value is not total.value]
            alone = len(others) == 1 and len(leaves) == 2 and number == 1
            if not alone or not same(others[0].value, positive) or others[0].path:
                continue
            logits = _logits(positive, axes)
            if logits is not None:
                return _named("softmax", logits, {"axes": axes}, value)
    return None


def _is_put_back(total: Leaf, axes: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether a sum over axes is broadcast along the same axes again."""
    own = identity(shape)
    kept: Layout = tuple(axis for i, axis in enumerate(own) if i not in axes)
    back = total.layout(kept)
    if back is None or merged(back, own) is None:
        return False
    return len(back) == len(own) or not kept


def _with_the_same_sum(summed: Value) -> Iterator[Value]:
    """Exponentials whose sum it is: itself, and without a mask that does nothing."""
    yield summed
    masked = _masked(summed)
    if masked is None:
        return
    which, keep, inner = masked
    made = bare(inner).operation
    if made is None or made.name != "exp":
        return
    # Where the mask puts 0, the exponent must have been -inf before.
    exponents = [bare(made.operands[0])]
    while (made := exponents[-1].operation) is not None and made.name == "sub":
        exponents.append(bare(made.operands[0]))
    if made is not None and made.name == "select_n" and same(made.operands[0], which):
        low = constant_number(made.operands[1 + (1 - keep)])
        if low is not None and low == -np.inf:
            yield bare(inner)


def _masked(value: Value) -> tuple[Value, int, Value] | None:
    """The mask of `where(mask, x, 0)`, which case is kept, and what it keeps."""
    operation = value.operation
    if (
        operation is None
        or operation.name != "select_n"
        or len(operation.operands) != 3
    ):
        return None
    for keep in (0, 1):
        if constant_number(operation.operands[2 - keep]) == 0:
            return bare(operation.operands[0]), keep, operation.operands[1 + keep]
    return None


def _logits(positive: Value, axes: tuple[int, ...]) -> Value | None:
    """What an exponential is of, without shifts; masked entries become -inf."""
    operation = positive.operation
    if operation is None:
        return None
    if operation.name == "exp":
        return _unshifted(operation.operands[0], axes)
    if operation.name == "exp2":
        z = _unshifted(operation.operands[0], axes)
        factor = constant(np.asarray(np.log(2), z.dtype))
        return _made("mul", (z, factor), positive, jax.lax.mul_p)
    masked = _masked(positive)
    if masked is not None:
        _, keep, inner = masked
        z = _logits(bare(inner), axes)
        if z is None:
            return None
        low = _full(-np.inf, positive)
        cases = (low, z) if keep else (z, low)
        return _made(
            "select_n", (operation.operands[0], *cases), positive, jax.lax.select_n_p
        )
    return None


def _full(number: float, like: Value) -> Value:
    """A number in every entry."""
    (value,) = made_by(
        "broadcast_in_dim",
        (constant(np.asarray(number, like.dtype)),),
        {"shape": like.shape, "broadcast_dimensions": (), "sharding": None},
        [(like.shape, like.dtype)],
        primitive=jax.lax.broadcast_in_dim_p,
    )
    return value


def _made(
    name: str,
    operands: tuple[Value, ...],
    like: Value,
    primitive: Primitive,
) -> Value:
    (value,) = made_by(
        name,
        operands,
        {},
        [(like.shape, like.dtype)],
        primitive=primitive,
        sources=like.operation.sources if like.operation is not None else (),
    )
    return value


def _unshifted(z: Value, axes: tuple[int, ...]) -> Value:
    """An exponent without terms that are constant along the axes: they cancel."""
    while True:
        z = bare(z)
        operation = z.operation
        if operation is None or operation.name not in ("add", "sub"):
            return z
        a, b = operation.operands
        if a.shape == z.shape and _is_constant_along(b, axes):
            z = a
        elif (
            operation.name == "add"
            and b.shape == z.shape
            and _is_constant_along(a, axes)
        ):
            z = b
        else:
            return z


def _is_constant_along(value: Value, axes: tuple[int, ...], depth: int = 0) -> bool:
    """Whether a value is seen to be constant along axes."""
    value = bare(value)
    axes = tuple(axis for axis in axes if value.shape and value.shape[axis] > 1)
    if not axes:
        return True
    operation = value.operation
    array = compact_array(value)
    if array is not None:
        return all(array.shape[axis] == 1 for axis in axes)
    if operation is None or depth > _DEEPEST:
        return False
    if operation.name == "broadcast_in_dim":
        (inner,), places = operation.operands, operation.params["broadcast_dimensions"]
        left = [i for i, place in enumerate(places) if place in axes]
        stretched = [i for i in left if inner.shape[i] == 1]
        rest = tuple(i for i in left if i not in stretched)
        return _is_constant_along(inner, rest, depth + 1) if rest else True
    if operation.name in _ENTRYWISE:
        return all(_is_constant_along(x, axes, depth + 1) for x in operation.operands)
    return False


_ENTRYWISE = frozenset(
    {"abs", "add", "div", "exp", "is_finite", "log", "max", "min", "mul", "neg"}
    | {"select_n", "sub"}
)
"""What may be done to a maximum before it is subtracted."""


_BEFORE_LOG = STRUCTURE | {"abs"}
"""What may be done to a sum of exponentials before its logarithm is taken."""


def _log_softmax(value: Value) -> Operation | None:
    """An exponent less the logarithm of the sum of its exponentials."""
    operation = value.operation
    if operation is None or operation.name != "sub":
        return None
    leaves = terms(value)
    for leaf in leaves:
        made = leaf.value.operation
        if leaf.weight != -1 or made is None or made.name != "log":
            continue
        total, path = bare(made.operands[0]), leaf.path
        while (inner := total.operation) is not None and inner.name in _BEFORE_LOG:
            path = path if inner.name == "abs" else (inner, *path)
            total = bare(inner.operands[0])
        if inner is None or inner.name != "reduce_sum":
            continue
        exponential = bare(inner.operands[0])
        axes = tuple(sorted(map(int, inner.params["axes"])))
        made = exponential.operation
        if made is None or made.name != "exp" or exponential.shape != value.shape:
            continue
        if not _is_put_back(Leaf(total, -1, path), axes, value.shape):
            continue
        rest = [other for other in leaves if other is not leaf]
        if _agree(rest, terms(made.operands[0])):
            logits = _unshifted(made.operands[0], axes)
            return _named("log_softmax", logits, {"axes": axes}, value)
    return None


def _agree(some: list[Leaf], others: list[Leaf]) -> bool:
    """Whether two sums have the same terms, in any order."""
    left = list(others)
    for leaf in some:
        layout = leaf.layout(identity(leaf.value.shape))
        for other in left:
            alike = leaf.weight == other.weight and same(leaf.value, other.value)
            if alike and layout == other.layout(identity(other.value.shape)):
                left.remove(other)
                break
        else:
            return False
    return not left


def _named(
    name: str, operand: Value, params: Mapping[str, Any], value: Value
) -> Operation:
    sources = value.operation.sources if value.operation is not None else ()
    return Operation(name, (operand,), params, results=[value], sources=sources)
