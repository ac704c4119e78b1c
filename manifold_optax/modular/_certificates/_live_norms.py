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
from jaxtyping import Array, Float

from manifold_optax.linalg import spectral_norm_bound
from manifold_optax.linalg._device import on_cpu
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

_MARKS = "bios"


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
        4·√n·eps too large, apart from subnormal entries, which are taken for the
        smallest normal number.

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
    values, subnormal = _normal(x)
    # The norm of an array whose entries are as large as those left out can be.
    left_out = norm.of_ones * float(jnp.finfo(values.dtype).tiny)
    left_out = jnp.where(subnormal, left_out, 0.0).astype(values.dtype)
    if norm.has("ois"):
        bound = _largest(values, norm)
    else:
        bound = jnp.max(jnp.abs(values))
    return _float32(bound + left_out * (1 + float(jnp.finfo(values.dtype).eps)))


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

    def bound(x: Array) -> Array:
        return live_norm(x, norm)

    stack = jnp.stack(arrays)
    # One compiled body for all. A CPU takes a batched product 12 % longer (six of
    # 768 × 768) than one after the other.
    return list(jax.lax.map(bound, stack) if on_cpu() else jax.vmap(bound)(stack))


def _largest(values: Array, norm: MixedNorm) -> Array:
    """The bound of a norm that has sums, lengths or operators."""
    dtype = values.dtype
    scale = divisor(jnp.max(jnp.abs(values)))
    blocks = _laid_out(values / scale, norm)
    if norm.has("s"):
        blocks = jnp.sum(jnp.abs(blocks), axis=3) * _allowance(norm.count("s"), dtype)
    else:
        blocks = blocks[..., 0]
    if norm.count("i") > 1 and norm.count("o") > 1:
        return scale * jnp.max(spectral_norm_bound(blocks, doublings=_DOUBLINGS))
    squares = jnp.sum(blocks * blocks, axis=(1, 2))
    lengths = jnp.sqrt(squares) * _allowance(norm.count("io"), dtype)
    return scale * jnp.max(lengths)


def _laid_out(
    values: Array, norm: MixedNorm
) -> Float[Array, "maxima input output sums"]:
    """The factors in the order: maxima, inputs, outputs, sums."""
    marks = [mark for _, mark in norm.factors]
    order = [k for mark in _MARKS for k, have in enumerate(marks) if have == mark]
    split = jnp.reshape(values, [size for size, _ in norm.factors])
    return jnp.transpose(split, order).reshape([norm.count(mark) for mark in _MARKS])


def _normal(x: Array) -> tuple[Array, Array]:
    """The array with zeros for subnormal entries, and whether there were any.

    Whether arithmetic sees subnormal numbers or zeros depends on the machine, so they
    are found by their bits.
    """
    # `promote_types` refuses floats of 8 bits.
    values = widen(x.astype(jnp.float32) if x.dtype.itemsize < 4 else x)
    bits = jax.lax.bitcast_convert_type(values, f"uint{8 * values.dtype.itemsize}")
    magnitude = bits & ~np.asarray(-0.0, values.dtype).view(bits.dtype)
    smallest = np.asarray(jnp.finfo(values.dtype).tiny, values.dtype).view(bits.dtype)
    below = magnitude < smallest
    return jnp.where(below, 0, values), jnp.any(below & (magnitude > 0))


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
