"""How the axes of a value come from the axes of another one, its root."""

from manifold_optax.modular._computation._graph import Operation, Value

Axis = tuple[tuple[int | None, int], ...]
"""An axis as a row-major product of axes of the root and their sizes; `None` stands
for an axis along which the value is constant. Axes of size 1 are the empty product."""

Layout = tuple[Axis, ...]
"""One `Axis` for each axis of a value."""

STRUCTURE = frozenset({"broadcast_in_dim", "reshape", "squeeze", "transpose"})
"""Operations that place entries and do not change them."""

_COPIES = frozenset(
    {"convert_element_type", "copy", "copy_p", "reduce_precision", "stop_gradient"}
    | {"optimization_barrier", "sharding_constraint"}
)
"""Operations whose results are their operands, up to rounding and placement."""


def bare(value: Value) -> Value:
    """What a value was before casts and copies that keep its meaning."""
    while (operation := value.operation) is not None:
        if operation.name in _COPIES:
            before = operation.operands[value.index]
        elif operation.name in STRUCTURE and operation.name != "transpose":
            before = operation.operands[0]
        else:
            return value
        if before.shape != value.shape or before.is_float != value.is_float:
            return value
        value = before
    return value


def identity(shape: tuple[int, ...]) -> Layout:
    """The layout of the root itself."""
    return tuple(((i, size),) if size > 1 else () for i, size in enumerate(shape))


def constant_layout(shape: tuple[int, ...]) -> Layout:
    """The layout of a number in every entry."""
    return tuple(((None, size),) if size > 1 else () for size in shape)


def moved(layout: Layout, operation: Operation) -> Layout | None:
    """The layout after an operation of `STRUCTURE`; `None` if it has none."""
    shape = operation.results[0].shape
    if not layout and operation.name == "broadcast_in_dim":
        return constant_layout(shape)
    if operation.name == "broadcast_in_dim":
        axes = list(constant_layout(shape))
        dimensions = operation.params["broadcast_dimensions"]
        for axis, size, place in zip(
            layout, operation.operands[0].shape, dimensions, strict=True
        ):
            if size == shape[place]:
                axes[place] = axis
        return tuple(axes)
    if operation.name == "transpose":
        return tuple(layout[i] for i in operation.params["permutation"])
    return regrouped(layout, shape)


def regrouped(layout: Layout, shape: tuple[int, ...]) -> Layout | None:
    """The layout after a reshape; `None` if an axis of the root would be split."""
    factors = [factor for axis in layout for factor in axis]
    axes = []
    for size in shape:
        axis: list[tuple[int | None, int]] = []
        while size > 1:
            if not factors:
                return None
            place, length = factors.pop(0)
            if place is None and length > size and length % size == 0:
                factors.insert(0, (None, length // size))
                length = size
            if size % length:
                return None
            axis.append((place, length))
            size //= length
        axes.append(tuple(axis))
    return None if factors else tuple(axes)


def merged(a: Layout, b: Layout) -> Layout | None:
    """The layout of a sum of two values; `None` if their axes do not agree."""
    if len(a) != len(b):
        longer, shorter = (a, b) if len(a) > len(b) else (b, a)
        return longer if not shorter else None
    axes = [_merged_axis(x, y) for x, y in zip(a, b, strict=True)]
    found = tuple(axis for axis in axes if axis is not None)
    return found if len(found) == len(axes) else None


def _merged_axis(a: Axis, b: Axis) -> Axis | None:
    left, right = list(a), list(b)
    axis: list[tuple[int | None, int]] = []
    while left and right:
        (i, m), (j, n) = left.pop(0), right.pop(0)
        if m > n and i is None and m % n == 0:
            left.insert(0, (None, m // n))
            m = n
        elif n > m and j is None and n % m == 0:
            right.insert(0, (None, n // m))
            n = m
        if m != n or (i is not None and j is not None and i != j):
            return None
        axis.append((j if i is None else i, m))
    return None if left or right else tuple(axis)


def places(axis: Axis) -> frozenset[int]:
    """The axes of the root in an axis."""
    return frozenset(place for place, _ in axis if place is not None)
