"""Sign descent: steepest descent under the largest-entry norm."""

import optax

from manifold_optax import transforms
from manifold_optax._typing import Scalar
from manifold_optax.geometry import Euclidean, Max
from manifold_optax.matrices import AxesLike, Placement
from manifold_optax.optimizers._links import free_chain, Momentum, momentum_link


def sign_descent(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: Momentum = 0.9,
    nesterov: bool = False,
    weight_decay: Scalar | None = 0.0,
    axes: AxesLike = None,
    placement: Placement | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Sign descent for a group of matrices: every entry moves by the learning rate.

    The chain is `momentum → direction → weight_decay → learning_rate`.

    Args:
        learning_rate: number ≥ 0 or schedule; the step of each entry.
        momentum: decay of the average in [0, 1), or a transformation in its place;
            `None` for none.
        nesterov: whether the average looks one step ahead.
        weight_decay: ≥ 0, decoupled, times the learning rate; `None` for no link.
        axes: which axes of a leaf are the matrix; all others are batch axes.
        placement: which device computes which matrix; `None`: see `map_matrices`.

    Returns:
        A named chain; `update` needs `params`.

    Raises:
        ValueError: for numbers out of range; at init, for a leaf that is not a batch of
            matrices, naming it.

    Example:
        >>> params = {"w": jnp.zeros((1, 2))}
        >>> tx = sign_descent(0.1, momentum=None)
        >>> tx.update({"w": jnp.array([[2.0, -3.0]])}, tx.init(params), params)[0]
        {'w': Array([[-0.1,  0.1]], dtype=float32)}

    Source: J. Bernstein et al., "signSGD" (arXiv 1802.04434, 2018).
    """
    direction = transforms.steepest(Euclidean(), Max(), axes=axes, placement=placement)
    return free_chain(
        *momentum_link(momentum, nesterov=nesterov),
        ("direction", direction),
        learning_rate=learning_rate,
        weight_decay=weight_decay,
    )
