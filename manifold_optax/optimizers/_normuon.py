"""NorMuon: Muon whose neurons all move by the same amount in the long run."""

import optax

from manifold_optax import transforms
from manifold_optax._checks import require_in_range, require_one_of
from manifold_optax._typing import Scalar
from manifold_optax.matrices import AxesLike, Placement
from manifold_optax.optimizers import _links as links


def normuon(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: links.Momentum = 0.95,
    nesterov: bool = False,
    weight_decay: Scalar | None = 0.0,
    row_decay: Scalar = 0.95,
    scale: transforms.ShapeRule = "rms",
    axes: AxesLike = None,
    placement: Placement | None = None,
) -> optax.GradientTransformationExtraArgs:
    """NorMuon for a group of matrices: Muon with one adaptive rate per output neuron.

    The chain is `momentum → orthogonalize → scale_by_row_rms → scale_by_shape →
    weight_decay → scale_by_learning_rate`.

    Args:
        learning_rate: number ≥ 0 or schedule.
        row_decay: decay of the mean squares of the rows, in [0, 1).
        scale: rule of `scale_by_shape`; the default gives updates AdamW's size, as
            published.
        momentum, nesterov, weight_decay, axes, placement: as for `muon`.

    Returns:
        A named chain. It needs and raises what `muon` does.

    Example:
        >>> params = {"w": jnp.ones((4, 8))}
        >>> tx = normuon(0.1, momentum=None)
        >>> updates, _ = tx.update({"w": jnp.eye(4, 8)}, tx.init(params), params)
        >>> updates["w"].shape
        (4, 8)

    Source: Z. Li et al., "NorMuon: Making Muon more efficient and scalable"
    (arXiv 2510.05491, 2025), algorithm 1.
    """
    require_in_range("row_decay", row_decay, "[0, 1)")
    require_one_of("scale", scale, tuple(transforms.SHAPE_RULES))
    orthogonalize = transforms.orthogonalize_via_newton_schulz(
        axes=axes, placement=placement
    )
    return links.free_chain(
        *links.momentum_link(momentum, nesterov=nesterov),
        ("orthogonalize", orthogonalize),
        ("scale_by_row_rms", transforms.scale_by_row_rms(row_decay, axes=axes)),
        ("scale_by_shape", transforms.scale_by_shape(scale, axes=axes)),
        learning_rate=learning_rate,
        weight_decay=weight_decay,
    )
