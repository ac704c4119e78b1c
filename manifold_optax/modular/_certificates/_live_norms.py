"""Strict upper bounds of mixed norms of arrays, inside `jit`.

`constant_size` measures known arrays, in NumPy. The functions here bound the same norms
of arrays that may be traced. An allowance covers the rounding of float32, and operator
norms are strict bounds of spectral norms.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from manifold_optax.linalg import spectral_norm_bound
from manifold_optax.linalg._device import by_platform, on_cpu
from manifold_optax.linalg._inputs import require_floating_array
from manifold_optax.linalg._reductions import divisor
from manifold_optax.linalg._scaling import widen
from manifold_optax.modular._bounds._convolution_norm import ConvolutionNorm
from manifold_optax.modular._bounds._mixed_norm import MixedNorm
from manifold_optax.modular._certificates._convolution_norm import (
    convolution_norm_bound,
)

_DOUBLINGS = 4
"""Squarings in a spectral norm. With 3, 4 and 5 of them the bounds of Gaussian matrices
of 768 × 768 are 2.1, 0.5 and 0.1 % high, of 768 × 3072 3.1, 0.9 and 0.4 %, and take
3.6, 4.5 and 5.4 GFLOP, 6.3, 7.2 and 8.2. (Printed by `benchmarks/live_norms.py`; on a
matrix that is orthogonal up to noise of norm 0.1: 3.5, 1.4 and 0.7 %.)"""


def live_norm(x: Array, norm: MixedNorm) -> Float[Array, ""]:
    """An upper bound of a mixed norm of an array, whose entries may be traced.

    The entries are summed over the axes `"s"`, in modulus. What is left are matrices
    from the axes `"i"` to the axes `"o"`; the result is the largest spectral norm of
    these, and the Euclidean norm where there is no `"i"` or no `"o"`.

    Args:
        x: of the shape that the norm measures, real floating. It is computed in float32
            (in float64 if it is that).
        norm: what to bound.

    Returns:
        A float32 scalar: 0 if `x` is zero or empty, infinity if an entry is not finite
        or the bound overflows. Euclidean norms and sums of n terms are at most
        4·√n·eps too large, and as much as if every entry were larger by the smallest
        normal number, for subnormal ones.

    Raises:
        TypeError: if `x` is not real floating.
        ValueError: if the norm measures arrays of another shape.
    """
    if norm.shape != x.shape:
        raise ValueError(
            f"The norm {norm} measures arrays of shape {norm.shape}, got one of shape "
            f"{x.shape}; make the norm from the shape of the array."
        )
    require_floating_array(x)
    if x.size == 0:
        return jnp.zeros((), jnp.float32)
    return _bounded(x, norm)


@functools.partial(jax.jit, static_argnames="norm")
def _bounded(x: Array, norm: MixedNorm) -> Float[Array, ""]:
    values = _widened(x)
    largest = _largest(values)
    bound = largest
    if norm.has("ois"):
        bound = _measured(values, largest, norm)
    # Whether arithmetic sees subnormal numbers or zeros depends on the machine: the
    # norm of an array whose entries are as large as those left out can be.
    tiny = float(jnp.finfo(values.dtype).tiny)
    left_out = jnp.where(_is_nonzero(values, largest >= tiny), norm.of_ones * tiny, 0)
    return _float32(bound + left_out.astype(values.dtype))


def is_finite(x: Array) -> Bool[Array, ""]:
    """Whether all entries are finite, in the pass over them that a bound takes too."""
    return jnp.isfinite(_largest(_widened(x)))


def live_norms(
    queries: Sequence[tuple[Array, MixedNorm | ConvolutionNorm]],
) -> list[Float[Array, ""]]:
    """`live_norm` of several arrays, those of one shape, dtype and norm in one call.

    So a network of twelve equal layers compiles the products of one.

    Args:
        queries: pairs of an array and a norm of it.

    Returns:
        A bound for each pair, in their order.
    """
    groups: dict[tuple[tuple[int, ...], np.dtype, Any], list[int]] = {}
    for index, (x, norm) in enumerate(queries):
        groups.setdefault((x.shape, np.dtype(x.dtype), norm), []).append(index)
    found: dict[int, Array] = {}
    for (_, _, norm), indices in groups.items():
        arrays = [queries[index][0] for index in indices]
        found.update(zip(indices, _of_each(arrays, norm), strict=True))
    return [found[index] for index in range(len(queries))]


def _of_each(
    arrays: Sequence[Array], norm: MixedNorm | ConvolutionNorm
) -> Sequence[Array]:
    if isinstance(norm, ConvolutionNorm):
        return [convolution_norm_bound(x, norm) for x in arrays]
    if len(arrays) == 1:
        return [live_norm(arrays[0], norm)]

    return list(_of_equal(list(arrays), norm))


# Compiled as one program also outside `jit`, where each call of `map` compiles anew.
@functools.partial(jax.jit, static_argnames="norm")
def _of_equal(arrays: list[Array], norm: MixedNorm) -> Float[Array, " arrays"]:
    """The bounds of arrays of one shape, by one compiled body."""
    stack = jnp.stack(arrays)

    def bound(x: Array) -> Array:
        return live_norm(x, norm)

    def of_each(stack: Array) -> Array:
        # A CPU takes a batched product 12 % longer (six of 768 × 768) than one after
        # the other.
        return jax.lax.map(bound, stack) if on_cpu() else jax.vmap(bound)(stack)

    return by_platform(of_each, stack)


def _measured(values: Array, largest: Array, norm: MixedNorm) -> Array:
    """The bound of a norm that has sums, lengths or operators."""
    if norm.count("i") > 1 and norm.count("o") > 1:
        # It divides each matrix by its largest entry itself.
        matrices = _summed(values, norm)
        return jnp.max(spectral_norm_bound(matrices, doublings=_DOUBLINGS))
    scale = divisor(largest)
    blocks = _summed(values / scale, norm)
    squares = jnp.sum(blocks * blocks, axis=(1, 2))
    lengths = jnp.sqrt(squares) * _allowance(norm.count("io"), values.dtype)
    return scale * jnp.max(lengths)


def _summed(values: Array, norm: MixedNorm) -> Float[Array, "maxima rows columns"]:
    """The matrices that are left after the sums."""
    blocks = _laid_out(values, norm)
    if not norm.has("s"):
        return blocks[..., 0]
    allowance = _allowance(norm.count("s"), values.dtype)
    return jnp.sum(jnp.abs(blocks), axis=3) * allowance


def _laid_out(
    values: Array, norm: MixedNorm
) -> Float[Array, "maxima rows columns sums"]:
    """The factors in the order: maxima, inputs and outputs, sums.

    Inputs and outputs stay in their order, as a matrix has the norm of its transpose:
    to transpose the table of a vocabulary took longer than its Gram matrix.
    """
    marks = [mark for _, mark in norm.factors]
    between = dict.fromkeys([*(mark for mark in marks if mark in "io"), "i", "o"])
    groups = ["b", *between, "s"]
    order = [k for mark in groups for k, have in enumerate(marks) if have == mark]
    split = jnp.reshape(values, [size for size, _ in norm.factors])
    return jnp.transpose(split, order).reshape([norm.count(mark) for mark in groups])


def _widened(x: Array) -> Array:
    # `promote_types` refuses floats of 8 bits.
    return widen(x.astype(jnp.float32) if x.dtype.itemsize < 4 else x)


def _largest(values: Array) -> Array:
    return jnp.max(jnp.abs(values))


def _is_nonzero(values: Array, certainly: Array) -> Bool[Array, ""]:
    """Whether some bits are set: the other pass is taken only if it has to be."""
    bits = jax.lax.bitcast_convert_type(values, f"uint{8 * values.dtype.itemsize}")
    sign = np.asarray(-0.0, values.dtype).view(bits.dtype)
    return jax.lax.cond(certainly, lambda: True, lambda: jnp.any(bits & ~sign))


def _allowance(terms: int, dtype: np.dtype) -> float:
    """By how much a sum of positive terms, computed in a dtype, is raised.

    Four times √n half rounding units, as in `spectral_norm_bound`, and a few for the
    division before and the products after. Source: N. Higham, T. Mary, "A new approach
    to probabilistic rounding error analysis" (SIAM J. Sci. Comput. 41, 2019), theorem
    3.1. XLA adds in blocks: 2.4 million equal terms came out 1e-7 off, with 4e-4
    allowed.
    """
    return 1 + (2 * math.sqrt(terms) + 8) * float(jnp.finfo(dtype).eps)


def _float32(bound: Array) -> Float[Array, ""]:
    """The bound in float32, not smaller; infinity in place of NaN."""
    limits = jnp.finfo(jnp.float32)
    raised = (
        bound * (1 + 2 * float(limits.eps)) if bound.dtype != jnp.float32 else bound
    )
    raised = jnp.where(bound > 0, jnp.maximum(raised, float(limits.tiny)), raised)
    return jnp.where(jnp.isnan(raised), jnp.inf, raised).astype(jnp.float32)
