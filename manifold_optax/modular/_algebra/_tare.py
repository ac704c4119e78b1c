"""Modules whose atoms are changed: other masses, manifolds and norms."""

import dataclasses
from collections.abc import Callable

from manifold_optax.modular._algebra._expression import as_module, Module
from manifold_optax.modular._algebra._lipschitz import plain
from manifold_optax.modular._algebra._module import Atom


def tare(
    module: Module, mass: float | None = None, *, relative: float | None = None
) -> Module:
    """Returns `module` with the masses of its atoms rescaled by one factor.

    Give one of the two arguments. A module of mass 0 is frozen: its atoms have share 0.

    Args:
        module: any module.
        mass: mass that the whole module gets.
        relative: factor by which the masses are multiplied.

    Raises:
        TypeError: for both arguments or none, and for anything but numbers.
        ValueError: for a number that is negative or not finite, and for a `mass` above
            0 where all atoms have mass 0.

    Example:
        >>> from manifold_optax.modular import Atom, atoms, tare
        >>> blocks = tare(Atom("a", mass=3.0) @ Atom("b"), 2.0)
        >>> atoms(blocks)["a"].mass, atoms(blocks)["b"].mass
        (1.5, 0.5)
    """
    module = as_module(module)
    if (mass is None) == (relative is None):
        raise TypeError(
            "tare takes either the new mass, tare(module, 5), or the factor of the old "
            f"one, tare(module, relative=0.5); got {mass!r} and relative={relative!r}."
        )
    if relative is not None:
        return _rescaled(module, plain("The factor relative", relative, "[0, inf)"))
    wanted, old = plain("The mass", mass, "[0, inf)"), module.total_mass()
    if old == 0 and wanted > 0:
        raise ValueError(
            f"The module {module.label!r} has mass 0 and no atom to share out a mass "
            f"of {wanted:g} to; give its atoms a mass first."
        )
    return _rescaled(module, wanted / old if wanted else 0.0)


def _rescaled(module: Module, factor: float) -> Module:
    return map_atoms(module, lambda a: dataclasses.replace(a, mass=factor * a.mass))


def map_atoms(module: Module, change: Callable[[Atom], Module]) -> Module:
    """Returns `module` with `change(atom)` in place of every atom.

    This is how masses, manifolds and norms follow rules.

    Args:
        module: any module.
        change: function from an atom to the module in its place. It may return the
            atom, one made by `dataclasses.replace`, or a `Bond`.

    Raises:
        TypeError: if `change` returns anything but a module.

    Example:
        >>> import dataclasses
        >>> from manifold_optax.modular import Atom, map_atoms, shares
        >>> def heavy_head(atom):
        ...     mass = 3.0 if atom.path == "head" else 1.0
        ...     return dataclasses.replace(atom, mass=mass)
        >>> shares(map_atoms(Atom("head") @ Atom("hidden"), heavy_head))
        {'hidden': (0.25,), 'head': (0.75,)}
    """
    return as_module(module).mapped(change)
