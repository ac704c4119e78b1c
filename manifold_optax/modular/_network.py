"""A network as it was read."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

from manifold_optax._checks import require_one_of
from manifold_optax.modular._algebra._module import Atom, Module
from manifold_optax.modular._bounds._sensitivities import Analysis
from manifold_optax.modular._bounds._sizes import Assumptions, Unreadable
from manifold_optax.modular._computation._fuse import fuse
from manifold_optax.modular._computation._graph import Graph
from manifold_optax.modular._explain import explained
from manifold_optax.modular._primitives import slices_of
from manifold_optax.modular._tree import tree_of
from manifold_optax.roles import Roles, VECTOR

Sensitivity: TypeAlias = Literal["nominal", "derived"]
"""What sensitivities rest on; see `Network.sensitivities`."""


TOO_DEEP = (
    "The computation is too deep to be followed step by step: write steps that repeat "
    "themselves, such as those of a recurrent network, as a jax.lax.scan."
)


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """What `read` found in a function: its parameters, and how they reach the output.

    Attributes:
        function: as it was given, returning the output that counts alone.
        graph: its computation.
        shapes: of the parameters, by path.
        atoms: the parameters, in the order of their leaves.
        roles: labels and axes, for `hybrid`, `project`, `describe` and all `axes`.
        uses: by path, how the function uses each parameter, in words.
        input_rms: bounds of the inputs.
        floor: least RMS of what enters a norm layer.
    """

    function: Callable[..., Any]
    graph: Graph
    shapes: Mapping[str, tuple[int, ...]]
    atoms: tuple[Atom, ...]
    roles: Roles
    uses: Mapping[str, str]
    input_rms: tuple[float, ...]
    floor: float
    _analyses: dict[str, Analysis] = dataclasses.field(default_factory=dict, repr=False)

    def sensitivities(
        self, kind: Sensitivity = "nominal"
    ) -> dict[str, tuple[float, ...]]:
        """How much a unit step of each parameter can change the RMS of the output.

        To first order, over the last axis of the output, at the worst position.

        Args:
            kind: `"nominal"`: the accounting of the theory: every matrix, norm layer
                and product of activations takes inputs of RMS 1, and biases are 0.
                `"derived"`: a bound for all weights on their manifolds, or in the unit
                balls of their norms, and all inputs of the declared sizes.

        Returns:
            By path, one number for each slice of a scanned stack.

        Raises:
            ValueError: for a step that has no rule, with the parameter and the line.
        """
        return {atom.path: self.sensitivity(atom.path, kind) for atom in self.atoms}

    def sensitivity(
        self, path: str, kind: Sensitivity = "nominal"
    ) -> tuple[float, ...]:
        """The same of one parameter."""
        require_one_of("path", path, tuple(self.shapes))
        try:
            return self.analysis(kind).sensitivity(path)
        except Unreadable as error:
            raise Unreadable(f"No sensitivity of {path!r} is known. {error}") from None
        except RecursionError:
            why = f"No sensitivity of {path!r} is known. {TOO_DEEP}"
            raise Unreadable(why) from None

    @property
    def slices(self) -> dict[str, int]:
        """By path, the layers of the scanned stack that a parameter is; else 1."""
        fused = fuse(self.graph)
        uses = fused.uses()
        leaves = zip(self.shapes, fused.inputs, strict=False)
        return {path: slices_of(leaf, uses) for path, leaf in leaves}

    def explain(self, path: str, kind: Sensitivity = "nominal") -> str:
        """The factors from a parameter to the output, one line each.

        Raises:
            ValueError: for a path that is no parameter, and a step without a rule.
        """
        require_one_of("path", path, tuple(self.shapes))
        return explained(self.analysis(kind), path)

    @property
    def tree(self) -> Module:
        """The network as an expression of the algebra, in the accounting of the theory.

        Its sensitivities are those of one norm for each value, which may be larger than
        `sensitivities` says.
        """
        try:
            return tree_of(self.analysis("nominal"), self.atoms)
        except RecursionError:
            raise Unreadable(TOO_DEEP) from None

    def analysis(self, kind: Sensitivity) -> Analysis:
        """Sizes and gains under one set of assumptions, computed once."""
        require_one_of("kind", kind, ("nominal", "derived"))
        if kind not in self._analyses:
            assumptions = Assumptions(nominal=kind == "nominal", floor=self.floor)
            self._analyses[kind] = Analysis(
                fuse(self.graph), self.atoms, self.input_rms, assumptions
            )
        return self._analyses[kind]

    def __str__(self) -> str:
        """The tree, or where there is none the parameters and the reason."""
        missing = "No budget"
        try:
            for atom in self.atoms:
                if atom.role != VECTOR:
                    self.sensitivity(atom.path)
            missing = "No tree"
            return str(self.tree)
        except Unreadable as error:
            lines = [f"{atom.path}: {atom.role}" for atom in self.atoms]
            return "\n".join([*lines, f"{missing}: {error}"])
