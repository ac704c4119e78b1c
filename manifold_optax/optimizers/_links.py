"""The links that the presets share."""

from typing import Any, TypeAlias

import optax

from manifold_optax import transforms

Link: TypeAlias = tuple[str, optax.GradientTransformation]


def momentum_link(
    momentum: Any, *, nesterov: bool, debias: bool = False
) -> tuple[Link, ...]:
    """The link `"momentum"`, or none for `None`."""
    if momentum is None:
        return ()
    link = transforms.momentum(momentum, nesterov=nesterov, debias=debias)
    return (("momentum", link),)


def refuse_weight_decay(preset: str, weight_decay: Any) -> None:
    """Raises ValueError: additive decay does nothing good on a manifold."""
    if weight_decay is not None:
        raise ValueError(
            f"{preset} keeps its parameters on a manifold, where additive weight decay "
            "is undone by the retraction; leave weight_decay=None and choose the size "
            f"of the manifold instead, got weight_decay={weight_decay!r}."
        )
