"""Bounds of the norm of a convolution, against the matrix that it is."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from manifold_optax.modular._bounds._convolution_norm import (
    ConvolutionAxis,
    ConvolutionNorm,
)
from manifold_optax.modular._certificates._convolution_norm import (
    by_taps,
    convolution_norm_bound,
    largest_symbol,
)

_LAYOUTS = {
    1: ("NWC", "WIO", "NWC"),
    2: ("NHWC", "HWIO", "NHWC"),
    3: ("NDHWC", "DHWIO", "NDHWC"),
}

_bound = jax.jit(convolution_norm_bound, static_argnames=("norm", "doublings"))

_symbol = jax.jit(
    lambda kernel, norm: largest_symbol(by_taps(kernel, norm), norm),
    static_argnames=("norm",),
)

# The norm of the matrix is that of float64, whose rounding is far below.
_ROUNDING = 1e-9


def _norm_of(kernel, image, *, strides=1, padding=(1, 1), lhs=1, rhs=1, groups=1):
    """The convolution of kernels `[*space, in, out]` that is alike along each axis."""
    rank = kernel.ndim - 2
    return ConvolutionNorm(
        kernel.shape, (strides,) * rank, (lhs,) * rank, (rhs,) * rank, groups,
        (rank + 1, rank, *range(rank)), tuple(image), (tuple(padding),) * rank,
    )  # fmt: skip


def _applied(kernel, norm: ConvolutionNorm, images):
    return lax.conv_general_dilated(
        images, kernel, norm.strides, norm.padding, norm.lhs_dilation,
        norm.rhs_dilation, _LAYOUTS[len(norm.strides)],
        feature_group_count=norm.groups, precision=lax.Precision.HIGHEST,
    )  # fmt: skip


def _exact(kernel, norm: ConvolutionNorm) -> float:
    """The norm of the matrix of the convolution, from the images of unit arrays."""
    channels = kernel.shape[-2] * norm.groups
    count = math.prod(norm.image) * channels
    units = np.eye(count).reshape(count, *norm.image, channels)
    matrix = np.asarray(_applied(kernel, norm, jnp.asarray(units)))
    return float(np.linalg.norm(matrix.reshape(count, -1), 2))


def _kernel(*shape: int, seed: int = 0, even: bool = False):
    array = np.random.default_rng(seed).standard_normal(shape)
    return jnp.asarray(np.abs(array) if even else array)


def _ratio(kernel, norm: ConvolutionNorm) -> float:
    """The bound by the symbol over the norm of the matrix.

    The bound that is offered is checked on the way: for a small image by its matrix.
    """
    exact = _exact(kernel, norm)
    # Five squarings lose 4 % at 128 equal singular values, and rounding below 1 %.
    assert 1 - _ROUNDING <= float(_bound(kernel, norm=norm)) / exact < 1.06
    return float(_symbol(kernel, norm=norm)) / exact


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_the_bound_of_a_line_is_near():
    """A ring that is a little longer than the image has nearly its norm."""
    kernel = _kernel(3, 2, 3)
    ratio = _ratio(kernel, _norm_of(kernel, (24,)))
    # The square of an image of 24 positions differs from a ring's by 1 / 24² or so, and
    # three squarings lose 4 % at most.
    assert 1 - _ROUNDING <= ratio < 1.05


_SETTINGS = {
    "valid": {"padding": (0, 0)},
    "stride": {"strides": 2},
    "stride, unaligned": {"strides": 3, "padding": (2, 0)},
    "dilated": {"rhs": 2, "padding": (2, 2)},
    "dilated stride": {"rhs": 2, "strides": 2, "padding": (1, 3)},
    "dilated stride apart": {"rhs": 2, "strides": 3},
    "transposed": {"lhs": 2, "padding": (2, 2)},
    "transposed stride": {"lhs": 3, "strides": 2, "padding": (1, 2)},
    "between": {"lhs": 2, "strides": 2},
    "all": {"lhs": 2, "strides": 3, "rhs": 2, "padding": (3, 1)},
    "far out": {"padding": (7, 6), "strides": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("setting", _SETTINGS)
@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.usefixtures("x64")
def test_the_bound_holds_for_every_setting(setting, rank, size):
    kernel = _kernel(*[size] * rank, 2, 2, seed=size)
    norm = _norm_of(kernel, [9, 7][:rank], **_SETTINGS[setting])
    # In a small image a convolution may do much less than in a large one.
    assert 1 - _ROUNDING <= _ratio(kernel, norm) < 2


@pytest.mark.slow
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("even", [False, True])
@pytest.mark.usefixtures("x64")
def test_the_bound_is_near_for_a_large_image(strides, even):
    """Nonnegative kernels attain it at frequency 0, others anywhere."""
    kernel = _kernel(3, 3, 2, 2, even=even)
    norm = _norm_of(kernel, (16, 16), strides=strides)
    # Samples lose 1.7 %, squarings 4 %, and the boundary of 16 positions 2 %.
    assert 1 - _ROUNDING <= _ratio(kernel, norm) < 1.1


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_three_axes_and_groups():
    kernel = _kernel(2, 2, 2, 1, 4)
    norm = _norm_of(kernel, (4, 4, 4), groups=2)
    # Of 4 positions the boundary is a large part.
    assert 1 - _ROUNDING <= _ratio(kernel, norm) < 1.3


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 6])
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.usefixtures("x64")
def test_no_frequency_between_samples_is_missed(size, strides):
    """For a line that is long, against many more samples of the symbol."""
    kernels = np.random.default_rng(size).standard_normal((300, size, 1, 1))
    norm = _norm_of(kernels[0], (4096,), strides=strides)
    found = jax.vmap(lambda kernel: _bound(kernel, norm=norm))(jnp.asarray(kernels))
    parts = [np.fft.fft(kernels[:, k::strides, 0, 0], 4096) for k in range(strides)]
    supremum = np.sqrt(np.sum([np.abs(part) ** 2 for part in parts], 0)).max(1)
    ratio = np.asarray(found) / supremum
    assert ratio.min() >= 1 - _ROUNDING
    # What 12 samples per degree may miss: 1 / cos(π / 24) is 1.0087.
    assert ratio.max() <= 1.01


@pytest.mark.slow
def test_float32_and_other_layouts_inside_jit():
    """The kernel may be traced, and its axes in any order."""
    kernel = jnp.asarray(_kernel(3, 2, 4), jnp.float32)
    norm = _norm_of(kernel, (10,))
    turned = norm._replace(shape=(4, 2, 3), spec=(0, 1, 2))
    found = _bound(kernel.T, norm=turned)
    assert found.dtype == jnp.float32
    # The allowance for rounding is below 1 % at this size, squarings lose 5 % at most.
    assert 1 <= float(found) / _exact(np.asarray(kernel), norm) < 1.06


@pytest.mark.slow
def test_the_bound_scales_and_is_zero_for_zero():
    kernel = jnp.asarray(_kernel(3, 3, 2, 2), jnp.float32)
    norm = _norm_of(kernel, (6, 6))
    once = float(_bound(kernel, norm=norm))
    for scale in (1e-20, 1e20):
        found = float(_bound(kernel * jnp.float32(scale), norm=norm))
        # Rounding of the scaled kernel in float32.
        assert found == pytest.approx(scale * once, rel=1e-5)
    assert float(_bound(jnp.zeros_like(kernel), norm=norm)) == 0


def test_a_kernel_of_another_shape_is_refused():
    norm = _norm_of(np.zeros((3, 2, 2)), (8,))
    with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        convolution_norm_bound(jnp.zeros((2, 2)), norm)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("dilations", [(1, 1), (2, 1), (1, 2), (3, 2), (2, 3)])
def test_windows_of_ones(size, stride, dilations):
    """The norm of sums over windows, and how many windows an entry lies in."""
    lhs, rhs = dilations
    axis = ConvolutionAxis(size, stride, lhs, rhs, 12, (1, 2))
    count = (lhs * 11 + 1 + 3 - rhs * (size - 1) - 1) // stride + 1
    matrix = np.zeros((count, 12))
    for result in range(count):
        for index in range(size):
            entry, between = divmod(stride * result + rhs * index - 1, lhs)
            if not between and 0 <= entry < 12:
                matrix[result, entry] += 1
    norm = np.linalg.norm(matrix, 2)
    assert norm <= axis.of_ones * (1 + _ROUNDING)
    # A line of 12 entries, of which the outer ones are in fewer windows.
    assert axis.of_ones <= 1.2 * norm
    assert matrix.sum(0).max() <= axis.overlap
