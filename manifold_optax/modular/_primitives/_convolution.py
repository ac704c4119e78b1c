"""The rule of convolutions.

Each position of the result is one linear map of a window: `taps · in → out`. A window
has at most √taps times the norm of its largest position. So the norm of the unfolded
kernel bounds a convolution in the largest norm of a position, without regard to stride,
padding and dilation; groups are blocks of that map.

In the Euclidean norm over all positions of an image it has an operator norm of its own,
`ConvolutionNorm`, which is linear in the size of the kernel.
"""

import math
from collections.abc import Sequence

from manifold_optax.modular._bounds._convolution_norm import (
    ConvolutionNorm,
    unfolded_norm,
)
from manifold_optax.modular._bounds._mixed_norm import (
    Factors,
    joined,
    MixedNorm,
    ratio,
    remarked,
)
from manifold_optax.modular._bounds._number import reference, Size, smallest
from manifold_optax.modular._bounds._sizes import (
    Move,
    Rule,
    RULES,
    Sizes,
    times,
    unfollowed,
)
from manifold_optax.modular._computation._graph import Operation

_IMAGE, _KERNEL = 0, 1

# The Euclidean norm of an image says more than the largest of a position does, if it is
# smaller by more than rounding.
_SMALLER = 1 - 1e-9


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


def _over_space(norm: MixedNorm, spec: Sequence[int], images: Factors) -> MixedNorm:
    """The Euclidean norm over positions, and the norm `images` over the images."""
    axes = list(norm.axes)
    axes[spec[0]] = images
    for k in spec[2:]:
        axes[k] = joined([(norm.shape[k], "o")])
    return MixedNorm(tuple(axes))


def _is_over_space(norm: MixedNorm, spec: Sequence[int]) -> bool:
    """Whether a norm adds the squares of several positions."""
    return any(mark == "o" for k in spec[2:] for _, mark in norm.axes[k])


def _of_images(norm: MixedNorm, spec: Sequence[int]) -> Factors:
    """How a norm goes over images: each has its own result, of the same kind."""
    return remarked(norm, "is", "o").axes[spec[0]]


def _kernel(operation: Operation) -> MixedNorm:
    """The operator norm of the unfolded kernel, largest over the groups."""
    shape = operation.operands[_KERNEL].shape
    spec = operation.params["dimension_numbers"].rhs_spec
    return unfolded_norm(shape, spec, _groups(operation))


def convolution_norm(operation: Operation) -> ConvolutionNorm:
    """The norm of the kernel as an operator on whole images."""
    image, kernel = operation.operands
    params, numbers = operation.params, operation.params["dimension_numbers"]
    return ConvolutionNorm(
        kernel.shape,
        tuple(params["window_strides"]),
        tuple(params["lhs_dilation"]),
        tuple(params["rhs_dilation"]),
        _groups(operation),
        tuple(numbers.rhs_spec),
        tuple(image.shape[k] for k in numbers.lhs_spec[2:]),
        tuple((int(low), int(high)) for low, high in params["padding"]),
    )


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


def _size(operation: Operation, result: int, norm: MixedNorm, sizes: Sizes) -> Size:
    """‖K ∗ x‖ ≤ √taps · ‖K unfolded‖ · ‖x‖, of the largest position.

    And ‖K ∗ x‖ ≤ ‖K‖ · ‖x‖ over all positions of an image, with the operator norm ‖K‖.
    """
    del result
    image, kernel = operation.operands
    numbers = operation.params["dimension_numbers"]
    over_space = _is_over_space(norm, numbers.out_spec)
    bounds, whole = [], []
    for apart in (False, True):
        inner, outer = (
            _of_image(operation, apart=apart),
            _of_result(operation, apart=apart),
        )
        bounds.append(ratio(norm, outer) * sizes.entering(image, inner))
        if over_space:
            images = _of_images(norm, numbers.out_spec)
            outer = _over_space(outer, numbers.out_spec, images)
            inner = _over_space(inner, numbers.lhs_spec, images)
            whole.append(ratio(norm, outer) * sizes.entering(image, inner))
    weight = sizes.bound(kernel, _kernel(operation))
    found = _reach(operation) * weight * smallest(bounds)
    if not over_space:
        return found
    measured = sizes.measure(kernel, convolution_norm(operation))
    return smallest((found, times(measured, smallest(whole))))


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
        whole = _image_moves if position == _IMAGE else _kernel_moves
        ways += whole(operation, norm, sizes, apart=apart)
    return ways


def _image_moves(
    operation: Operation, norm: MixedNorm, sizes: Sizes, *, apart: bool
) -> Sequence[Sequence[Move]]:
    """‖K ∗ dx‖ ≤ ‖K‖ · ‖dx‖ over all positions of an image.

    For changes that are measured so: for others a position says as much.
    """
    numbers = operation.params["dimension_numbers"]
    if not _is_over_space(norm, numbers.lhs_spec):
        return []
    images = _of_images(norm, numbers.lhs_spec)
    inner = _over_space(_of_image(operation, apart=apart), numbers.lhs_spec, images)
    outer = _over_space(_of_result(operation, apart=apart), numbers.out_spec, images)
    measured = sizes.measure(operation.operands[_KERNEL], convolution_norm(operation))
    factor = times(ratio(inner, norm), measured)
    return [[Move(0, factor, outer, "norm of the convolution")]]


def _kernel_moves(
    operation: Operation, norm: MixedNorm, sizes: Sizes, *, apart: bool
) -> Sequence[Sequence[Move]]:
    """‖dK ∗ x‖ ≤ √overlap · ‖dK unfolded‖ · ‖x‖ over all positions of an image.

    A position lies in at most `overlap` windows, so all windows together have at most
    √overlap times the norm of the image. Where the image is known no better than by its
    largest position, this says nothing new.
    """
    image = operation.operands[_IMAGE]
    numbers = operation.params["dimension_numbers"]
    place = _of_image(operation, apart=apart)
    images = place.axes[numbers.lhs_spec[0]]
    inner = _over_space(place, numbers.lhs_spec, images)
    size = sizes.entering(image, inner)
    whole = ratio(inner, place) * sizes.entering(image, place)
    if not reference(size) < _SMALLER * reference(whole):
        return []
    outer = _over_space(_of_result(operation, apart=apart), numbers.out_spec, images)
    overlap = math.sqrt(convolution_norm(operation).overlap)
    factor = overlap * ratio(_kernel(operation), norm) * size
    return [[Move(0, factor, outer, "size of its input")]]


RULES["conv_general_dilated"] = Rule(_size, _moves, operators=True)
