"""Hyperspherical descent: the sphere under the Frobenius norm."""

import optax

from manifold_optax import transforms
from manifold_optax.geometry import Frobenius, Sphere
from manifold_optax.matrices import AxesLike, Placement
from manifold_optax.optimizers._links import (
    manifold_chain,
    manifold_of,
    Momentum,
    momentum_link,
)


def hyperspherical_descent(
    learning_rate: optax.ScalarOrSchedule,
    *,
    manifold: Sphere | None = None,
    momentum: Momentum = None,
    nesterov: bool = False,
    weight_decay: None = None,
    axes: AxesLike = None,
    placement: Placement | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Hyperspherical descent for a group of matrices: each keeps its Frobenius norm.

    The chain is `momentum → direction → learning_rate → retraction`: the gradient
    without its radial part, normalised, a step, and the way back to the sphere. A step
    of learning rate `η` turns a matrix by the angle `atan(η)`.

    Args:
        learning_rate: number ≥ 0 or schedule; the step in units of the radius.
        manifold: `Sphere(radius)`; `None`: radius 1. `Sphere("kept")` keeps the norm
            that each matrix has; a zero matrix then stays zero.
        momentum: decay of the average in [0, 1), or a transformation in its place,
            e.g. `momentum(0.9, transport=manifold)`; `None`: none, as published.
        nesterov: whether the average looks one step ahead.
        weight_decay: not supported, because the retraction would undo it. Any other
            value than `None` raises an error that explains this.
        axes: which axes of a leaf are the matrix; all others are batch axes.
        placement: which device computes which matrix; `None`: see `map_matrices`.

    Returns:
        A named chain; `update` needs `params`.

    Raises:
        ValueError: for numbers out of range and a weight decay; at init, naming the
            leaf, for one that is not a batch of matrices or not on the manifold.

    Example:
        >>> params = project({"w": jnp.ones((4, 2))}, Sphere())
        >>> tx = hyperspherical_descent(0.1)
        >>> gradient = {"w": jnp.arange(8.0).reshape(4, 2)}
        >>> updates, _ = tx.update(gradient, tx.init(params), params)
        >>> jnp.linalg.norm(optax.apply_updates(params, updates)["w"]).round(5)
        Array(1., dtype=float32)

    Source: J. Bernstein, "Modular Manifolds", Thinking Machines Lab (2025).
    """
    manifold = manifold_of("hyperspherical_descent", manifold, Sphere())
    direction = transforms.steepest(
        manifold, Frobenius(), axes=axes, placement=placement
    )
    return manifold_chain(
        "hyperspherical_descent",
        manifold,
        *momentum_link(momentum, nesterov=nesterov),
        ("direction", direction),
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        axes=axes,
        placement=placement,
    )
