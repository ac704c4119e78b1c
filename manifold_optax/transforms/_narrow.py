"""Arrays in fewer bits: random rounding, a byte that corrects, codes in blocks.

Everything here is integer arithmetic on the bits of float32, or divides by the largest
entry of a block, so that no scale is lost. What is random is a hash of the number of
the step and the position of the entry: the same on every device and in every layout.
"""

import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

LARGEST_BLOCK = 64
"""Entries that share a scale. T. Dettmers et al., "8-bit Optimizers via Block-wise
Quantization" (arXiv 2110.02861), have blocks of 2048 of the flat array. Blocks of 64
along the last axis cost 6 % more memory, are cut at the borders of devices wherever a
device holds a multiple of 64 columns, and have smaller largest entries."""

_SMALLEST_BLOCK = 16
"""Below it the scales would take more than a quarter of the bytes of the codes."""

_TOP = 127
"""Codes are symmetric, −127…127, so that a sign costs nothing."""

# Bits of float32 (IEEE 754).
_SIGN, _LARGEST, _NAN = np.uint32(1 << 31), np.uint32(0x7F7FFFFF), np.uint32(0x7FC00000)
_GOLDEN = np.uint32(0x9E3779B9)
"""2³² over the golden ratio: any number without a pattern would do."""


def random_bits(like: Array, path: str, count: Array) -> Array:
    """Returns 32 random bits for each entry of `like`, laid out as it is.

    They depend on `path`, `count` and the position of the entry, on nothing else.
    """
    seed = _mixed(count.astype(jnp.uint32) + np.uint32(zlib.crc32(path.encode())))
    # Zeros of the leaf, not numbers of its shape: so they are sharded as the leaf is.
    position = jnp.zeros_like(like, jnp.uint32)
    stride = 1
    for axis in reversed(range(like.ndim)):
        length = like.shape[axis]
        along = jnp.arange(length, dtype=jnp.uint32) * np.uint32(stride % 2**32)
        others = tuple(a for a in range(like.ndim) if a != axis)
        position += jnp.expand_dims(along, others)
        stride *= length
    return _mixed(_mixed(position + seed) ^ _mixed(seed ^ _GOLDEN))


def _mixed(bits: Array) -> Array:
    """A bijection of 32 bits in which each bit changes half of the others.

    Source: A. Appleby, MurmurHash3, the finalizer of 32 bits (public domain).
    """
    bits = (bits ^ (bits >> 16)) * np.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * np.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)


def to_bfloat16(wide: Array, bits: Array | None) -> Array:
    """Rounds float32 to bfloat16: up or down, so that the mean is right.

    Args:
        wide: float32 array.
        bits: of `random_bits`; `None`: rounds to nearest.

    Returns:
        Array of bfloat16. What is finite stays finite, also near 3.4e38.
    """
    nearest = wide.astype(jnp.bfloat16)
    if bits is None:
        return nearest
    taken = jax.lax.bitcast_convert_type(wide, jnp.uint32)
    magnitude = (taken & ~_SIGN) + (bits & np.uint32(0xFFFF))
    rounded = jnp.minimum(magnitude, _LARGEST) | (taken & _SIGN)
    top = (rounded >> 16).astype(jnp.uint16)
    return jnp.where(
        jnp.isfinite(wide), jax.lax.bitcast_convert_type(top, jnp.bfloat16), nearest
    )


def to_bytes(wide: Array) -> tuple[Array, Array]:
    """Rounds float32 to 24 bits: those of a bfloat16, and a byte that corrects it.

    Returns:
        The nearest bfloat16, and an int8 array in units of 1/256 of its last place.
        Together they have 16 bits of precision: the error is at most 2⁻¹⁶ of an entry.
    """
    bits = jax.lax.bitcast_convert_type(wide, jnp.uint32)
    # To nearest, ties to even.
    bits = (bits + np.uint32(0x7F) + ((bits >> 8) & np.uint32(1))) >> 8
    # The bits of some NaNs would be carried into the sign.
    bits = jnp.where(jnp.isnan(wide), _NAN >> 8, bits)
    high = (bits + np.uint32(0x80)) >> 8
    low = (bits - (high << 8)).astype(jnp.int32).astype(jnp.int8)
    top = jax.lax.bitcast_convert_type(high.astype(jnp.uint16), jnp.bfloat16)
    return top, low


def from_bytes(high: Array, low: Array) -> Array:
    """Returns the float32 array of which `to_bytes` made `high` and `low`."""
    bits = jax.lax.bitcast_convert_type(high, jnp.uint16).astype(jnp.uint32) << 8
    bits += low.astype(jnp.int32).astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(bits << 8, jnp.float32)


def to_codes(wide: Array, bits: Array | None) -> tuple[Array, Array]:
    """Rounds float32 to whole multiples of 1/127 of the largest entry of each block.

    A block is `block_length` entries along the last axis. The code is linear, which is
    enough for an average of gradients: "Effective Quantization of Muon Optimizer
    States" (arXiv 2509.23106).

    Args:
        wide: float32 array.
        bits: of `random_bits`, to round up or down so that the mean is right; `None`:
            rounds to nearest.

    Returns:
        Codes, int8 in the shape of `wide`, and the largest absolute entry of each
        block, in float32. A block with a NaN or an infinity has a scale that is not
        finite: all of it is read as NaN.
    """
    blocks = _in_blocks(wide)
    scales = jnp.max(jnp.abs(blocks), axis=-1)
    size = scales[..., None]
    unit = blocks / jnp.where(size > 0, size, 1) * _TOP
    # A scale below the normal numbers may count as zero: the block then does, too.
    unit = jnp.where(jnp.isfinite(unit), unit, 0)
    if bits is None:
        codes = jnp.round(unit)
    else:
        below = jnp.floor(unit)
        # 24 bits are all that float32 holds of a number below 1.
        chance = (_in_blocks(bits) >> 8).astype(jnp.float32) * np.float32(2.0**-24)
        codes = below + (chance < unit - below)
    codes = jnp.clip(codes, -_TOP, _TOP).astype(jnp.int8)
    return _like(codes, wide), scales


def from_codes(codes: Array, scales: Array) -> Array:
    """Returns the float32 array that codes and scales stand for."""
    blocks = _in_blocks(codes).astype(jnp.float32)
    return _like(blocks / _TOP * scales[..., None], codes)


def block_length(length: int) -> int:
    """Returns how many neighbours of an axis share a scale; it divides `length`.

    The largest divisor up to 64. An axis without one from 16 to 64 (a prime number,
    say) takes its smallest divisor above.
    """
    if length <= LARGEST_BLOCK:
        return max(length, 1)
    for size in range(LARGEST_BLOCK, _SMALLEST_BLOCK - 1, -1):
        if length % size == 0:
            return size
    return next(n for n in range(LARGEST_BLOCK, length + 1) if length % n == 0)


def _in_blocks(x: Array) -> Array:
    """View `[…, blocks, entries]` of an array; one block of a number."""
    if x.ndim == 0:
        return x.reshape(1)
    size = block_length(x.shape[-1])
    count = x.shape[-1] // size
    sharding = jax.typeof(x).sharding
    if count % _shards(x):
        # A block lies on several devices: each of them gets the whole rows.
        spec = PartitionSpec(*sharding.spec[: x.ndim - 1], None)
        x = _laid_out(x, x, NamedSharding(sharding.mesh, spec))
    return x.reshape(*x.shape[:-1], count, size)


def _like(blocks: Array, x: Array) -> Array:
    """Undoes `_in_blocks`, and lays the result out as `x` is."""
    flat = blocks.reshape(x.shape)
    sharding = jax.typeof(x).sharding
    if jax.typeof(flat).sharding.spec == sharding.spec:
        return flat
    return _laid_out(flat, x, sharding)


def _shards(x: Array) -> int:
    """In how many parts the last axis is cut, as far as its type says."""
    sharding = jax.typeof(x).sharding
    entry = sharding.spec[-1] if len(sharding.spec) == x.ndim else None
    axes = entry if isinstance(entry, tuple) else (entry,)
    return math.prod(sharding.mesh.shape[axis] for axis in axes if axis is not None)


def _laid_out(x: Array, like: Array, sharding: NamedSharding) -> Array:
    if isinstance(x, Tracer):
        return jax.sharding.reshard(x, sharding)
    # Outside of a trace only an array itself knows its devices.
    mesh = getattr(like.sharding, "mesh", sharding.mesh)
    return jax.device_put(x, NamedSharding(mesh, sharding.spec))
