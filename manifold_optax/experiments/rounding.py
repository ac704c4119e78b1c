"""Weights rounded to few bits: int8, int4, int3 and 8-bit floats, simulated.

The result has the dtype of the weights and holds only multiples of the scale that the
format can store. A scale is shared by a whole parameter, or by all inputs of one output
channel.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, get_args, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

import manifold_optax as mo
from manifold_optax.matrices import Axes, Split, STACKED
from manifold_optax.roles import EMBEDDING, MATRIX, READOUT
from manifold_optax.trees import leaf_path

FormatName: TypeAlias = Literal["int8", "int4", "int3", "fp8"]
FORMAT_NAMES: tuple[FormatName, ...] = get_args(FormatName)
Scope: TypeAlias = Literal["tensor", "channel"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

# Scales keep 16 bits behind the leading one. A multiple by an integer below 2^7, or by
# a float of 4 bits, then fits into the 24 bits of float32: products are exact, and
# rounding twice is rounding once.
_SCALE_BITS = 16
_EXPONENT_BITS = 8


@dataclasses.dataclass(frozen=True)
class Format:
    """A format of numbers.

    Attributes:
        largest: Its largest number; the scale takes the largest entry there.
        floating: Whether it is the 8-bit float e4m3; integers otherwise.
    """

    largest: float
    floating: bool = False

    def nearest(self, numbers: Array) -> Array:
        """Returns the numbers of the format that are nearest, ties to even."""
        inside = jnp.clip(numbers, -self.largest, self.largest)
        if not self.floating:
            return jnp.round(inside)
        return inside.astype(jnp.float8_e4m3fn).astype(numbers.dtype)


# Integers of b bits without their lowest number, so that the format is symmetric:
# 2^(b-1) - 1. The largest float8_e4m3fn is 448 (P. Micikevicius et al.,
# arXiv:2209.05433, table 1).
FORMATS: Mapping[FormatName, Format] = {
    "int8": Format(127.0),
    "int4": Format(7.0),
    "int3": Format(3.0),
    "fp8": Format(448.0, floating=True),
}


def round_array(
    weights: Float[Array, "..."],
    number_format: FormatName,
    *,
    shared: tuple[int, ...] | None = None,
) -> Float[Array, "..."]:
    """Rounds an array to the nearest multiples of its scales.

    A scale is the largest magnitude over the largest number of the format. Rounding an
    integer format moves no entry by more than half a scale. Entries that are not finite
    stay as they are and have no say in the scale; entries too small to have one stay.

    Args:
        weights: The array.
        number_format: Name of the format.
        shared: Axes whose entries share a scale; None: all.

    Returns:
        The rounded array, in its dtype; computed in at least float32. In float32 and
        float64 rounding it again changes nothing; bfloat16 rounds the multiples of
        int8 once more.
    """
    form = FORMATS[number_format]
    wide = weights.astype(jnp.promote_types(weights.dtype, jnp.float32))
    finite = jnp.isfinite(wide)
    sizes = jnp.where(finite, jnp.abs(wide), 0)
    scale = jnp.max(sizes, axis=shared, keepdims=True, initial=0) / form.largest
    scale = jax.lax.reduce_precision(scale, _EXPONENT_BITS, _SCALE_BITS)
    # A scale below the normal numbers has not the bits that make multiples exact.
    usable = scale >= jnp.finfo(jnp.float32).tiny
    divisor = jnp.where(usable, scale, 1)
    rounded = form.nearest(jnp.where(finite, wide, 0) / divisor) * divisor
    return jnp.where(finite & usable, rounded, wide).astype(weights.dtype)


def round_params(
    params: Any,
    number_format: FormatName,
    *,
    per: Scope = "tensor",
    roles: mo.Roles | None = None,
) -> Any:
    """Rounds the matrices, embeddings and readouts of a model; vectors stay.

    Args:
        params: Tree of arrays.
        number_format: Name of the format.
        per: What shares a scale: a whole parameter (`"tensor"`), or what belongs to one
            output channel (`"channel"`): the inputs of a matrix, the row of an
            embedding. Readouts are `[in, out]`, as in Flax.
        roles: What each parameter is; None: by name, as `mo.roles()` reads it.

    Returns:
        A tree like `params`.

    Raises:
        ValueError: if nothing tells what a parameter is.

    Example:
        >>> params = {"up": {"kernel": jnp.array([[0.75, 0.09375], [0.2, 0.06]])}}
        >>> print(round_params(params, "int3")["up"]["kernel"])
        [[0.75 0.  ]
         [0.25 0.  ]]
        >>> print(round_params(params, "int3", per="channel")["up"]["kernel"])
        [[0.75    0.09375]
         [0.25    0.0625 ]]
    """
    known = mo.roles() if roles is None else roles
    labels = known(params)

    def one(keys: Any, leaf: Array, label: str) -> Array:
        if label not in (MATRIX, EMBEDDING, READOUT):
            return leaf
        shared = None
        if per == "channel":
            shared = _shared_axes(label, known.axes_of(leaf_path(keys), leaf.shape))
        return round_array(leaf, number_format, shared=shared)

    return jax.tree_util.tree_map_with_path(one, params, labels)


def _shared_axes(label: str, axes: Axes | None) -> tuple[int, ...]:
    """The axes of the entries that belong to one output channel."""
    if label == EMBEDDING:
        return (-1,)
    axes = STACKED if axes is None else axes
    inner = axes.axes if isinstance(axes, Split) else axes
    inputs = inner.reduction_axis
    return (inputs,) if isinstance(inputs, int) else tuple(inputs)
