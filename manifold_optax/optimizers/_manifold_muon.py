"""Manifold Muon: the Stiefel manifold under the spectral norm."""

from typing import Any

import optax

from manifold_optax import transforms
from manifold_optax.geometry import Stiefel
from manifold_optax.matrices import AxesLike, Placement
from manifold_optax.optimizers._links import (
    learning_rate_link,
    momentum_link,
    refuse_weight_decay,
)


def manifold_muon(
    learning_rate: Any,
    *,
    manifold: Stiefel | None = None,
    momentum: Any = None,
    nesterov: bool = False,
    weight_decay: None = None,
    steps: int | None = None,
    axes: AxesLike = None,
    placement: Placement | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Manifold Muon for a group of matrices: all singular values stay equal.

    The chain is `momentum → direction → learning_rate → retraction`, with
    `dual_ascent_spectral` as direction and the manifold's retraction. Project the
    parameters first (`mo.project(params, Stiefel())`), and let no transformation follow
    the chain.

    Args:
        learning_rate: number ≥ 0 or schedule; the spectral norm of the step in units of
            the manifold's scale. The published run uses 0.1 with a linear decay.
        manifold: `Stiefel(scale, retraction)`; `None`: scale 1, polar.
        momentum: decay of the average in [0, 1), or a transformation in its place,
            e.g. `momentum(0.9, transport=manifold)`; `None`: none, as published.
        nesterov: whether the average looks one step ahead.
        weight_decay: must be `None`; here so that asking for it is an error that says
            why.
        steps: steps of the dual solver; `None`: by shape and backend. For a tolerance
            or a certificate chain `dual_ascent_spectral` yourself.
        axes: which axes of a leaf are the matrix; all others are batch axes.
        placement: which device computes which matrix; `None`: see `map_matrices`.

    Returns:
        A named chain; `update` needs `params`.

    Raises:
        ValueError: for numbers out of range, a weight decay, or (at update) a leaf that
            is not a batch of matrices, naming it.

    Example:
        >>> params = project({"w": jnp.arange(8.0).reshape(4, 2) ** 2}, Stiefel())
        >>> tx = manifold_muon(0.1)
        >>> updates, _ = tx.update({"w": jnp.ones((4, 2))}, tx.init(params), params)
        >>> w = optax.apply_updates(params, updates)["w"]
        >>> bool(Stiefel().residual(w) < 1e-6)
        True

    Source: J. Bernstein, "Modular Manifolds", Thinking Machines Lab (2025).
    """
    refuse_weight_decay("manifold_muon", weight_decay)
    manifold = Stiefel() if manifold is None else manifold
    direction = transforms.dual_ascent_spectral(
        manifold, steps=steps, axes=axes, placement=placement
    )
    retraction = transforms.retract(manifold, axes=axes, placement=placement)
    return optax.named_chain(
        *momentum_link(momentum, nesterov=nesterov),
        ("direction", direction),
        learning_rate_link(learning_rate),
        ("retraction", retraction),
    )
