"""Sign descent: steepest descent under the largest-entry norm."""

import optax

from manifold_optax import transforms
from manifold_optax._typing import Scalar
from manifold_optax.geometry import Euclidean, Max
from manifold_optax.matrices import AxesLike, Placement
from manifold_optax.optimizers import _links as links


def sign_descent(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: links.Momentum = 0.9,
    nesterov: bool = False,
    weight_decay: Scalar | None = 0.0,
    axes: AxesLike = None,
    placement: Placement | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Sign descent for a group of matrices: every entry moves by the learning rate.

    The chain is `momentum → direction → weight_decay → scale_by_learning_rate`.

    Args:
        learning_rate: number ≥ 0 or schedule; the step of each entry.
        momentum, nesterov, weight_decay, axes, placement: as for `muon`.

    Returns:
        A named chain. It needs and raises what `muon` does.

    Example:
        >>> params = {"w": jnp.zeros((1, 2))}
        >>> tx = sign_descent(0.1, momentum=None)
        >>> tx.update({"w": jnp.array([[2.0, -3.0]])}, tx.init(params), params)[0]
        {'w': Array([[-0.1,  0.1]], dtype=float32)}

    Source: J. Bernstein et al., "signSGD" (arXiv 1802.04434, 2018).
    """
    direction = transforms.steepest(Euclidean(), Max(), axes=axes, placement=placement)
    return links.free_chain(
        *links.momentum_link(momentum, nesterov=nesterov),
        ("direction", direction),
        learning_rate=learning_rate,
        weight_decay=weight_decay,
    )
