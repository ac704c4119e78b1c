"""Which axes of each leaf are its matrix, from the atoms of a network."""

import dataclasses
from collections.abc import Iterable, Mapping

from manifold_optax.matrices import Axes, OUT_IN, STACKED
from manifold_optax.modular._algebra._module import Atom
from manifold_optax.roles import EMBEDDING, VECTOR


@dataclasses.dataclass(frozen=True)
class AtomAxes:
    """Axes by path, as every argument `axes` takes them.

    Attributes:
        axes: path → axes; every other leaf is no matrix.
    """

    axes: Mapping[str, Axes]

    def axes_of(self, path: str, shape: tuple[int, ...]) -> Axes | None:
        """Axes of the leaf at `path`; `None` if it is no matrix."""
        del shape
        return self.axes.get(path)


def is_matrix(atom: Atom) -> bool:
    """Whether steps of the atom are matrices; those of vectors are lists of entries."""
    return atom.role != VECTOR


def axes_of_atoms(atoms: Iterable[Atom]) -> AtomAxes:
    """The axes of all atoms that are matrices.

    Without axes of its own a leaf is `[*batch, in, out]`, where the batch is that of a
    scanned stack, and an embedding is `[*batch, tokens, features]`, whose rows are its
    tokens.
    """
    found: dict[str, Axes] = {}
    for atom in atoms:
        if is_matrix(atom):
            default = OUT_IN if atom.role == EMBEDDING else STACKED
            found[atom.path] = default if atom.axes is None else atom.axes
    return AtomAxes(found)
