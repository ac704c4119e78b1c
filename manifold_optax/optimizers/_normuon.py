"""NorMuon: Muon whose neurons all move by the same amount in the long run."""

import optax

from manifold_optax import transforms
from manifold_optax._typing import Scalar
from manifold_optax.matrices import AxesLike, Placement
from manifold_optax.optimizers._links import free_chain, Momentum, momentum_link


def normuon(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: Momentum = 0.95,
    nesterov: bool = False,
    weight_decay: Scalar | None = 0.0,
    row_decay: Scalar = 0.95,
    scale: str = "rms",
    axes: AxesLike = None,
    placement: Placement | None = None,
) -> optax.GradientTransformationExtraArgs:
    """NorMuon for a group of matrices: Muon with one adaptive rate per output neuron.

    The chain is `momentum → orthogonalize → scale_by_row_rms → scale_by_shape →
    weight_decay → learning_rate`.

    Args:
        learning_rate: number ≥ 0 or schedule.
        momentum: decay of the average in [0, 1), or a transformation in its place;
            `None` for none.
        nesterov: whether the average looks one step ahead.
        weight_decay: ≥ 0, decoupled, times the learning rate; `None` for no link.
        row_decay: decay of the mean squares of the rows, in [0, 1).
        scale: rule of `scale_by_shape`; the default gives updates AdamW's size, as
            published.
        axes: which axes of a leaf are fan-in and fan-out; all others are batch axes.
        placement: which device computes which matrix; `None`: see `map_matrices`.

    Returns:
        A named chain; `update` needs `params`.

    Raises:
        ValueError: for numbers out of range and unknown rules; at init, for a leaf that
            is not a batch of matrices, naming it.

    Example:
        >>> params = {"w": jnp.ones((4, 8))}
        >>> tx = normuon(0.1, momentum=None)
        >>> updates, _ = tx.update({"w": jnp.eye(4, 8)}, tx.init(params), params)
        >>> updates["w"].shape
        (4, 8)

    Source: Z. Li et al., "NorMuon: Making Muon more efficient and scalable"
    (arXiv 2510.05491, 2025), algorithm 1.
    """
    orthogonalize = transforms.orthogonalize_via_newton_schulz(
        axes=axes, placement=placement
    )
    return free_chain(
        *momentum_link(momentum, nesterov=nesterov),
        ("orthogonalize", orthogonalize),
        ("scale_by_row_rms", transforms.scale_by_row_rms(row_decay, axes=axes)),
        ("scale_by_shape", transforms.scale_by_shape(scale, axes=axes)),
        learning_rate=learning_rate,
        weight_decay=weight_decay,
    )
