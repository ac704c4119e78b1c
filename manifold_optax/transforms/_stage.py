"""What a transformation does to one matrix, for those who run several at once."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import optax

from manifold_optax._typing import ArrayTree, Flops, Kernel
from manifold_optax.geometry import Manifold
from manifold_optax.matrices import AxesLike, Orientation, Placement, Result


class Stage(NamedTuple):
    """A transformation as a kernel on one matrix, in units of the manifold's size."""

    name: str
    """Name of the transformation, for messages."""
    kernel: Kernel
    """`(update, point, axis_name=None) -> results`; the first is the new update, the
    point has been divided by the size."""
    returns: tuple[Result, ...]
    """What each result is: a matrix, then numbers for the state."""
    in_units: bool
    """Whether the new update is relative to the size of the manifold, as the last stage
    must leave it. `False`: plain, as it came."""
    orientation: Orientation
    """How the kernel sees a matrix."""
    whole: bool
    """Whether the kernel needs whole matrices."""
    manifold: Manifold | None
    """Whose unit size the kernel is for; `None`: it does not read the point."""
    axes: AxesLike
    placement: Placement | None
    placed: bool = True
    """Whether the transformation follows a placement; `False`: entry by entry."""
    flops: Flops | None = None
    """What the kernel costs; `None`: as five steps of Newton–Schulz."""
    state: Callable[[Any, Sequence[ArrayTree]], Any] | None = None
    """New state, from the old one and the trees of numbers; `None`: the old one."""


class Staged(optax.GradientTransformationExtraArgs):
    """A transformation that works on single matrices and says how.

    It is used like any other; `optimizers` join several into one pass over the tree.
    """

    stage: Stage | None = None


def staged(init: Any, update: Any, stage: Stage) -> Staged:
    """A transformation with its stage."""
    tx = Staged(init, update)
    tx.stage = stage
    return tx
