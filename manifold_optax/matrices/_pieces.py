"""How a matrix is cut into one piece per device, and put together again."""

import dataclasses
import math

from jaxtyping import Array

from manifold_optax.matrices._plan import AnyMesh, Member


@dataclasses.dataclass(frozen=True)
class Pieces:
    """The cut of a matrix along mesh axes; equal cuts compare equal.

    A piece keeps the leaf's own order of axes. The way to rows and columns is part of
    the assembly, so that wide and tall matrices travel alike.
    """

    names: tuple[str, ...]
    """Mesh axes that cut the matrix, in the order in which devices are counted."""
    counts: tuple[int, ...]
    """Sizes of those mesh axes."""
    local: tuple[int, ...]
    """Sizes of a piece along the leaf's matrix axes, in the leaf's order."""
    cuts: tuple[tuple[str, ...], ...]
    """Mesh axes that cut each of those axes, from major to minor."""
    order: tuple[int, ...]
    """Which of those axes make up the rows, then the columns, of the whole."""

    @property
    def devices(self) -> int:
        """Number of pieces."""
        return math.prod(self.counts)

    @property
    def size(self) -> int:
        """Number of entries of a piece."""
        return math.prod(self.local)

    def assemble(self, pieces: Array, shape: tuple[int, int]) -> Array:
        """`[…, devices, size]` → `[…, *shape]`."""
        lead = pieces.shape[:-2]
        split = pieces.reshape(*lead, *self.counts, *self.local)
        return split.transpose(self._permutation(len(lead))).reshape(*lead, *shape)

    def cut(self, matrices: Array) -> Array:
        """`[…, *shape]` → `[…, devices, size]`; the inverse of `assemble`."""
        lead = matrices.shape[:-2]
        permutation = self._permutation(len(lead))
        sizes = (*lead, *self.counts, *self.local)
        split = matrices.reshape(tuple(sizes[axis] for axis in permutation))
        inverse = sorted(range(len(permutation)), key=permutation.__getitem__)
        return split.transpose(inverse).reshape(*lead, self.devices, self.size)

    def _permutation(self, lead: int) -> tuple[int, ...]:
        """Places each mesh axis right before the leaf axis that it cuts."""
        permutation = list(range(lead))
        for position in self.order:
            permutation += [lead + self.names.index(n) for n in self.cuts[position]]
            permutation.append(lead + len(self.names) + position)
        return tuple(permutation)


def pieces_of(
    member: Member, names: tuple[str, ...], mesh: AnyMesh, *, upright: bool
) -> Pieces:
    """The cut of a member's matrices along all the mesh axes `names` that shard it."""
    sides = (member.rows, member.columns) if upright else (member.columns, member.rows)
    by_axis = {
        axis: cuts
        for side in sides
        for axis, cuts in zip(side.axes, side.mesh_axes, strict=True)
    }
    axes = sorted(by_axis)
    return Pieces(
        names,
        tuple(mesh.shape[name] for name in names),
        tuple(
            member.view.shape[axis] // math.prod(mesh.shape[n] for n in by_axis[axis])
            for axis in axes
        ),
        tuple(tuple(n for n in by_axis[axis] if n in names) for axis in axes),
        tuple(axes.index(axis) for side in sides for axis in side.axes),
    )
