"""An upper bound of the operator norm of a convolution on images.

In the space-to-depth form (`modular._bounds._convolution_norm`) a convolution has a
*symbol*: at frequencies θ the matrix `A(θ) = Σ_t K_t e^{i t·θ}`. On the infinite grid
its operator norm, Euclidean to Euclidean, is the supremum of `‖A(θ)‖₂`. A convolution
of an image that is padded with zeros is a part of that operator, and of the one on
any ring that is long enough, so the symbol bounds it too, whatever the boundary.

The supremum is bounded by samples, axis by axis. Where the ring is short, its own
frequencies are all there are. Else `n > p − 1` even samples are taken along an axis of
degree p − 1, and the largest is divided by `cos(π(p − 1)/(2n))`. For this, let the
supremum be 1, attained at θ* along unit vectors u and v. The function
`Re(uᴴA(θ)v e^{-i(p − 1)(θ − θ*)/2})`, up to a phase, is a real trigonometric polynomial
of degree m = (p − 1)/2 and at most 1. By the inequality of Bernstein and Szegő,
T'² + m²T² ≤ m²; so T(θ) ≥ cos(m(θ − θ*)) near θ*, and some sample is within π/n of it.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray

from manifold_optax.linalg import spectral_norm_bound
from manifold_optax.linalg._reductions import matmul, near_one, nonzero, symmetric
from manifold_optax.linalg._scaling import widen
from manifold_optax.modular._bounds._convolution_norm import (
    ConvolutionAxis,
    ConvolutionNorm,
)

_SAMPLES = (12, 8, 6, 4)
"""Samples per degree: in two dimensions the bound is at most 1.7 %, 4 %, 7 % and 17 %
high for it."""

_CHEAP, _DEAR = 2**26, 2**32
"""Multiplications for the Gram matrices of all samples: above the first number fewer
samples are taken, above the second none. The matrix of a whole image is formed up to
the first."""

_ENTRIES = 2**23
"""Entries of the symbols that are held at once."""


def convolution_norm_bound(
    kernel: Float[Array, "..."], norm: ConvolutionNorm, *, doublings: int = 3
) -> Float[Array, ""]:
    """A number that the operator norm of a convolution does not exceed.

    The norms are Euclidean over the space and the channels of one image. The bound is
    the smaller of two. The one is the largest symbol; for a small image, of which the
    convolution is a small matrix, the norm of that. The other is the norm of the
    unfolded kernel times the root of the number of windows that a position lies in.

    Args:
        kernel: real floating, of shape `norm.shape`; may be traced.
        norm: the convolution: strides, dilations, groups, layout, image and padding.
        doublings: number of squarings behind the norm of each symbol.

    Returns:
        A scalar, at least float32. The rounding of every step is allowed for.

    Raises:
        ValueError: if `kernel` has another shape than the convolution.

    Cost: for `f` samples of symbols of which the smaller side has length k and the
    larger one m, about `6·f·(m·k² + doublings·k³)` FLOPs (a 3 × 3 kernel of 64
    channels on 32 × 32 positions: f = 144, 0.9 GFLOP). For a matrix of sides m and k
    about `2·m·k² + 10·k³`, at most 0.8 GFLOP.

    Source: L. Pfister, Y. Bresler, "Bounding multivariate trigonometric polynomials
    with applications to filter bank design" (arXiv:1802.09588), for bounds from
    samples; H. Sedghi, V. Gupta, P. Long, "The singular values of convolutional
    layers" (arXiv:1805.10408), for the symbol on a ring; B. Delattre, Q. Barthélemy,
    A. Allauzen, "Spectral norm of convolutional layers with circular and zero
    paddings" (arXiv:2402.00240), for squared Gram matrices of it.
    """
    if tuple(kernel.shape) != norm.shape:
        raise ValueError(
            f"The kernel has shape {tuple(kernel.shape)}, but the convolution one of "
            f"shape {norm.shape}; pass the kernel that the norm was made for."
        )
    if 0 in norm.shape:
        return jnp.zeros((), jnp.promote_types(kernel.dtype, jnp.float32))
    return _bounded(kernel, norm, doublings)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _bounded(
    kernel: Float[Array, "..."], norm: ConvolutionNorm, doublings: int
) -> Float[Array, ""]:
    taps = by_taps(kernel, norm)
    windows = taps.transpose(1, 2, 0, 3).reshape(*taps.shape[1:3], -1)
    unfolded = jnp.max(spectral_norm_bound(windows)) * math.sqrt(norm.overlap)
    positions = [math.prod(axis.results for axis in norm.axes), math.prod(norm.image)]
    sides = [n * m for n, m in zip(positions, taps.shape[2:], strict=True)]
    if taps.shape[1] * math.prod(sides) * min(sides) <= _CHEAP:
        whole = matrix_norm(taps, norm)
    else:
        whole = largest_symbol(taps, norm, doublings)
    return jnp.minimum(whole, unfolded * _ONCE)


_ONCE = 1 + 1e-6
"""Covers the rounding of one or two products of scalars in float32."""


def by_taps(kernel: Array, norm: ConvolutionNorm) -> Array:
    """The kernel as `[taps, groups, out, in]`, out and in of one group."""
    out, inner, *space = norm.spec
    moved = widen(kernel).transpose(*space, out, inner)
    outputs, inputs = moved.shape[-2:]
    return moved.reshape(-1, norm.groups, outputs // norm.groups, inputs)


def matrix_norm(taps: Array, norm: ConvolutionNorm) -> Array:
    """A bound of the norm of the matrix that the convolution of a small image is.

    An entry of the image and one of the result meet in one tap at most, so that the
    entries of the matrix are those of the kernel.
    """
    number = np.zeros((1, 1), np.int64)
    for axis in norm.axes:
        meeting = axis.meeting
        both = number[:, None, :, None] * axis.size + meeting[:, None, :]
        missing = (number < 0)[:, None, :, None] | (meeting < 0)[:, None, :]
        both = np.where(missing, -1, both)
        number = both.reshape(len(number) * len(meeting), -1)
    if 0 in number.shape:
        return jnp.zeros((), taps.dtype)
    with_zero = jnp.concatenate([taps, jnp.zeros_like(taps[:1])])
    matrix = with_zero[number].transpose(2, 0, 3, 1, 4)
    groups, results, outputs, entries, inputs = matrix.shape
    matrix = matrix.reshape(groups, results * outputs, entries * inputs)
    return jnp.max(spectral_norm_bound(matrix))


def largest_symbol(taps: Array, norm: ConvolutionNorm, doublings: int = 3) -> Array:
    """A bound of the norm of all symbols."""
    groups, outputs, inputs = taps.shape[1:]
    counts, loss = _samples(norm.axes, (groups, outputs, inputs))
    if not counts:
        return jnp.full((), jnp.inf, taps.dtype)
    waves = _waves(norm.axes, counts)
    results, entries = waves.shape[2:4]
    matrix, scale = near_one(taps.reshape(len(taps), -1))

    def of_sample(wave: Array) -> Array:
        """The largest of all groups, for waves `[real or imaginary, …, taps]`."""
        parts = matmul(wave, matrix).reshape(
            2, results, entries, groups, outputs, inputs
        )
        parts = parts.transpose(0, 3, 4, 1, 5, 2)
        parts = parts.reshape(2, groups, outputs * results, inputs * entries)
        return jnp.max(_complex_norm_bound(parts[0], parts[1], doublings))

    dtype = matrix.dtype
    samples = jnp.asarray(waves, dtype)
    chunk = max(1, _ENTRIES // (2 * results * entries * matrix.shape[-1]))
    if chunk >= len(waves):
        largest = jax.vmap(of_sample)(samples)
    else:
        largest = jax.lax.map(of_sample, samples, batch_size=chunk)
    # What the rounding of all entries of a symbol adds to its norm: each is a sum of
    # products with numbers of modulus 1, and each tap stands in `results` entries.
    count = len(taps)
    rounding = (count + 2) * math.sqrt(2 * count * results)
    rounding *= float(jnp.finfo(dtype).eps)
    bound = jnp.max(largest) + rounding * jnp.linalg.norm(matrix)
    return scale[..., 0, 0] * bound * (loss * _ONCE)


def _waves(
    axes: Sequence[ConvolutionAxis], counts: Sequence[int]
) -> NDArray[np.float64]:
    """What taps are multiplied by: `[sample, real or imaginary, result, entry, tap]`.

    The symbols at θ and −θ are conjugate; so half of one axis suffices.
    """
    waves = np.ones((1, 1, 1, 1), complex)  # [sample, result, entry, tap]
    halved = max((k for k, n in enumerate(counts) if n > 1), default=-1)
    for k, (axis, count) in enumerate(zip(axes, counts, strict=True)):
        angles = 2 * np.pi / count * np.arange(count // 2 + 1 if k == halved else count)
        wave = np.zeros((len(angles), *axis.block, axis.size), complex)
        for tap in axis.taps:
            wave[:, tap.result, tap.entry, tap.number] = np.exp(1j * tap.block * angles)
        waves = np.einsum("fqrk,gstl->fgqsrtkl", waves, wave)
        pairs = zip(waves.shape[::2], waves.shape[1::2], strict=True)
        waves = waves.reshape([a * b for a, b in pairs])
    return np.stack([np.real(waves), np.imag(waves)], 1)


def _samples(
    axes: Sequence[ConvolutionAxis], channels: tuple[int, int, int]
) -> tuple[list[int], float]:
    """How many samples to take along each axis.

    Args:
        axes: the spatial axes.
        channels: groups, outputs and inputs of each.

    Returns:
        The numbers of samples, none where all would be too dear; and the factor by
        which the supremum may exceed the largest sample.
    """
    groups, outputs, inputs = channels
    outputs *= math.prod(axis.block[0] for axis in axes)
    inputs *= math.prod(axis.block[1] for axis in axes)
    once = groups * outputs * inputs * min(outputs, inputs)
    counts: list[int] = []
    for per_degree in _SAMPLES:
        counts = [min(axis.period, max(1, per_degree * axis.degree)) for axis in axes]
        if math.prod(counts) * once <= _CHEAP:
            break
    if math.prod(counts) * once > _DEAR:
        return [], math.inf
    loss = 1.0
    for axis, count in zip(axes, counts, strict=True):
        if count < axis.period:
            loss /= math.cos(math.pi * axis.degree / (2 * count))
    return counts, loss


def _complex_norm_bound(
    real: Float[Array, "*batch m n"], imag: Float[Array, "*batch m n"], doublings: int
) -> Float[Array, "*batch"]:
    """A strict bound of the spectral norm of `real + i imag`, near 1 in size.

    As `linalg.spectral_norm_bound`, by squares of the Gram matrix, which stays
    Hermitian: `S + iT` with S symmetric and T skew. The eigenvalues λ of the last one
    are bounded by their mean and variance, `λ ≤ mean + √(k − 1)·deviation`: sharp both
    for equal ones and for a single one.

    Source: H. Wolkowicz, G. Styan, "Bounds for eigenvalues using traces" (Linear
    Algebra and its Applications 29, 1980), theorem 2.1.
    """
    if real.shape[-2] > real.shape[-1]:
        real, imag = real.mT, -imag.mT
    size, length = real.shape[-2:]
    eps = float(jnp.finfo(real.dtype).eps)
    both = jnp.concatenate([real, imag], -1)
    gram, cross = symmetric(matmul(both, both.mT)), matmul(imag, real.mT)
    skew = cross - cross.mT
    trace = jnp.trace(gram, axis1=-2, axis2=-1)
    norms = [_frobenius(gram, skew)]
    for _ in range(doublings):
        divisor = nonzero(norms[-1])[..., None, None]
        gram, skew = gram / divisor, skew / divisor
        both = jnp.concatenate([gram, skew], -1)
        cross = matmul(gram, skew)
        gram, skew = symmetric(matmul(both, both.mT)), cross - cross.mT
        norms.append(_frobenius(gram, skew))
    # Sums of the squares of all entries, and of the diagonal.
    slack = _rounding(2 * size**2, eps) + 32 * eps
    mean = jnp.trace(gram, axis1=-2, axis2=-1) / size
    spread = jnp.maximum(norms[-1] ** 2 - size * mean**2, 0) + slack * norms[-1] ** 2
    top = mean * (1 + slack) + jnp.sqrt((size - 1) / size * spread)
    # norms[j] times a bound of the normalised matrix j bounds the norm of matrix j.
    bound = jnp.minimum(top, norms[-1] * (1 + slack))
    for norm in reversed(norms[:-1]):
        bound = norm * jnp.sqrt(bound + _rounding(2 * size, eps)) * (1 + slack)
    return jnp.sqrt(bound + _rounding(2 * length, eps) * trace) * (1 + slack)


def _frobenius(real: Array, imag: Array) -> Array:
    """The Frobenius norm of `real + i imag`."""
    return jnp.sqrt(jnp.sum(real**2 + imag**2, (-2, -1)))


def _rounding(length: int, eps: float) -> float:
    """Error of a Hermitian product of sums of `length` terms, relative to `‖H‖_F²`.

    The real and the skew part each have an error of `2·√length·eps` (as in
    `linalg.spectral_norm_bound`) times at most `‖H‖_F²`; together √2 times that.
    """
    return 4 * math.sqrt(length) * eps
