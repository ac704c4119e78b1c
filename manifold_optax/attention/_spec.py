"""Where the heads of an attention layer lie in its parameters."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from manifold_optax.matrices import Split


class HeadPart(NamedTuple):
    """The part of one leaf that makes the queries, or the keys, of the heads.

    Example: of the up-projection `[latent, heads, nope + value]` of latent attention
    only the first columns of each head make keys. With sizes 64 and 32 that is
    `HeadPart("key_value/kernel", split=Split((64, 32)), block=0)`.
    """

    path: str
    """Path of the leaf below that of the attention: `"query/kernel"`."""
    axis: int | tuple[int, ...] | Literal["default"] | None = "default"
    """The axis along which the heads lie, one after the other and each with its equal
    share: -2 of `[embed, heads, head_dim]` and of a bias `[heads, head_dim]`, which is
    the default; -1 of `[embed, heads · head_dim]`, 0 of PyTorch's `[heads · head_dim,
    embed]`, which must be said. Several axes, the slower ones first, for queries
    `[embed, key_heads, group, head_dim]`. It must be right: an axis of another meaning
    that the heads divide evenly raises no error. `None`: all heads share the leaf, as
    the gain `[head_dim]` of a norm."""
    split: Split | None = None
    """For a fused leaf: its blocks, the same declaration that `muon(axes=…)` takes."""
    block: int | Sequence[int] = 0
    """Which blocks of `split` are meant: one, or several that follow each other in the
    order of the heads (`range(0, 2 * heads, 2)` of blocks that alternate)."""
    layers: int | tuple[int, ...] | None = None
    """Axes of stacked layers; `None`: those that the `Attention` names."""
    offset: float = 0.0
    """What the model adds to the leaf before it multiplies: 1 for a gain that is stored
    as its difference from 1."""


SIDES = ("query", "key", "query_rope")
"""The factors of an attention layer, in the order in which they stand in a row."""

Parts: TypeAlias = str | HeadPart | Sequence[str | HeadPart]


@dataclasses.dataclass(frozen=True)
class Attention:
    """What `qk_clip` has to know of one kind of attention layer.

    Name every leaf that a head's logits are linear in: kernel and bias of the
    projections; behind a norm of the queries or keys the norm's gain and bias instead,
    because what stands before a norm does not change the logits. Never a soft cap:
    it does not bound what goes into it.

    Attributes:
        heads: number of query heads.
        key_heads: number of key heads, a divisor of `heads`: query head `h` reads key
            head `h // (heads // key_heads)`. `None`: one per query head (multi-head);
            1: multi-query; between: grouped-query.
        query: the leaves of the queries: a path, a `HeadPart`, or several.
        key: the leaves of the keys.
        query_rope: the leaves of rotary queries whose key is shared by all heads and
            stays as it is (latent attention with decoupled RoPE).
        layers: axes of stacked layers in every leaf that does not say otherwise:
            0 for `[layers, embed, heads, head_dim]`, 1 where the layers stand second.

    Raises:
        ValueError, TypeError: for sizes that do not fit, and for no queries or keys.

    Example:
        >>> grouped = Attention(8, 2, query="query/kernel", key="key/kernel")
        >>> grouped.key
        (HeadPart(path='key/kernel', axis='default', split=None, block=0, layers=None, \
offset=0.0),)
    """

    heads: int
    key_heads: int | None = None
    query: Parts = dataclasses.field(kw_only=True)
    key: Parts = dataclasses.field(kw_only=True)
    query_rope: Parts = dataclasses.field(kw_only=True, default=())
    layers: int | tuple[int, ...] = dataclasses.field(kw_only=True, default=())

    def __post_init__(self) -> None:
        key_heads = self.heads if self.key_heads is None else self.key_heads
        for name, count in (("heads", self.heads), ("key_heads", key_heads)):
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise ValueError(f"{name} must be an int of at least 1, got {count!r}.")
        if self.heads % key_heads:
            raise ValueError(
                f"{self.heads} query heads cannot share {key_heads} key heads evenly; "
                "key_heads must divide heads."
            )
        object.__setattr__(self, "key_heads", key_heads)
        _require_ints("layers", self.layers)
        for name in SIDES:
            parts = _parts(name, getattr(self, name))
            if not parts and name != "query_rope":
                raise ValueError(f"Name the leaves of the {name} side, got none.")
            object.__setattr__(self, name, parts)
        if any(part.axis is None for part in self.parts("query_rope")):
            raise ValueError(
                "query_rope must name leaves that hold each head on its own (axis=…): "
                "one gain for all rotary queries cannot follow the other queries."
            )

    @property
    def counts(self) -> tuple[int, int, int]:
        """Numbers of factors of the `SIDES`."""
        return self.heads, self.key_heads or self.heads, self.heads

    def parts(self, side: str) -> tuple[HeadPart, ...]:
        """The leaves of `"query"`, `"key"` or `"query_rope"`."""
        return getattr(self, side)

    def shares(self, side: str) -> bool:
        """Whether a leaf of one side serves all heads, so that they have one factor."""
        return any(part.axis is None for part in self.parts(side))


def _parts(name: str, given: Parts) -> tuple[HeadPart, ...]:
    alone = isinstance(given, str | HeadPart) or not isinstance(given, Sequence)
    items: list[Any] = [given] if alone else [*given]
    parts = [HeadPart(item) if isinstance(item, str) else item for item in items]
    for part in parts:
        if not isinstance(part, HeadPart):
            raise TypeError(
                f"{name} must hold paths or mo.HeadPart(path, …), got {part!r}."
            )
        _check(part)
    return tuple(parts)


def _check(part: HeadPart) -> None:
    """Raises TypeError or ValueError for a part that means nothing on any leaf."""
    if not isinstance(part.path, str):
        raise TypeError(f"The path of a leaf must be a string, got {part!r}.")
    for field in ("axis", "layers"):
        value = getattr(part, field)
        if field == "axis" and value == "default":
            continue
        _require_ints(f"{field} of {part.path!r}", value, optional=True)
    if isinstance(part.axis, Sequence) and not part.axis:
        raise ValueError(
            f"axis of {part.path!r} must name an axis, got {part.axis!r}; None says "
            "that all heads share the leaf."
        )
    _require_ints(f"block of {part.path!r}", part.block)
    if part.split is None and part.block != 0:
        raise ValueError(
            f"block {part.block} of {part.path!r} needs split=mo.Split(…), which says "
            "what the blocks are."
        )
    if part.split is not None and not isinstance(part.split, Split):
        raise TypeError(
            f"split of {part.path!r} must be a mo.Split, got {part.split!r}."
        )
    if isinstance(part.offset, bool) or not isinstance(part.offset, int | float):
        raise TypeError(f"offset of {part.path!r} must be a number, got {part!r}.")
    if not math.isfinite(part.offset):
        raise ValueError(f"offset of {part.path!r} must be finite, got {part!r}.")


def _require_ints(name: str, value: Any, *, optional: bool = False) -> None:
    if optional and value is None:
        return
    several = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    items = value if several else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in items):
        raise TypeError(f"{name} must be an int or several, got {value!r}.")
