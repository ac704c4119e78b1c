"""Muon: steepest descent under the spectral norm, without a constraint."""

import optax

from manifold_optax import transforms
from manifold_optax._checks import require_one_of
from manifold_optax._typing import Scalar, Schedule
from manifold_optax.linalg import JORDAN
from manifold_optax.matrices import AxesLike, Placement
from manifold_optax.optimizers import _links as links


def muon(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: links.Momentum = 0.95,
    nesterov: bool = True,
    weight_decay: Scalar | None = 0.0,
    schedule: Schedule = JORDAN,
    scale: transforms.ShapeRule = "width",
    axes: AxesLike = None,
    placement: Placement | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Muon for a group of matrices; gives the updates of `optax.contrib.muon`.

    The chain is `momentum → orthogonalize → scale_by_shape → weight_decay →
    scale_by_learning_rate`; each link is documented where it is made. For a model that
    also has vectors and embeddings: `hybrid(muon(0.02))`.

    Args:
        learning_rate: number ≥ 0 or schedule.
        momentum: decay of the average in [0, 1); an `Average`, to keep it in fewer
            bytes; a transformation in its place; `None` for none.
        nesterov: whether the average looks one step ahead.
        weight_decay: ≥ 0, decoupled, times the learning rate; `None` for no link.
        schedule: coefficients of `orthogonalize_via_newton_schulz`.
        scale: rule of `scale_by_shape`; `"rms"` carries AdamW's learning rates over.
        axes: which axes of a leaf are the matrix; all others are batch axes.
        placement: which device computes which matrix; `None`: see `map_matrices`.

    Returns:
        A named chain; `update` needs `params`.

    Raises:
        ValueError: for numbers out of range and unknown rules; at init, for a leaf that
            is not a batch of matrices, naming it.

    Example:
        >>> tx = muon(0.02, weight_decay=0.1)
        >>> print(*tx.init({"w": jnp.ones((4, 2))}))
        momentum orthogonalize scale_by_shape weight_decay scale_by_learning_rate

    Source: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks"
    (2024).
    """
    require_one_of("scale", scale, tuple(transforms.SHAPE_RULES))
    orthogonalize = transforms.orthogonalize_via_newton_schulz(
        schedule, axes=axes, placement=placement
    )
    return links.free_chain(
        *links.momentum_link(momentum, nesterov=nesterov, debias=True),
        ("orthogonalize", orthogonalize),
        ("scale_by_shape", transforms.scale_by_shape(scale, axes=axes)),
        learning_rate=learning_rate,
        weight_decay=weight_decay,
    )
