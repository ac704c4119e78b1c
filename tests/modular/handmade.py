"""Networks written by hand: atoms, shapes and sensitivities, as a reading has them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import manifold_optax as mo
from manifold_optax.modular._algebra._module import Atom
from manifold_optax.trees import leaves_by_path


@dataclasses.dataclass(frozen=True)
class Handmade:
    """What `budget` and the optimizers need of a network that was read."""

    atoms: tuple[Atom, ...]
    shapes: Mapping[str, tuple[int, ...]]
    nominal: Mapping[str, tuple[float, ...]]
    derived: Mapping[str, tuple[float, ...]] | None = None
    function: Callable[..., Any] | None = None
    roles: mo.Roles = mo.roles()  # noqa: RUF009 - immutable

    @property
    def slices(self) -> Mapping[str, int]:
        return {path: len(numbers) for path, numbers in self.nominal.items()}

    def sensitivity(self, path: str, kind: str) -> tuple[float, ...]:
        found = self.nominal if kind == "nominal" else self.derived
        assert found is not None
        return found[path]


def handmade(
    params: Any,
    atoms: Sequence[Atom],
    sensitivities: Mapping[str, Any] | None = None,
    **facts: Any,
) -> Handmade:
    """A network of these parameters; all sensitivities are 1 where none are given."""
    given = {} if sensitivities is None else sensitivities
    found = {atom.path: np.atleast_1d(given.get(atom.path, 1.0)) for atom in atoms}
    nominal = {path: tuple(map(float, numbers)) for path, numbers in found.items()}
    shapes = {k: tuple(v.shape) for k, v in leaves_by_path(params).items()}
    return Handmade(tuple(atoms), shapes, nominal, **facts)


def gaussian(shapes: Any, seed: int = 0, dtype: Any = jnp.float32) -> Any:
    """Standard Gaussian arrays in place of shapes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape), dtype),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )
