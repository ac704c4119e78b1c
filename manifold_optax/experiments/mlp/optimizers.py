"""The compared optimizers, and what each promises about the weights."""

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import optax
from jaxtyping import Array, Float, Float32

import manifold_optax as mo
from manifold_optax.experiments.mlp.config import OptimizerName

Residual: TypeAlias = Callable[
    [Float[Array, "rows columns"], Float[Array, ""]], Float32[Array, ""]
]
"""(matrix, its initial Frobenius norm) → relative distance from the manifold."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One optimizer of the comparison, for a tree of matrices.

    Attributes:
        build: Learning rate or schedule → transformation.
        manifold: Where the initial weights are projected; None leaves them.
        residual: Distance of a matrix from the manifold; None where there is none.
    """

    build: Callable[[optax.ScalarOrSchedule], optax.GradientTransformation]
    manifold: mo.Sphere | mo.Stiefel | None = None
    residual: Residual | None = None


def recipe(optimizer: OptimizerName, *, weight_decay: float) -> Recipe:
    """Returns the recipe of one optimizer, with the published settings.

    Args:
        optimizer: Its name.
        weight_decay: Decoupled weight decay of AdamW.

    Returns:
        Its recipe.
    """
    match optimizer:
        case "adamw":
            return Recipe(lambda rate: optax.adamw(rate, weight_decay=weight_decay))
        case "muon":
            return Recipe(lambda rate: mo.muon(rate, momentum=0.95, nesterov=True))
        case "hyperspherical":
            return _hyperspherical(
                mo.Sphere(1.0), lambda kernel, _: mo.Sphere(1.0).residual(kernel)
            )
        case "hyperspherical_kept":
            return _hyperspherical(
                mo.Sphere("kept"),
                lambda kernel, norm: mo.Sphere(1.0).residual(kernel / norm),
            )
        case "manifold_muon":
            stiefel = mo.Stiefel()
            return Recipe(
                lambda rate: mo.manifold_muon(rate, manifold=stiefel, momentum=None),
                manifold=stiefel,
                residual=lambda kernel, _: stiefel.residual(kernel),
            )


def _hyperspherical(manifold: mo.Sphere, residual: Residual) -> Recipe:
    return Recipe(
        lambda rate: mo.hyperspherical_descent(rate, manifold=manifold, momentum=None),
        manifold=manifold,
        residual=residual,
    )
