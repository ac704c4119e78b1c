"""The links that the presets share, and the two ends of their chains."""

from typing import TypeAlias, TypedDict, TypeVar, Unpack

import optax

from manifold_optax import transforms
from manifold_optax._checks import require_flag, require_in_range, require_instance
from manifold_optax._typing import Scalar
from manifold_optax.geometry import Manifold
from manifold_optax.matrices import AxesLike, Placement
from manifold_optax.transforms._landing import landing_chain

Link: TypeAlias = tuple[str, optax.GradientTransformation]

Momentum: TypeAlias = Scalar | transforms.Average | optax.GradientTransformation | None
"""What every argument `momentum` takes."""


class Places(TypedDict):
    """Where the matrices lie in a leaf, and on which devices."""

    axes: AxesLike
    placement: Placement | None


_M = TypeVar("_M", bound=Manifold)


def momentum_link(
    momentum: Momentum, *, nesterov: bool, debias: bool = False
) -> tuple[Link, ...]:
    """The link `"momentum"`: of a decay, a transformation as it is, none for `None`.

    The dtype of an average comes inside of the argument `momentum`, since not every
    preset has room for an argument more. A transformation in its place would have to
    repeat whether the preset's own looks ahead and is debiased.
    """
    require_flag("nesterov", nesterov)
    if momentum is None:
        return ()
    if isinstance(momentum, optax.GradientTransformation):
        return (("momentum", momentum),)
    dtype = None
    if isinstance(momentum, transforms.Average):
        momentum, dtype = momentum.decay, momentum.dtype
    require_in_range("momentum", momentum, "[0, 1)")
    link = transforms.momentum(momentum, nesterov=nesterov, debias=debias, dtype=dtype)
    return (("momentum", link),)


def manifold_of(preset: str, manifold: _M | None, default: _M) -> _M:
    """The manifold of a preset, which must be of the class of its default."""
    if manifold is None:
        return default
    require_instance(f"manifold of {preset}", manifold, type(default))
    return manifold


def free_chain(
    *links: Link,
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: Scalar | None,
) -> optax.GradientTransformationExtraArgs:
    """The chain without a constraint: links, weight decay, learning rate."""
    decay: tuple[Link, ...] = ()
    if weight_decay is not None:
        require_in_range("weight_decay", weight_decay, "[0, inf)")
        decay = (("weight_decay", optax.add_decayed_weights(weight_decay)),)
    return optax.named_chain(*links, *decay, _learning_rate(learning_rate))


def manifold_chain(
    preset: str,
    manifold: Manifold,
    *links: Link,
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: None,
    **places: Unpack[Places],
) -> optax.GradientTransformationExtraArgs:
    """The chain that stays on a manifold: links, learning rate, retraction.

    Raises:
        ValueError: for a weight decay, which does nothing good on a manifold.
    """
    if weight_decay is not None:
        raise ValueError(
            f"{preset} keeps its parameters on a manifold, where additive weight decay "
            "is undone by the retraction; leave weight_decay=None and choose the size "
            f"of the manifold instead, got weight_decay={weight_decay!r}."
        )
    rate = _learning_rate(learning_rate)
    return landing_chain(manifold, links, rate, **places)


def _learning_rate(learning_rate: optax.ScalarOrSchedule) -> Link:
    """The link that turns the sign.

    Not `"learning_rate"`: `optax.tree.get` looks for an injected rate by that name.
    """
    require_in_range("learning_rate", learning_rate, "[0, inf)", schedule=True)
    return ("scale_by_learning_rate", optax.scale_by_learning_rate(learning_rate))
