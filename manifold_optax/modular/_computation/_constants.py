"""Values of a graph that depend on none of its inputs, computed: masks, tables."""

import math
import weakref
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from manifold_optax.modular._computation._graph import Operation, Value

MOST_NUMBERS = 20_000_000
"""Larger arrays are not computed: 160 MB in float64, and 0.1 s for each operation.
Axes along which an array is known to be constant do not count."""

_KNOWN: weakref.WeakKeyDictionary[Value, bool] = weakref.WeakKeyDictionary()
"""Whether a value depends on no input of its graph."""

_ARRAYS: weakref.WeakKeyDictionary[Value, np.ndarray | None] = (
    weakref.WeakKeyDictionary()
)
"""The computed arrays, of size 1 along axes that they are known to be constant in."""


def constant_array(value: Value) -> np.ndarray | None:
    """The array that a value holds whatever the inputs are.

    Args:
        value: any value of a graph.

    Returns:
        A read-only array of the value's shape, or `None` where the value depends on
        an input, needs a loop, or is too large; see `MOST_NUMBERS`.
    """
    array = compact_array(value)
    return None if array is None else np.broadcast_to(array, value.shape)


def compact_array(value: Value) -> np.ndarray | None:
    """Like `constant_array`, with size 1 along axes that are known to be constant."""
    return _computed(value, _ARRAYS) if is_constant(value) else None


def array_given(value: Value, given: Mapping[Value, np.ndarray]) -> np.ndarray | None:
    """Like `compact_array`, for a value that depends on no inputs but `given`."""
    return _computed(value, dict(given))


def _computed(
    value: Value, arrays: MutableMapping[Value, np.ndarray | None]
) -> np.ndarray | None:
    """What is known of a value, after all that it needs has been added to `arrays`."""
    stack = [value]
    while stack:  # Without recursion: a table may be made by a long chain.
        needed = stack[-1]
        operation = needed.operation
        if needed in arrays:
            stack.pop()
        elif arrays is not _ARRAYS and is_constant(needed):
            arrays[stack.pop()] = compact_array(needed)
        elif operation is None:
            constant = needed.constant
            arrays[stack.pop()] = None if constant is None else _held(constant)
        elif missing := [x for x in operation.operands if x not in arrays]:
            stack.extend(missing)
        else:
            operands = [arrays[operand] for operand in operation.operands]
            results = _compute(operation, operands)
            arrays.update(zip(operation.results, results, strict=True))
            stack.pop()
    return arrays[value]


def constant_number(value: Value) -> float | None:
    """The number that all entries of a constant are equal to, if one is; True is 1."""
    array = compact_array(value)
    if array is None or array.size == 0:
        return None
    first = array.reshape(-1)[0]
    if array.size > 1 and not (array == first).all():
        return None
    return None if np.iscomplexobj(array) else float(first)


def is_constant(value: Value) -> bool:
    """Whether a value depends on no input of its graph, without computing it."""
    stack = [value]
    while stack:
        needed = stack[-1]
        operation = needed.operation
        if needed in _KNOWN:
            stack.pop()
        elif operation is None:
            _KNOWN[stack.pop()] = needed.constant is not None
        elif not _computable(operation) or any(
            _KNOWN.get(operand) is False for operand in operation.operands
        ):
            _KNOWN[stack.pop()] = False
        elif missing := [x for x in operation.operands if x not in _KNOWN]:
            stack.append(missing[0])  # One at a time: the first may settle it.
        else:
            _KNOWN[stack.pop()] = True
    return _KNOWN[value]


def _computable(operation: Operation) -> bool:
    """Whether an operation means the same when it is computed alone."""
    alone = operation.primitive is not None and not operation.bodies
    outside = {"jaxpr", "call_jaxpr", "axis_name", "callback"}
    return alone and outside.isdisjoint(operation.params)


def _held(constant: Any) -> np.ndarray | None:
    """A literal or captured array; `None` for keys, tracers and what is too large."""
    if math.prod(np.shape(constant)) > MOST_NUMBERS:
        return None
    if isinstance(constant, Tracer) or jax.numpy.issubdtype(
        constant.dtype, jax.dtypes.extended
    ):
        return None
    return _compact(np.asarray(constant))


def _compute(
    operation: Operation, operands: list[np.ndarray | None]
) -> list[np.ndarray | None]:
    """The results of an operation, as far as they can be known."""
    if any(operand is None for operand in operands) or not _computable(operation):
        return [None] * len(operation.results)
    if operation.name in _ELEMENTWISE:
        return [_elementwise(operation, operands)]
    if operation.name in _SHAPES:
        return [_SHAPES[operation.name](operation, *operands)]
    return _by_jax(operation, operands)


def _elementwise(operation: Operation, operands: list[Any]) -> np.ndarray | None:
    """Arithmetic entry by entry, which keeps axes of size 1."""
    shape = np.broadcast_shapes(*(np.shape(operand) for operand in operands))
    if math.prod(shape) > MOST_NUMBERS:
        return None
    with np.errstate(all="ignore"):  # As in JAX, infinities and NaNs are results.
        array = _ELEMENTWISE[operation.name](operation.params, *operands)
    return np.asarray(array, operation.results[0].dtype)


def _by_jax(operation: Operation, operands: list[Any]) -> list[np.ndarray | None]:
    """The results of any other primitive, of whole arrays."""
    values = (*operation.operands, *operation.results)
    primitive = operation.primitive
    if primitive is None or any(math.prod(x.shape) > MOST_NUMBERS for x in values):
        return [None] * len(operation.results)
    with jax.ensure_compile_time_eval():
        whole = (
            jax.numpy.asarray(np.broadcast_to(array, value.shape), value.dtype)
            for array, value in zip(operands, operation.operands, strict=True)
        )
        found = primitive.bind(*whole, **operation.params)
    results = found if primitive.multiple_results else [found]
    return [_held(result) for result in results]


def _compact(array: np.ndarray) -> np.ndarray:
    """`array` with axes of stride 0 cut to size 1: NumPy's way to broadcast."""
    index = tuple(
        slice(0, 1) if stride == 0 and size > 1 else slice(None)
        for stride, size in zip(array.strides, array.shape, strict=True)
    )
    return array[(..., *index)]  # The dots keep an array of no axes an array.


def _iota(operation: Operation) -> np.ndarray:
    shape, axis = operation.results[0].shape, operation.params["dimension"]
    line = np.arange(shape[axis], dtype=operation.results[0].dtype)
    return line.reshape([-1 if i == axis else 1 for i in range(len(shape))])


def _broadcast_in_dim(operation: Operation, x: np.ndarray, *_: Any) -> np.ndarray:
    """New axes have size 1, as the result is constant along them."""
    sizes = [1] * len(operation.results[0].shape)
    for axis, size in zip(
        operation.params["broadcast_dimensions"], x.shape, strict=True
    ):
        sizes[axis] = size
    return x.reshape(sizes)


def _whole(
    function: Callable[[Operation, np.ndarray], np.ndarray],
) -> Callable[..., np.ndarray | None]:
    """A function of one whole array, for what does not act along single axes."""

    def apply(operation: Operation, x: np.ndarray) -> np.ndarray | None:
        shape = operation.operands[0].shape
        if x.size > 1 and math.prod(shape) > MOST_NUMBERS:
            return None
        if x.size == 1:
            return x.reshape([1] * len(operation.results[0].shape))
        return _compact(function(operation, np.broadcast_to(x, shape)))

    return apply


def _slice(operation: Operation, x: np.ndarray) -> np.ndarray:
    params, shape = operation.params, operation.operands[0].shape
    strides = params["strides"] or (1,) * len(shape)
    bounds = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    index = tuple(
        slice(*bound) if size > 1 else slice(None)
        for bound, size in zip(bounds, x.shape, strict=True)
    )
    return x[index]


def _concatenate(operation: Operation, *xs: np.ndarray) -> np.ndarray | None:
    axis, shape = operation.params["dimension"], operation.results[0].shape
    sizes = list(np.broadcast_shapes(*(_without(x.shape, axis) for x in xs)))
    if math.prod(sizes) * shape[axis] > MOST_NUMBERS:
        return None
    parts = []
    for x, operand in zip(xs, operation.operands, strict=True):
        sizes[axis] = operand.shape[axis]
        parts.append(np.broadcast_to(x, sizes))
    return np.concatenate(parts, axis)


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], 1, *shape[axis + 1 :])


def _clamp(_: Any, low: Any, x: Any, high: Any) -> Any:
    return np.minimum(np.maximum(x, low), high)


def _select(_: Any, which: Any, *cases: Any) -> Any:
    return np.choose(which.astype(int), cases)


def _power(params: Mapping[str, Any], x: Any) -> Any:
    return np.asarray(x) ** np.asarray(params["y"], dtype=x.dtype)


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda _, *operands: function(*operands)


def _divide(_: Any, x: Any, y: Any) -> Any:
    """True division; of integers, towards zero as in XLA."""
    if np.issubdtype(x.dtype, np.integer):
        return np.sign(x) * np.sign(y) * (abs(x) // np.maximum(abs(y), 1))
    return np.divide(x, y)


_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    **{
        name: _plain(function)
        for name, function in {
            "abs": np.abs,
            "add": np.add,
            "and": np.bitwise_and,
            "ceil": np.ceil,
            "convert_element_type": np.asarray,
            "copy": np.asarray,
            "cos": np.cos,
            "eq": np.equal,
            "exp": np.exp,
            "exp2": np.exp2,
            "floor": np.floor,
            "ge": np.greater_equal,
            "gt": np.greater,
            "le": np.less_equal,
            "log": np.log,
            "lt": np.less,
            "max": np.maximum,
            "min": np.minimum,
            "mul": np.multiply,
            "ne": np.not_equal,
            "neg": np.negative,
            "not": np.invert,
            "or": np.bitwise_or,
            "pow": np.power,
            "rsqrt": lambda x: 1 / np.sqrt(x),
            "sign": np.sign,
            "sin": np.sin,
            "sqrt": np.sqrt,
            "square": np.square,
            "stop_gradient": np.asarray,
            "sub": np.subtract,
            "tanh": np.tanh,
            "xor": np.bitwise_xor,
        }.items()
    },
    "clamp": _clamp,
    "div": _divide,
    "integer_pow": _power,
    "select_n": _select,
}
"""In NumPy: to compile the same for each new shape would take seconds."""

_SHAPES: dict[str, Callable[..., np.ndarray | None]] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": _concatenate,
    "iota": _iota,
    "reshape": _whole(lambda op, x: x.reshape(op.results[0].shape)),
    "slice": _slice,
    "squeeze": _whole(lambda op, x: x.reshape(op.results[0].shape)),
    "transpose": lambda op, x: x.transpose(op.params["permutation"]),
}
