"""States of `momentum`: an average in full, in two bytes, in three, or in one."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32

from manifold_optax._typing import ArrayTree
from manifold_optax.transforms import _narrow as narrow
from manifold_optax.trees import (
    bare,
    boxed_like,
    fill_absent,
    is_absent,
    leaf_path,
    map_leaves,
)

Keeping: TypeAlias = Literal["bfloat16", "bfloat16+int8", "int8"] | None
"""How an average is kept; `None`: in at least float32."""


class MomentumState(NamedTuple):
    """State of `momentum` with the dtypes `None` and `"bfloat16"`."""

    count: Int32[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    """Number of updates so far."""
    average: ArrayTree
    """Like the parameters; in at least float32, or in bfloat16 where that was asked."""

    def read(self) -> ArrayTree:
        """Returns the average in at least float32."""

        def wide(leaf: Any) -> Any:
            if is_absent(leaf) or leaf.dtype != jnp.bfloat16:
                return leaf
            return leaf.astype(jnp.float32)

        return jax.tree.map(wide, self.average, is_leaf=is_absent)

    def written(
        self, average: ArrayTree, count: Array | None = None
    ) -> "MomentumState":
        """Returns the state with another average.

        Args:
            average: like that of `read`; where it has `None`, the old one stays.
            count: number of the update, which the random bits depend on. `None`: rounds
                to nearest.
        """

        def kept(path: str, leaf: Any, old: Any) -> Array:
            if old.dtype != jnp.bfloat16:
                return leaf.astype(old.dtype)
            return narrow.to_bfloat16(leaf, _bits(path, leaf, count))

        moved = map_leaves(kept, average, self.average)
        return self._replace(average=fill_absent(moved, self.average))


class CorrectedMomentumState(NamedTuple):
    """State of `momentum` with the dtype `"bfloat16+int8"`: 24 bits an entry."""

    count: Int32[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    """Number of updates so far."""
    average: ArrayTree
    """Like the parameters, in bfloat16, rounded to nearest."""
    correction: ArrayTree
    """Like the parameters, in int8: what is missing, in 1/256 of the last place."""

    def read(self) -> ArrayTree:
        """Returns the average in float32."""
        return _both(narrow.from_bytes, self.average, self.correction)

    def written(
        self, average: ArrayTree, count: Array | None = None
    ) -> "CorrectedMomentumState":
        """Returns the state with another average; see `MomentumState.written`."""
        del count  # The rounding is to nearest in any case.
        kept = lambda _, leaf: narrow.to_bytes(leaf.astype(jnp.float32))
        high, low = _parts(kept, average, (self.average, self.correction))
        return self._replace(average=high, correction=low)


class CodedMomentumState(NamedTuple):
    """State of `momentum` with the dtype `"int8"`: codes, and a scale for each block.

    An entry of the average is `codes / 127` times the scale of its block. A block is
    the largest divisor up to 64 of the length of the last axis, so that the scales are
    cut over devices as the codes are, wherever a device holds whole blocks.
    """

    count: Int32[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    """Number of updates so far."""
    codes: ArrayTree
    """Like the parameters, in int8, from −127 to 127."""
    scales: ArrayTree
    """Largest absolute entry of each block, float32 `[…, blocks]`."""

    def read(self) -> ArrayTree:
        """Returns the average in float32."""
        return _both(narrow.from_codes, self.codes, self.scales)

    def written(
        self, average: ArrayTree, count: Array | None = None
    ) -> "CodedMomentumState":
        """Returns the state with another average; see `MomentumState.written`."""

        def kept(path: str, leaf: Array) -> tuple[Array, Array]:
            return narrow.to_codes(leaf.astype(jnp.float32), _bits(path, leaf, count))

        codes, scales = _parts(kept, average, (self.codes, self.scales))
        return self._replace(codes=codes, scales=scales)


AnyMomentumState: TypeAlias = (
    MomentumState | CorrectedMomentumState | CodedMomentumState
)

STATES: Mapping[Keeping, type] = {
    None: MomentumState,
    "bfloat16": MomentumState,
    "bfloat16+int8": CorrectedMomentumState,
    "int8": CodedMomentumState,
}


def keeping_of(dtype: Any) -> Keeping:
    """Returns how an average is kept.

    Raises:
        TypeError: unless `dtype` is one of those that momentum takes.
    """
    if dtype is None or dtype == "bfloat16+int8":
        return dtype
    for known in ("bfloat16", "int8"):
        # A comparison with what is no dtype at all may raise anything.
        try:
            if jnp.dtype(dtype) == jnp.dtype(known):
                return known
        except TypeError:
            break
    raise TypeError(
        "dtype of momentum must be None (at least float32), 'bfloat16', "
        f"'bfloat16+int8' or 'int8', got {dtype!r}. Under optax.inject_hyperparams "
        "give it as a string, since a class such as jnp.int8 counts as a schedule "
        "there."
    )


def zero_state(params: ArrayTree, keeping: Keeping) -> AnyMomentumState:
    """The state before the first update."""
    count = jnp.zeros((), jnp.int32)
    zeros = lambda dtype: map_leaves(lambda _, p: jnp.zeros_like(p, dtype), params)
    match keeping:
        case None:
            return MomentumState(count, map_leaves(_wide_zeros, params))
        case "bfloat16":
            return MomentumState(count, zeros(jnp.bfloat16))
        case "bfloat16+int8":
            return CorrectedMomentumState(count, zeros(jnp.bfloat16), zeros(jnp.int8))
    # Made of zeros like the leaf, so that the scales are sharded as it is. Without the
    # boxes of frameworks, which name the axes of another shape.
    scales = map_leaves(_zero_scales, bare(params))
    return CodedMomentumState(count, zeros(jnp.int8), scales)


def _wide_zeros(path: str, param: Array) -> Array:
    del path
    return jnp.zeros_like(param, jnp.promote_types(param.dtype, jnp.float32))


def _zero_scales(path: str, param: Array) -> Array:
    del path
    return narrow.to_codes(jnp.zeros_like(param, jnp.float32), None)[1]


def _bits(path: str, leaf: Array, count: Array | None) -> Array | None:
    return None if count is None else narrow.random_bits(leaf, path, count)


def _both(
    decode: Callable[[Array, Array], Array], first: ArrayTree, second: ArrayTree
) -> ArrayTree:
    """`decode` of the leaves of two trees, in the boxes of the first."""

    def one(leaf: Any, other: Any) -> Any:
        if is_absent(leaf):
            return leaf
        # A checkpoint may have been restored as arrays of NumPy.
        return decode(jnp.asarray(leaf), jnp.asarray(other))

    plain = jax.tree.map(one, bare(first), bare(second), is_leaf=is_absent)
    return boxed_like(plain, first)


@dataclasses.dataclass(frozen=True)
class _Pair:
    """What is kept of one leaf; not a tree itself."""

    arrays: tuple[Array, Array]


def _parts(
    encode: Callable[[str, Array], tuple[Array, Array]],
    average: ArrayTree,
    old: tuple[ArrayTree, ArrayTree],
) -> list[ArrayTree]:
    """The two trees that `encode` makes of a tree; `None` keeps what was there."""

    def of_leaf(keys: Any, leaf: Any) -> Any:
        return leaf if is_absent(leaf) else _Pair(encode(leaf_path(keys), leaf))

    pairs = jax.tree_util.tree_map_with_path(of_leaf, bare(average), is_leaf=is_absent)
    trees = []
    for index, before in enumerate(old):
        take = lambda pair, index=index: (
            pair.arrays[index] if isinstance(pair, _Pair) else pair
        )
        part = jax.tree.map(take, pairs, is_leaf=is_absent)
        trees.append(boxed_like(fill_absent(part, bare(before)), before))
    return trees
