"""The owner exchange: whole matrices on one device each, by two all-to-alls.

Inside `jax.shard_map` every device holds one piece of every matrix of a stack. The
first all-to-all sends the pieces of matrix `k` to the device that owns it, the second
sends the pieces of the result back; nothing is communicated in between. Numbers and
vectors carried per matrix are the same on all devices: the owner reads its own, and
what it returns travels to everyone inside the second all-to-all.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax.matrices._plan import AnyMesh, Group, Side


@dataclasses.dataclass(frozen=True)
class Pieces:
    """How a matrix of a group is cut into one piece per device of the exchange."""

    names: tuple[str, ...]
    counts: tuple[int, ...]
    local: tuple[int, ...]
    """Local sizes of all leaf axes of the short, then of the long side."""
    owners: tuple[tuple[str, ...], ...]
    """Mesh axes that cut each of those axes, from major to minor."""

    @property
    def devices(self) -> int:
        """Number of devices that exchange."""
        return math.prod(self.counts)

    @property
    def size(self) -> int:
        """Number of entries of a piece."""
        return math.prod(self.local)

    def assemble(self, pieces: Array, short: int, long: int) -> Array:
        """`[…, devices, size]` → `[…, short, long]`."""
        lead = pieces.shape[:-2]
        split = pieces.reshape(*lead, *self.counts, *self.local)
        return split.transpose(self._order(len(lead))).reshape(*lead, short, long)

    def cut(self, matrices: Array) -> Array:
        """`[…, short, long]` → `[…, devices, size]`; the inverse of `assemble`."""
        lead = matrices.shape[:-2]
        order = self._order(len(lead))
        sizes = (*lead, *self.counts, *self.local)
        split = matrices.reshape(tuple(sizes[axis] for axis in order))
        inverse = sorted(range(len(order)), key=order.__getitem__)
        return split.transpose(inverse).reshape(*lead, self.devices, self.size)

    def _order(self, lead: int) -> tuple[int, ...]:
        """Places each mesh axis right before the leaf axis that it cuts."""
        order = list(range(lead))
        for position, names in enumerate(self.owners):
            order += [lead + self.names.index(name) for name in names]
            order.append(lead + len(self.names) + position)
        return tuple(order)


def pieces_of(group: Group, mesh: AnyMesh) -> Pieces:
    """The cut that the sharding of the group's members implies."""
    first = group.members[0]

    def local(side: Side) -> list[int]:
        return [
            first.view.shape[axis] // math.prod(mesh.shape[name] for name in names)
            for axis, names in zip(side.axes, side.mesh_axes, strict=True)
        ]

    return Pieces(
        group.exchange_axes,
        tuple(mesh.shape[name] for name in group.exchange_axes),
        (*local(first.short), *local(first.long)),
        (*first.short.mesh_axes, *first.long.mesh_axes),
    )


def apply_at_owners(
    apply: Callable[[Any, Any], tuple[Any, Any]],
    group: Group,
    mesh: AnyMesh,
    stacks: Sequence[Array],
    carried: Sequence[Array],
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """`apply` on whole matrices at their owners.

    Args:
        apply: stacks `[slots, short, long]` and carried `[slots, …]` → the same.
        group: the matrices.
        mesh: the mesh of the enclosing `shard_map`.
        stacks: pieces `[count, short_local, long_local]`, one array per input tree.
        carried: `[count, …]`, the same on all devices of the exchange.

    Returns:
        Pieces and carried arrays in the form in which they came.
    """
    pieces, names = pieces_of(group, mesh), group.exchange_axes
    count, devices = stacks[0].shape[0], pieces.devices
    slots = -(-count // devices)

    def pad(x: Array) -> Array:
        widths = [(0, slots * devices - count)] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x, widths)

    flat = [pad(x.reshape(count, pieces.size)) for x in stacks]
    sent = jnp.concatenate(flat, axis=1)
    received = jax.lax.all_to_all(sent, names, 0, 1, tiled=True)
    received = received.reshape(slots, devices, len(stacks), pieces.size)
    whole = pieces.assemble(jnp.moveaxis(received, 2, 0), group.short, group.long)

    first = jax.lax.axis_index(names) * slots
    own = [jax.lax.dynamic_slice_in_dim(pad(c), first, slots) for c in carried]
    results, numbers = apply(tuple(whole), tuple(own))

    wire = jnp.result_type(sent, *numbers)
    back = [pieces.cut(y).astype(wire) for y in results]
    for c in numbers:
        flat_numbers = c.reshape(slots, 1, -1).astype(wire)
        shape = (slots, devices, flat_numbers.shape[-1])
        back.append(jnp.broadcast_to(flat_numbers, shape))
    if not back:
        return (), ()
    returned = jax.lax.all_to_all(
        jnp.concatenate(back, axis=2), names, 1, 0, tiled=True
    )
    columns = returned[:count, 0]
    sizes = [b.shape[-1] for b in back]
    parts = jnp.split(columns, list(itertools.accumulate(sizes[:-1])), axis=1)
    first_stack = stacks[0]
    outs = tuple(
        part.reshape(first_stack.shape).astype(first_stack.dtype)
        for part in parts[: len(results)]
    )
    numbers_out = tuple(
        part.reshape(c.shape).astype(c.dtype)
        for part, c in zip(parts[len(results) :], carried, strict=True)
    )
    return outs, numbers_out
