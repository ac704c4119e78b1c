"""What a plan is: which matrices share a stack, and where each stack is computed.

A plan is made of static facts alone (shapes, dtypes, partition specs, a mesh), so it
can be printed and tested without a device.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from manifold_optax._checks import require_compute_dtype, require_one_of
from manifold_optax.matrices._deal import Deal
from manifold_optax.matrices._kernel import Shapes
from manifold_optax.matrices._view import View

AnyMesh: TypeAlias = Mesh | AbstractMesh
Recipe: TypeAlias = Literal["local", "owned", "sliced", "cooperative"]
Orientation: TypeAlias = Literal["tall", "either", "fixed"]
"""How a kernel sees a matrix: with at least as many rows as columns, as it lies in
memory, or with its fan-out as rows."""


@dataclasses.dataclass(frozen=True)
class Placement:
    """Which device computes which matrix; made by the functions of `mo.sharding`."""

    recipe: Literal["owned", "sliced", "auto"]
    mesh: AnyMesh
    specs: Mapping[str, PartitionSpec] | None = None
    wire: Any = None
    """Dtype in which matrices travel where it is narrower than theirs."""
    replicas: Literal["share", "repeat"] = "share"
    """Whether devices that hold the same matrices share the work on them."""
    chunks: int | None = 1
    """Parts, at most, in which an exchange travels; `None`: by bytes and FLOPs."""

    def __post_init__(self) -> None:
        """Checks the choices."""
        check_mesh(self.mesh)
        require_one_of("recipe", self.recipe, ("owned", "sliced", "auto"))
        require_one_of("replicas", self.replicas, ("share", "repeat"))
        _check_chunks(self.chunks)
        require_compute_dtype("wire", self.wire)
        if self.wire is not None and not _has_range(self.wire):
            raise ValueError(
                "wire must be a floating dtype with the range of float32, because "
                "gradients may have any scale, for example jnp.bfloat16; got "
                f"{self.wire!r}."
            )

    def whole(self) -> "Placement":
        """The placement for kernels that need whole matrices: `owned`, never sliced."""
        return dataclasses.replace(self, recipe="owned")

    def wire_dtype(self, dtype: Any) -> Any:
        """The dtype in which matrices of `dtype` travel."""
        if self.wire is None or jnp.finfo(self.wire).bits >= jnp.finfo(dtype).bits:
            return jnp.dtype(dtype)
        return jnp.dtype(self.wire)


def check_mesh(mesh: Any) -> None:
    """Raises TypeError unless `mesh` is a mesh of devices."""
    if not isinstance(mesh, Mesh | AbstractMesh):
        raise TypeError(
            "mesh must be a mesh of devices, for example jax.make_mesh((8,), "
            f"('data',)); got {mesh!r} of type {type(mesh).__name__}."
        )


def check_placement(placement: Any) -> None:
    """Raises TypeError unless `placement` is `None` or one of `mo.sharding`."""
    if placement is not None and not isinstance(placement, Placement):
        raise TypeError(
            "placement must be None or made by mo.sharding.owned, mo.sharding.sliced "
            f"or mo.sharding.auto; got {placement!r} of type "
            f"{type(placement).__name__}."
        )


def _check_chunks(chunks: Any) -> None:
    if chunks is None or (type(chunks) is int and chunks >= 1):
        return
    message = (
        "chunks must be an int of at least 1, the number of parts in which an exchange "
        f"travels, or None to choose it by bytes and FLOPs; got {chunks!r}."
    )
    raise ValueError(message) if type(chunks) is int else TypeError(message)


def _has_range(dtype: Any) -> bool:
    floating = jnp.issubdtype(dtype, jnp.floating)
    return floating and jnp.finfo(dtype).maxexp >= jnp.finfo("float32").maxexp


@dataclasses.dataclass(frozen=True)
class Side:
    """One side of a matrix: the leaf axes that it merges and the mesh axes of each."""

    axes: tuple[int, ...]
    mesh_axes: tuple[tuple[str, ...], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """All mesh axes that cut this side."""
        return tuple(name for names in self.mesh_axes for name in names)

    def size(self, view: View) -> int:
        """Size of this side of a whole matrix."""
        return math.prod(view.shape[axis] for axis in self.axes)


@dataclasses.dataclass(frozen=True)
class Member:
    """A block of a leaf in a stack, and which of its axes are rows and columns."""

    index: int
    view: View
    rows: Side
    columns: Side
    spec: PartitionSpec
    batch_names: tuple[str, ...]
    """Mesh axes that shard its batch axes."""
    count: int
    """Matrices of the block that one device holds, or holds pieces of."""


class Numbers(NamedTuple):
    """Arrays of one matrix that a kernel reads, and those that it writes."""

    read: tuple[tuple[tuple[int, ...], str], ...] = ()
    """Shape and dtype of each."""
    written: Shapes = ()
    """Shape of each; all are float32."""

    @property
    def scalar(self) -> bool:
        """Whether all are scalars."""
        return not any((*(shape for shape, _ in self.read), *self.written))


NO_NUMBERS = Numbers()


@dataclasses.dataclass(frozen=True)
class Group:
    """Matrices that share a stack and a compiled kernel, which sees `rows × columns`.

    `rows` is the larger side but for the orientation `"fixed"`.
    """

    rows: int
    columns: int
    dtypes: tuple[str, ...]
    """Those of the leaves of each input tree, then that of the computation."""
    recipe: Recipe
    shard_axes: tuple[str, ...]
    """Mesh axes that cut the matrices, in the order of the mesh."""
    replica_axes: tuple[str, ...]
    """Mesh axes along which every device holds the same."""
    members: tuple[Member, ...]
    flops: int
    """Operations for one whole matrix, by which owners are balanced."""
    numbers: Numbers = NO_NUMBERS

    @property
    def count(self) -> int:
        """Matrices that one device holds, or holds pieces of."""
        return sum(member.count for member in self.members)

    @property
    def sizes(self) -> tuple[int, int]:
        """The smaller side and the larger one."""
        return min(self.columns, self.rows), max(self.columns, self.rows)

    @property
    def upright(self) -> bool:
        """Whether matrices lie in memory as `rows × columns`, as most leaves do."""
        votes = (
            m.count * (1 if m.rows.axes < m.columns.axes else -1) for m in self.members
        )
        return self.recipe in ("local", "owned") and sum(votes) > 0

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of a matrix in memory."""
        return (self.rows, self.columns) if self.upright else (self.columns, self.rows)


@dataclasses.dataclass(frozen=True)
class Exchange:
    """Owned groups that travel together, and who owns how many of each."""

    groups: tuple[Group, ...]
    deal: Deal
    shard_axes: tuple[str, ...]
    replica_axes: tuple[str, ...]
    parts: tuple[Deal, ...]
    """The deal in parts, each of which travels by itself; one is the whole."""

    @property
    def sizes(self) -> list[int]:
        """Entries of one matrix of each group."""
        return [group.columns * group.rows for group in self.groups]


@dataclasses.dataclass(frozen=True)
class Plan:
    """All groups of a tree; `str(plan)` is a table."""

    groups: tuple[Group, ...]
    """The groups that no exchange moves."""
    exchanges: tuple[Exchange, ...]
    placement: Placement | None
    known: bool
    """False where an automatically sharded program is left to the compiler."""
    either: bool
    """Whether the kernel takes matrices in either orientation."""
    table: str

    @property
    def members(self) -> dict[int, Member]:
        """Where each block went."""
        owned = (group for exchange in self.exchanges for group in exchange.groups)
        return {m.index: m for group in (*self.groups, *owned) for m in group.members}

    @property
    def communicates(self) -> bool:
        """Whether anything is sharded or exchanged, so that `shard_map` is needed."""
        specs = (member.spec for member in self.members.values())
        return bool(self.exchanges) or any(e is not None for s in specs for e in s)

    def __str__(self) -> str:
        """One line per stack: shape, recipe, FLOPs and bytes per device, leaves."""
        return self.table
