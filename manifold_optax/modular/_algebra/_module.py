"""Atoms, and what a module makes of them: mass, sensitivities and shares.

A module is *well-normed* if its output changes by at most the modular norm of a change
of its weights, and by at most its sensitivity times a change of its input. The shares
are chosen so that this stays true: `share · sensitivity after it` is the part of the
mass that an atom has, and these parts sum to 1.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator

from manifold_optax._checks import require_instance
from manifold_optax.geometry import Euclidean, Manifold, Norm, RmsToRms
from manifold_optax.matrices import Axes
from manifold_optax.matrices._axes import check_axes
from manifold_optax.modular._algebra._expression import (
    as_module,
    Identity,
    Module,
    Numbers,
    Place,
    record,
    Sum,
    Use,
    Visit,
)
from manifold_optax.modular._algebra._factors import factors_after, where, with_constant
from manifold_optax.modular._algebra._lipschitz import (
    Gains,
    plain,
    require_name,
    set_field,
    times,
    tuple_message,
)
from manifold_optax.modular._algebra._text import Entry
from manifold_optax.roles import MATRIX

_FREE, _NORM = Euclidean(), RmsToRms()
"""Where a matrix lies, and how it is measured, unless an atom says otherwise."""


@dataclasses.dataclass(frozen=True)
class Atom(Module):
    """A parameter that is used in one way.

    Args:
        path: path of the leaf, such as `blocks/0/mlp/up/kernel`.
        role: label of the leaf, such as `"matrix"`, `"embedding"` or `"vector"`.
        axes: which axes of the leaf are the matrix, as for `map_matrices`. `None`:
            `[in, out]`, or no matrix where the leaf has fewer axes.
        manifold: where the matrix lies.
        norm: how changes of the matrix are measured. A change of norm 1 must change the
            output by at most 1, for inputs of size 1.
        mass: how much of the learning the atom takes, relative to the other atoms. 0:
            the atom is frozen.
        sensitivity: Lipschitz constant with respect to the input, at weights of norm 1.

    Raises:
        TypeError: for arguments of another kind.
        ValueError: for an empty path or role, and for a mass or sensitivity that is
            negative or NaN, or a mass that is infinite.

    Example:
        >>> from manifold_optax.modular import Atom, Bond
        >>> print(Atom("down", mass=3.0) @ Bond("relu") @ Atom("up"))
        module  manifold   norm      mass  sensitivity  after it  share
        up      Euclidean  RmsToRms     1            1         1   0.25
        relu                                         1
        down    Euclidean  RmsToRms     3            1         1   0.75
        mass 4, sensitivity 1
    """

    path: str
    role: str = MATRIX
    axes: Axes | None = None
    manifold: Manifold = _FREE
    norm: Norm = _NORM
    mass: float = 1.0
    sensitivity: float = 1.0

    def __post_init__(self) -> None:
        """Checks the fields."""
        require_name("The path of an Atom", self.path)
        what = f"of the atom {self.path!r}"
        require_name(f"The role {what}", self.role)
        if self.axes is not None:
            set_field(self, "axes", check_axes(self.axes))
        require_instance(f"The manifold {what}", self.manifold, Manifold)
        require_instance(f"The norm {what}", self.norm, Norm)
        mass = plain(f"The mass {what}", self.mass, "[0, inf)")
        set_field(self, "mass", mass)
        own = plain(f"The sensitivity {what}", self.sensitivity, "[0, inf]")
        set_field(self, "sensitivity", own)

    @property
    def label(self) -> str:
        """The path."""
        return self.path

    def total_mass(self) -> float:
        return self.mass

    def mapped(self, change: Callable[["Atom"], Module]) -> Module:
        return as_module(change(self))

    def uses(self, place: Place, counts: tuple[int, ...]) -> Iterator[Use]:
        yield Use(place, self, counts)

    def pulled(self, gains: Gains, visit: Visit, place: Place) -> Gains:
        if len(gains) != 1:
            raise ValueError(tuple_message(repr(self.path), len(gains), "what follows"))
        (gain,) = gains
        visit(place, gain)
        return (times(gain, self.sensitivity),)

    def gives(self, count: int) -> bool:
        del count
        return False

    def entries(self, numbers: Numbers, place: Place) -> tuple[Entry, ...]:
        after = numbers.after[place]
        cells = (
            # Fields that have their defaults need no brackets.
            repr(self.manifold).removesuffix("()"),
            repr(self.norm).removesuffix("()"),
            (self.mass,),
            (self.sensitivity,),
            after,
            _shares_of(self, numbers.total, after) or "none",
        )
        return (Entry(self.path, cells, is_path=True),)


def _shares_of(atom: Atom, total: float, after: tuple[float, ...]) -> tuple[float, ...]:
    """Shares in a network of mass `total`; `()` if a sensitivity forbids them."""
    if atom.mass == 0:
        return (0.0,) * len(after)
    if not all(0 < s < math.inf for s in after):
        return ()
    return tuple(atom.mass / total / s for s in after)


def residual(block: Module, identity: float, weight: float) -> Module:
    """Returns `identity · x + weight · block(x)`.

    Args:
        block: module whose output has the form of its input.
        identity: factor of the input, not 0.
        weight: factor of the output of the block, not 0.

    Raises:
        TypeError: if `block` is no module, or a factor no number.
        ValueError: for a factor that is 0 or not finite.

    Example:
        >>> from manifold_optax.modular import Atom, residual, sensitivity
        >>> sensitivity(residual(3 * Atom("w"), 0.75, 0.25))
        1.5
    """
    return Sum((identity * Identity(), weight * as_module(block)))


def atoms(module: Module) -> dict[str, Atom]:
    """Returns the atoms by path, in the order of their application.

    Raises:
        ValueError: if a path stands in the module twice.
    """
    return {path: atom for path, (atom, _) in _used(module).items()}


def repeats(module: Module) -> dict[str, tuple[int, ...]]:
    """Returns, by path, the counts of the `Repeat`s around each atom, outermost first.

    They are the leading axes of the leaf, and their product is the number of slices.

    Raises:
        ValueError: if a path stands in the module twice.
    """
    return {path: use.counts for path, (_, use) in _used(module).items()}


def mass(module: Module) -> float:
    """Returns the sum of the masses of all atoms, each slice of a `Repeat` counted."""
    return as_module(module).total_mass()


def sensitivity(module: Module) -> float:
    """Returns the Lipschitz constant of the module with respect to its input.

    The size of a tuple is the sum of the sizes of its entries. `inf` where a bond has
    no finite constant.

    Raises:
        ValueError: for a bond of several operands that does not stand on a tuple of as
            many.
    """
    return max(record(as_module(module))[1])


def sensitivities(module: Module) -> dict[str, tuple[float, ...]]:
    """Returns the sensitivity of the output to each atom, by path.

    A change of the weight of norm 1, for inputs of size 1, changes the output by this
    number at most. It is the sensitivity of what comes after the atom.

    Returns:
        A tuple per path, with one number per slice: one where no `Repeat` is around the
        atom, otherwise the product of the counts, outermost first.

    Raises:
        ValueError: if a path stands in the module twice, and as `sensitivity`.

    Example:
        >>> from manifold_optax.modular import Atom, Bond, sensitivities
        >>> sensitivities(Atom("down") @ Bond("gelu", (1.129,)) @ Atom("up"))
        {'up': (1.129,), 'down': (1.0,)}
    """
    module = as_module(module)
    after, _ = record(module)
    return {path: after[use.place] for path, (_, use) in _used(module).items()}


def shares(module: Module) -> dict[str, tuple[float, ...]]:
    """Returns the factor of the learning rate for each atom, by path.

    The share of an atom is its part of the mass, divided by the sensitivity after it.
    After a step of `share · learning rate` in the atom's norm, for every atom, the
    output has changed by at most the learning rate, to first order.

    Returns:
        A tuple per path, with one number per slice as for `sensitivities`; 0 for frozen
        atoms.

    Raises:
        ValueError: if a path stands in the module twice; if the sensitivity after an
            atom that is not frozen is 0 or infinite; and as `sensitivity`.

    Example:
        >>> from manifold_optax.modular import Atom, Bond, shares
        >>> shares(Atom("down") @ Bond("gain", (2.0,)) @ Atom("up"))
        {'up': (0.25,), 'down': (0.5,)}
    """
    module = as_module(module)
    (after, _), total = record(module), module.total_mass()
    found = {}
    for path, (atom, use) in _used(module).items():
        found[path] = _shares_of(atom, total, after[use.place])
        if not found[path]:
            raise ValueError(_no_share(module, use, after[use.place]))
    return found


def _no_share(module: Module, use: Use, after: tuple[float, ...]) -> str:
    """The message for an atom that no step size fits."""
    bad = next(i for i, s in enumerate(after) if not 0 < s < math.inf)
    which = f" (slice {bad})" if len(after) > 1 else ""
    start = f"The sensitivity after {use.atom.label!r}{which} is {after[bad]:g}, "
    culprits = itertools.chain.from_iterable(
        with_constant(factor.module, after[bad])
        for factor in factors_after(module, use, bad)
        if factor.sensitivity == after[bad]
    )
    names = ", ".join(map(repr, dict.fromkeys(culprits)))
    if after[bad] == 0:
        because = f"the constant of {names} is 0" if names else "the product underflows"
        return (
            f"{start}because {because}: the atom does not reach the output. Freeze it "
            "with mass 0, or leave it out."
        )
    if names:
        return (
            f"{start}because {names} has no finite constant, so no step of the atom is "
            "small enough. Give the bond a constant that holds for its inputs, or "
            "freeze the atom with mass 0."
        )
    return (
        f"{start}because the product of the constants overflows. Scale the modules so "
        "that each constant is near 1, or freeze the atom with mass 0."
    )


def _used(module: Module) -> dict[str, tuple[Atom, Use]]:
    """The atoms by path, with the place of each."""
    found: dict[str, tuple[Atom, Use]] = {}
    module = as_module(module)
    for use in module.uses((), ()):
        atom = use.atom
        assert isinstance(atom, Atom)
        if atom.path in found:
            first = where(module, found[atom.path][1].place)
            raise ValueError(
                f"The parameter {atom.path!r} stands in the module twice: as {first}, "
                f"and as {where(module, use.place)}. What a step of it may change is "
                "then not known from one norm. Keep the atom where it decides, and put "
                "a Bond with its sensitivity in the other place."
            )
        found[atom.path] = atom, use
    return found
