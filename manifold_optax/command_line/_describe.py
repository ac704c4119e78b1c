"""`manifold-optax describe`: a model as it is read from its computation."""

import dataclasses
import importlib
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import optax
import tyro

import manifold_optax as mo
from manifold_optax.command_line._answer import Answer, CommandError, Options
from manifold_optax.diagnostics import Description

_WANTED = (
    "It takes no arguments and returns (forward, params, *inputs), where "
    "forward(params, *inputs) is the output of the model; or (optimizer, params)"
)


@dataclasses.dataclass(frozen=True)
class Described(Answer):
    """A model, and its budget where its computation was read."""

    description: Description
    network: mo.modular.Network | None

    def __str__(self) -> str:
        """The tree of the network, then the table of the parameters and the plan."""
        parts = [] if self.network is None else [self.network]
        return "\n\n".join(map(str, [*parts, self.description]))

    def as_json(self) -> Any:
        """The parameters, the plans, and the shares of the learning rate."""
        leaves = [
            {
                "path": leaf.path,
                "shape": leaf.shape,
                "dtype": leaf.dtype,
                "label": leaf.label,
                "matrices": leaf.count,
                "sizes": leaf.sizes,
                "links": leaf.links,
                "use": leaf.use,
            }
            for leaf in self.description.leaves
        ]
        found: dict[str, Any] = {
            "parameters": leaves,
            "plans": [str(plan).splitlines() for plan in self.description.plans],
        }
        if self.network is not None:
            budget = mo.modular.budget(self.network)
            found["shares"] = dict(budget.shares)
            found["sensitivities"] = dict(budget.sensitivities)
        return found


@dataclasses.dataclass(frozen=True)
class Describe(Options):
    """Reads a model: what each parameter is, and its share of the learning rate.

    Nothing is trained, and no name is taken for a fact. MODULE:FACTORY is a function
    of a module that can be imported from here. It takes no arguments and returns
    (forward, params, *inputs), where forward(params, *inputs) is the output of the
    model; or (optimizer, params).
    """

    factory: Annotated[
        str, tyro.conf.Positional, tyro.conf.arg(metavar="MODULE:FACTORY")
    ]
    """where the function is"""

    def answer(self) -> Described:
        """Reads what the factory returns.

        Raises:
            CommandError: the factory cannot be found or called, or the model not read.
        """
        first, params, *inputs = _made(self.factory)
        try:
            if isinstance(first, optax.GradientTransformation):
                return Described(mo.describe(first, params), None)
            network = mo.modular.read(first, params, *inputs)
            return Described(mo.describe(network, params), network)
        except (TypeError, ValueError) as error:
            raise CommandError(str(error)) from error


def _made(name: str) -> tuple[Any, ...]:
    """What the factory returns."""
    made = _factory(name)()
    if isinstance(made, tuple) and len(made) >= 2:
        first = made[0]
        is_pair = len(made) == 2 and isinstance(first, optax.GradientTransformation)
        if is_pair or callable(first):
            return made
    raise CommandError(f"{name} returned {type(made).__name__}. {_WANTED}")


def _factory(name: str) -> Callable[[], Any]:
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise CommandError(
            f"wanted MODULE:FACTORY, such as my_model:build, got {name!r}"
        )
    # As `python -m` does: a module of this directory can be imported.
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        raise CommandError(
            f"no module {error.name!r} can be imported from {os.getcwd()}"
        ) from error
    finally:
        sys.path.pop(0)
    if not callable(found):
        raise CommandError(f"{module} has no function {attribute!r}. {_WANTED}")
    return found


OPTIONS = Describe
