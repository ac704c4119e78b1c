"""What is reported of the labels of parameters, and of their uses."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

from manifold_optax.roles._roles import Roles


class LabelReport(NamedTuple):
    """The label of every parameter, by path."""

    labels: Mapping[str, str]
    others: bool = False
    """Whether the parameters that are no matrices go to `others` of `hybrid`."""


@runtime_checkable
class ReadRoles(Protocol):
    """Roles read from a computation, as of a network that `modular.read` returns."""

    @property
    def roles(self) -> Roles:
        """What each parameter is."""
        ...

    @property
    def uses(self) -> Mapping[str, str]:
        """By path, how the computation uses each parameter, in words."""
        ...


class UseReport(NamedTuple):
    """How each parameter is used, by path; `describe` prints it beside its name."""

    uses: Mapping[str, str]
