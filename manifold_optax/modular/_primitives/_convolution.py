"""The rule of convolutions.

Each position of the result is one linear map of a window: `taps · in → out`. A window
has at most √taps times the norm of its largest position. So the norm of the unfolded
kernel bounds a convolution in the largest norm of a position, without regard to stride,
padding and dilation; groups are blocks of that map.
"""

import math
from collections.abc import Sequence

from manifold_optax.modular._bounds._mixed_norm import Factors, joined, MixedNorm, ratio
from manifold_optax.modular._bounds._sizes import Move, Rule, RULES, Sizes, unfollowed
from manifold_optax.modular._computation._graph import Operation

_IMAGE, _KERNEL = 0, 1


def _channels(size: int, groups: int, *, apart: bool) -> Factors:
    """Channels as one vector, or each group for itself."""
    if apart:
        return joined([(groups, "b"), (size // groups, "o")])
    return joined([(size, "o")])


def _image(shape: Sequence[int], axis: int, groups: int, *, apart: bool) -> MixedNorm:
    """The norm of the channels, largest over images and positions."""
    axes = [joined([(size, "b")]) for size in shape]
    axes[axis] = _channels(shape[axis], groups, apart=apart)
    return MixedNorm(tuple(axes))


def _kernel(operation: Operation) -> MixedNorm:
    """The operator norm of the unfolded kernel, largest over the groups."""
    shape = operation.operands[_KERNEL].shape
    out = operation.params["dimension_numbers"].rhs_spec[0]
    axes = [joined([(size, "i")]) for size in shape]
    axes[out] = _channels(shape[out], _groups(operation), apart=True)
    return MixedNorm(tuple(axes))


def _groups(operation: Operation) -> int:
    if operation.params["batch_group_count"] > 1:
        raise unfollowed(operation, "images of a batch in groups have no rule")
    return operation.params["feature_group_count"]


def _reach(operation: Operation) -> float:
    """√taps: the norm of a window of positions of norm 1."""
    spec = operation.params["dimension_numbers"].rhs_spec
    shape = operation.operands[_KERNEL].shape
    return math.sqrt(math.prod(shape[k] for k in spec[2:]))


def _of_image(operation: Operation, *, apart: bool) -> MixedNorm:
    axis = operation.params["dimension_numbers"].lhs_spec[1]
    shape = operation.operands[_IMAGE].shape
    return _image(shape, axis, _groups(operation), apart=apart)


def _of_result(operation: Operation, *, apart: bool) -> MixedNorm:
    axis = operation.params["dimension_numbers"].out_spec[1]
    shape = operation.results[0].shape
    return _image(shape, axis, _groups(operation), apart=apart)


def _size(operation: Operation, result: int, norm: MixedNorm, sizes: Sizes) -> float:
    del result
    image, kernel = operation.operands
    bounds = []
    for apart in (False, True):
        inner = _of_image(operation, apart=apart)
        outer = ratio(norm, _of_result(operation, apart=apart))
        bounds.append(outer * sizes.entering(image, inner))
    weight = sizes.bound(kernel, _kernel(operation))
    return _reach(operation) * weight * min(bounds)


def _moves(
    operation: Operation, position: int, norm: MixedNorm, sizes: Sizes
) -> Sequence[Sequence[Move]]:
    """The product rule: a change of one, times the norm of the other."""
    image, kernel = operation.operands
    ways = []
    for apart in (False, True):
        window = _of_image(operation, apart=apart)
        if position == _IMAGE:
            factor = ratio(window, norm) * sizes.bound(kernel, _kernel(operation))
            reason = "norm of the kernel"
        else:
            factor = ratio(_kernel(operation), norm) * sizes.entering(image, window)
            reason = "size of its input"
        outer = _of_result(operation, apart=apart)
        ways.append([Move(0, _reach(operation) * factor, outer, reason)])
    return ways


RULES["conv_general_dilated"] = Rule(_size, _moves, operators=True)
