"""How one learning rate is shared among the parameters of a network."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable, TypeAlias

from manifold_optax._checks import require_flag, require_in_range, require_one_of
from manifold_optax.modular._algebra._module import Atom
from manifold_optax.modular._budgets._rules import (
    check_keys,
    first_match,
    fits,
    plain_name,
)
from manifold_optax.roles import OTHER, VECTOR

Sensitivity: TypeAlias = Literal["nominal", "derived"]
"""`"nominal"`: the input of each atom has RMS 1, as the theory assumes; `"derived"`:
the sizes of the inputs are bounds that the reading derives."""

PerSlice: TypeAlias = Mapping[str, tuple[float, ...]]
"""Path → one number per slice of a scanned stack, one for every other parameter."""

MassRules: TypeAlias = Mapping[str, float | None]
"""Label or pattern → mass of each layer; `None`: the parameter is left to others."""

MEASURED = "measured"
"""The kind of a budget whose sensitivities are estimates."""

KINDS: tuple[Sensitivity, ...] = ("nominal", "derived")
"""The sensitivities that a reading has."""

_HEADER = ("path", "role", "manifold", "norm", "mass", "sensitivity", "share")


@runtime_checkable
class ReadModule(Protocol):
    """What budgets and optimizers need of a network; `read` returns one."""

    @property
    def atoms(self) -> tuple[Atom, ...]:
        """One per parameter, vectors included, in the order of the tree's leaves."""
        ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Path of each parameter → shape of its leaf."""
        ...

    @property
    def slices(self) -> Mapping[str, int]:
        """Path of each parameter → layers of the stack that it is, 1 for no stack."""
        ...

    def sensitivity(self, path: str, kind: Any) -> tuple[float, ...]:
        """How much the output changes with one parameter, slice by slice."""
        ...


Addition: TypeAlias = Literal["worst", "independent"]
"""How changes of the output add up: as sizes, which is the worst case, or as the sizes
of independent vectors do, whose squares add."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """Shares of a learning rate; make one with `budget` or `measured_budget`.

    `print(budget)` shows it as a table.

    Attributes:
        kind: `"nominal"`, `"derived"` or `"measured"`.
        atoms: the parameters that have a share, with their final masses.
        sensitivities: path → change of the output per unit step, slice by slice.
        shares: path → length of the step per unit learning rate, slice by slice. The
            sum of share × sensitivity over all of them is 1; for changes that add up
            like independent ones that of the squares.
    """

    kind: str
    atoms: tuple[Atom, ...]
    sensitivities: PerSlice
    shares: PerSlice

    def share(self, path: str) -> tuple[float, ...]:
        """The share of the parameter at `path`, one number per slice.

        Raises:
            KeyError: for a path without a share; the message lists those with one.
        """
        if path not in self.shares:
            raise KeyError(
                f"{path!r} has no share in this budget. These have one: "
                f"{', '.join(self.shares)}. The others belong to the optimizer of the "
                "remaining parameters; vectors=True gives a share to vectors too."
            )
        return self.shares[path]

    @property
    def masses(self) -> dict[str, float]:
        """Path → mass of the parameter, of all its slices together."""
        return {a.path: a.mass * len(self.shares[a.path]) for a in self.atoms}

    def __str__(self) -> str:
        """One line per parameter; equal slices once, others by their range."""
        masses = self.masses
        rows = [_HEADER, *(self._row(atom, masses[atom.path]) for atom in self.atoms)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
        title = f"{self.kind} budget"
        if self.kind == MEASURED:
            title += " (sensitivities are estimates, not bounds)"
        return "\n".join([title, *lines])

    def _row(self, atom: Atom, mass: float) -> tuple[str, ...]:
        return (
            atom.path,
            atom.role,
            plain_name(atom.manifold),
            plain_name(atom.norm),
            f"{mass:.4g}",
            _numbers(self.sensitivities[atom.path]),
            _numbers(self.shares[atom.path]),
        )


def budget(
    module: ReadModule,
    *,
    sensitivity: Sensitivity = "nominal",
    vectors: bool = False,
    masses: MassRules | None = None,
    tare: Mapping[str, float] | None = None,
) -> Budget:
    """Shares one learning rate among the parameters of a network.

    A parameter of mass `m` of a total `M`, to which the output has the sensitivity `s`,
    gets the share `(m/M)/s`: the length of its step in its norm, per unit learning
    rate. To first order the output then changes by at most the learning rate, of which
    the part `m/M` comes from this parameter. A scanned stack of layers counts like its
    layers written out: each slice has the mass of the parameter and its own share.

    Args:
        module: what `read` returns.
        sensitivity: `"nominal"` takes the input of every parameter for one of RMS 1;
            `"derived"` takes the sizes that the reading derives, which are bounds of
            the worst case.
        vectors: whether biases and gains have shares; else they belong to another
            optimizer. Parameters of the role `"other"` never have one.
        masses: label or pattern of paths → mass ≥ 0 of each layer, in place of the
            mass of the atom; the first key that fits wins. Mass 0 freezes a
            parameter; `None` leaves it to another optimizer.
        tare: label or pattern of paths → mass > 0 that all parameters that it fits
            have together; a parameter belongs to the first key that fits.

    Returns:
        A `Budget`.

    Raises:
        TypeError: for arguments of another kind.
        ValueError: for keys that fit no parameter, for masses that are negative or all
            zero, and for sensitivities that are zero or infinite, naming the paths.

    Example:
        >>> def forward(params, x):
        ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
        >>> params, x = {"up": jnp.eye(4), "down": jnp.eye(4)}, jnp.ones((2, 4))
        >>> module = mo.modular.read(forward, params, x)
        >>> print(budget(module, masses={"up": 3.0}))
        nominal budget
        path  role     manifold   norm      mass  sensitivity  share
        down  readout  Euclidean  RmsToRms  1     1            0.25
        up    matrix   Euclidean  RmsToRms  3     1            0.75

    Source: T. Large et al., "Scalable Optimization in the Modular Norm" (arXiv
    2405.14813, 2024).
    """
    check_module("module", module)
    require_one_of("sensitivity", sensitivity, KINDS)
    atoms = sharing_atoms(module, vectors=vectors, masses=masses)
    found = {atom.path: module.sensitivity(atom.path, sensitivity) for atom in atoms}
    return budget_of(sensitivity, atoms, found, tare=tare)


def check_module(name: str, module: Any) -> None:
    """Raises TypeError unless `module` is a network as `read` returns it."""
    if isinstance(module, type) or not isinstance(module, ReadModule):
        raise TypeError(
            f"{name} must be what mo.modular.read(forward, params, *inputs) returns, "
            f"got {module!r}."
        )


def sharing_atoms(
    module: ReadModule, *, vectors: bool, masses: MassRules | None
) -> tuple[Atom, ...]:
    """The atoms that have a share, with the masses of the rules.

    Raises:
        TypeError: for arguments of another kind.
        ValueError: for keys that fit no parameter, for a negative mass, and if no
            parameter is left.
    """
    require_flag("vectors", vectors)
    rules: MassRules = {} if masses is None else masses
    check_keys("masses", rules, module.atoms, "mass >= 0 or None")
    for key, mass in rules.items():
        require_in_range(
            f"the mass of {key!r} in masses", mass, "[0, inf)", optional=True
        )
    left_out = (OTHER,) if vectors else (OTHER, VECTOR)
    found = []
    for atom in module.atoms:
        fitting = any(fits(key, atom.path, atom.role) for key in rules)
        mass = first_match(rules, atom.path, atom.role) if fitting else atom.mass
        if mass is not None and atom.role not in left_out:
            found.append(dataclasses.replace(atom, mass=float(mass)))
    if not found:
        roles = {atom.path: atom.role for atom in module.atoms}
        raise ValueError(
            "No parameter has a share: vectors have one with vectors=True, and what "
            f"masses give None has none. The roles are: {roles}."
        )
    return tuple(found)


def check_tare(tare: Mapping[str, float] | None, atoms: Sequence[Atom]) -> None:
    """Raises TypeError or ValueError for invalid keys and masses of `tare`."""
    if tare is None:
        return
    check_keys("tare", tare, atoms, "mass > 0")
    for key, mass in tare.items():
        require_in_range(f"the mass of {key!r} in tare", mass, "(0, inf)")


def budget_of(
    kind: str,
    atoms: Sequence[Atom],
    sensitivities: PerSlice,
    *,
    tare: Mapping[str, float] | None,
    addition: Addition = "worst",
) -> Budget:
    """The budget of these atoms and sensitivities.

    Raises:
        TypeError: for a `tare` of another kind.
        ValueError: as `budget`.
    """
    own = {atom.path: tuple(sensitivities[atom.path]) for atom in atoms}
    counts = {path: len(numbers) for path, numbers in own.items()}
    atoms = _tared(atoms, counts, tare)
    _check_sensitivities(kind, atoms, own)
    total = math.fsum(atom.mass * counts[atom.path] for atom in atoms)
    if not total > 0:
        raise ValueError(
            "All parameters have the mass 0, so that none would move; give at least "
            f"one of them a mass above 0. Their paths are: {', '.join(own)}."
        )
    power = 0.5 if addition == "independent" else 1.0
    parts = {a.path: (a.mass / total) ** power for a in atoms}
    shares = {path: _shares(part, own[path]) for path, part in parts.items()}
    return Budget(kind, tuple(atoms), own, shares)


def _shares(part: float, sensitivities: Sequence[float]) -> tuple[float, ...]:
    """The shares of the slices of a parameter, each with this part of the mass."""
    return tuple(part / number if part else 0.0 for number in sensitivities)


def _tared(
    atoms: Sequence[Atom], counts: Mapping[str, int], tare: Mapping[str, float] | None
) -> tuple[Atom, ...]:
    """The atoms, where those of a group have together the mass of its key."""
    tare = {} if tare is None else tare
    check_tare(tare, atoms)
    group_of = {
        atom.path: next((k for k in tare if fits(k, atom.path, atom.role)), None)
        for atom in atoms
    }
    sums = {
        key: math.fsum(
            atom.mass * counts[atom.path]
            for atom in atoms
            if group_of[atom.path] == key
        )
        for key in tare
    }
    empty = [key for key, mass in sums.items() if not mass > 0]
    if empty:
        raise ValueError(
            f"The parameters of the keys {empty} of tare have no mass to rescale: each "
            "of them has the mass 0, or belongs to a key before this one."
        )

    def rescaled(atom: Atom) -> Atom:
        key = group_of[atom.path]
        if key is None:
            return atom
        return dataclasses.replace(atom, mass=atom.mass * tare[key] / sums[key])

    return tuple(map(rescaled, atoms))


def _check_sensitivities(
    kind: str, atoms: Iterable[Atom], sensitivities: PerSlice
) -> None:
    """Raises ValueError for sensitivities without which there is no share."""
    moving = [atom.path for atom in atoms if atom.mass]
    idle = [path for path in moving if 0.0 in sensitivities[path]]
    if idle:
        raise ValueError(
            f"The {kind} sensitivity of the output to these parameters is 0: {idle}. "
            "They do not reach the output, or a factor of 0 stands behind them (a "
            "readout that starts at zero, for a measured budget). Leave them to "
            "another optimizer, masses={pattern: None}, or freeze them, "
            "masses={pattern: 0.0}."
        )
    vague = [p for p in moving if not all(map(math.isfinite, sensitivities[p]))]
    if vague:
        raise ValueError(
            f"The {kind} sensitivity of the output to these parameters is not finite: "
            f"{vague}. module.explain(path) shows which factor has no bound. Declare "
            'a bound of it, take sensitivity="nominal" or measured_budget, or leave '
            "the parameters to another optimizer: masses={pattern: None}."
        )


def _numbers(numbers: Sequence[float]) -> str:
    """The numbers of all slices in one cell."""
    low, high = min(numbers), max(numbers)
    if len(numbers) == 1:
        return f"{low:.4g}"
    # Slices that differ by rounding of float64 alone are equal to the reader.
    if math.isclose(low, high, rel_tol=1e-9):
        return f"{len(numbers)} × {low:.4g}"
    return f"{len(numbers)} × {low:.4g} … {high:.4g}"
