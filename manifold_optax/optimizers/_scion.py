"""Scion: steps to the corner of a norm ball, one norm per role of a layer."""

import optax

from manifold_optax import transforms
from manifold_optax._typing import Scalar
from manifold_optax.geometry import Euclidean, Norm, RmsToRms
from manifold_optax.matrices import AxesLike, Placement
from manifold_optax.optimizers import _links as links


def scion(
    learning_rate: optax.ScalarOrSchedule,
    *,
    norm: Norm | None = None,
    momentum: links.Momentum = 0.9,
    nesterov: bool = False,
    weight_decay: Scalar | None = 0.0,
    axes: AxesLike = None,
    placement: Placement | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Scion for a group of matrices: steps of fixed length in a norm of your choice.

    The chain is `momentum → direction → weight_decay → scale_by_learning_rate`: the
    direction is the linear minimization oracle of the norm at the average. A model
    takes one per role: `RmsToRms()` for hidden layers, `ColumnRms()` or `RmsToRms()`
    for the first layer, `Max()` for the last (each times its own learning rate), joined
    by `optax.partition` or `hybrid`.

    Without weight decay it is the paper's unconstrained method. Its constrained method
    over the ball of radius `ρ`, `W ← (1 − γ)·W − γ·ρ·direction`, is `learning_rate =
    γ·ρ` with `weight_decay = 1/ρ`: then `‖W‖ ≤ max(‖W₀‖, ρ)` for every `γ` in [0, 1].

    Args:
        learning_rate: number ≥ 0 or schedule; the length of the step in the norm.
        norm: of a step; `None`: `RmsToRms()`.
        momentum, nesterov, weight_decay, axes, placement: as for `muon`. The paper's
            `α` is `1 − momentum`.

    Returns:
        A named chain. It needs and raises what `muon` does.

    Example:
        >>> params = {"hidden": jnp.ones((4, 4)), "head": jnp.ones((4, 2))}
        >>> parts = {
        ...     "inside": scion(0.1, weight_decay=0.5),
        ...     "last": scion(1.0, norm=Max()),
        ... }
        >>> labels = roles({"head": "last"}, default="inside")
        >>> tx = optax.partition(parts, labels)
        >>> updates, _ = tx.update(params, tx.init(params), params)
        >>> updates["head"][0]
        Array([-1., -1.], dtype=float32)

    Source: T. Pethick et al., "Training Deep Learning Models with Norm-Constrained
    LMOs" (arXiv 2502.07529, 2025), algorithms 1 and 2.
    """
    norm = RmsToRms() if norm is None else norm
    direction = transforms.steepest(Euclidean(), norm, axes=axes, placement=placement)
    return links.free_chain(
        *links.momentum_link(momentum, nesterov=nesterov),
        ("direction", direction),
        learning_rate=learning_rate,
        weight_decay=weight_decay,
    )
