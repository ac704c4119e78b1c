"""The links that the presets share."""

from typing import Any, TypeAlias

import optax

from manifold_optax import transforms
from manifold_optax._checks import require_in_range

Link: TypeAlias = tuple[str, optax.GradientTransformation]


def momentum_link(
    momentum: Any, *, nesterov: bool, debias: bool = False
) -> tuple[Link, ...]:
    """The link `"momentum"`: of a decay, a transformation as it is, none for `None`."""
    if momentum is None:
        return ()
    if isinstance(momentum, optax.GradientTransformation):
        return (("momentum", momentum),)
    link = transforms.momentum(momentum, nesterov=nesterov, debias=debias)
    return (("momentum", link),)


def learning_rate_link(learning_rate: Any) -> Link:
    """The link `"learning_rate"`, which turns the sign."""
    require_in_range("learning_rate", learning_rate, "[0, inf)", schedule=True)
    return ("learning_rate", optax.scale_by_learning_rate(learning_rate))


def weight_decay_link(weight_decay: Any) -> tuple[Link, ...]:
    """The link `"weight_decay"`, or none for `None`."""
    if weight_decay is None:
        return ()
    require_in_range("weight_decay", weight_decay, "[0, inf)")
    return (("weight_decay", optax.add_decayed_weights(weight_decay)),)


def refuse_weight_decay(preset: str, weight_decay: Any) -> None:
    """Raises ValueError: additive decay does nothing good on a manifold."""
    if weight_decay is not None:
        raise ValueError(
            f"{preset} keeps its parameters on a manifold, where additive weight decay "
            "is undone by the retraction; leave weight_decay=None and choose the size "
            f"of the manifold instead, got weight_decay={weight_decay!r}."
        )
