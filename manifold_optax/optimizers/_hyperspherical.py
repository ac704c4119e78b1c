"""Hyperspherical descent: the sphere under the Frobenius norm."""

import optax

from manifold_optax import transforms
from manifold_optax.geometry import Frobenius, Sphere
from manifold_optax.matrices import AxesLike, Placement
from manifold_optax.optimizers import _links as links


def hyperspherical_descent(
    learning_rate: optax.ScalarOrSchedule,
    *,
    manifold: Sphere | None = None,
    momentum: links.Momentum = None,
    nesterov: bool = False,
    weight_decay: None = None,
    axes: AxesLike = None,
    placement: Placement | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Hyperspherical descent for a group of matrices: each keeps its Frobenius norm.

    The chain is `momentum → direction → scale_by_learning_rate → retraction`: the
    gradient without its radial part, normalised, a step, and the way back to the
    sphere. A step of learning rate `η` turns a matrix by the angle `atan(η)`.

    Args:
        learning_rate: number ≥ 0 or schedule; the step in units of the radius.
        manifold: `Sphere(radius)`; `None`: radius 1. `Sphere("kept")` keeps the norm
            that each matrix has; a zero matrix then stays zero.
        momentum, nesterov, weight_decay, axes, placement: as for `manifold_muon`.

    Returns:
        A named chain. It needs and raises what `manifold_muon` does.

    Example:
        >>> params = project({"w": jnp.ones((4, 2))}, Sphere())
        >>> tx = hyperspherical_descent(0.1)
        >>> gradient = {"w": jnp.arange(8.0).reshape(4, 2)}
        >>> updates, _ = tx.update(gradient, tx.init(params), params)
        >>> jnp.linalg.norm(optax.apply_updates(params, updates)["w"]).round(5)
        Array(1., dtype=float32)

    Source: J. Bernstein, "Modular Manifolds", Thinking Machines Lab (2025).
    """
    manifold = links.manifold_of("hyperspherical_descent", manifold, Sphere())
    places = links.Places(axes=axes, placement=placement)
    direction = transforms.steepest(manifold, Frobenius(), **places)
    return links.manifold_chain(
        "hyperspherical_descent",
        manifold,
        *links.momentum_link(momentum, nesterov=nesterov),
        ("direction", direction),
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        **places,
    )
