"""The compared optimizers, and what each promises about the weights."""

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any, TypeAlias

import jax
import optax
from jaxtyping import Array, Float, Float32

import manifold_optax as mo
from manifold_optax.experiments.mlp.config import OptimizerName

Residual: TypeAlias = Callable[
    [Float[Array, "rows columns"], Float[Array, ""]], Float32[Array, ""]
]
"""(matrix, its initial Frobenius norm) → relative distance from the manifold."""

# On the Stiefel manifold of scale 1 the logits stay small: their norm is at most that
# of the input, and ReLU and the narrowing layers take most of it. ReLU without biases
# passes a factor on, so that only the product of the scales of all layers counts.
# Scales 1, 2, 4, 8 and 16 on digits, 3 epochs at learning rate 0.1, on 287 held-out
# images, mean of three seeds: 96.5, 97.9, 98.7, 98.8 and 99.2 %.
_READOUT_SCALE = 8.0


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One optimizer of the comparison, for a tree of matrices.

    Attributes:
        build: Learning rate or schedule → transformation.
        project: Initial weights → weights to start from.
        residuals: (weights, their initial Frobenius norms) → distance of each from its
            manifold; None where there is none.
    """

    build: Callable[[optax.ScalarOrSchedule], optax.GradientTransformation]
    project: Callable[[Any], Any] = lambda params: params
    residuals: Callable[[Any, Any], Any] | None = None


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
                project=lambda params: mo.project(params, stiefel),
                residuals=_of_each(lambda kernel, _: stiefel.residual(kernel)),
            )
        case "manifold_muon_scaled":
            return _scaled_readout(mo.Stiefel(), mo.Stiefel(scale=_READOUT_SCALE))


def _hyperspherical(manifold: mo.Sphere, residual: Residual) -> Recipe:
    return Recipe(
        lambda rate: mo.hyperspherical_descent(rate, manifold=manifold, momentum=None),
        project=lambda params: mo.project(params, manifold),
        residuals=_of_each(residual),
    )


def _scaled_readout(hidden: mo.Stiefel, readout: mo.Stiefel) -> Recipe:
    """Manifold Muon whose last matrix lies on a manifold of its own."""
    manifolds = {"hidden": hidden, "readout": readout}

    def build(rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
        parts: dict[Hashable, optax.GradientTransformation] = {
            label: mo.manifold_muon(rate, manifold=manifold, momentum=None)
            for label, manifold in manifolds.items()
        }
        return optax.partition(parts, _label_layers)

    def project(params: Any) -> Any:
        move = lambda label, kernel: mo.project(kernel, manifolds[label])
        return jax.tree.map(move, _label_layers(params), params)

    def residuals(params: Any, norms: Any) -> Any:
        del norms
        measure = lambda label, kernel: manifolds[label].residual(kernel)
        return jax.tree.map(measure, _label_layers(params), params)

    return Recipe(build, project, residuals)


def _label_layers(params: Any) -> Any:
    kernels, structure = jax.tree.flatten(params)
    return structure.unflatten(["hidden"] * (len(kernels) - 1) + ["readout"])


def _of_each(residual: Residual) -> Callable[[Any, Any], Any]:
    return lambda params, norms: jax.tree.map(residual, params, norms)
