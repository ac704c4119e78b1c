"""Manifold Muon: the Stiefel manifold under the spectral norm."""

import optax

from manifold_optax import transforms
from manifold_optax.geometry import Stiefel
from manifold_optax.matrices import AxesLike, Placement
from manifold_optax.optimizers import _links as links


def manifold_muon(  # noqa: PLR0913 - the words of all presets, and the solver's three
    learning_rate: optax.ScalarOrSchedule,
    *,
    manifold: Stiefel | None = None,
    momentum: links.Momentum = None,
    nesterov: bool = False,
    weight_decay: None = None,
    steps: int | None = None,
    tolerance: float | None = None,
    certify: bool = False,
    axes: AxesLike = None,
    placement: Placement | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Manifold Muon for a group of matrices: all singular values stay equal.

    The chain is `momentum → direction → scale_by_learning_rate → retraction`, with
    `dual_ascent_spectral` as direction and the manifold's retraction. Project the
    parameters first (`mo.project(params, Stiefel())`), and let no transformation follow
    the chain.

    Args:
        learning_rate: number ≥ 0 or schedule; the spectral norm of the step in units of
            the manifold's scale. The published run uses 0.1 with a linear decay.
        manifold: `Stiefel(scale, retraction)`; `None`: scale 1, polar.
        momentum: decay of the average in [0, 1), an `Average`, or a transformation in
            its place, e.g. `momentum(0.9, transport=manifold)`; `None`: none, as
            published.
        nesterov: whether the average looks one step ahead.
        weight_decay: not supported, because the retraction would undo it. Any other
            value than `None` raises an error that explains this.
        steps: steps of the dual solver; `None`: by shape and backend.
        tolerance: relative gap at which the solver stops, in (0, 1); see
            `dual_ascent_spectral`.
        certify: whether the state keeps the relative gap of each direction, which
            `diagnostics.collect` gathers.
        axes: which axes of a leaf are the matrix; all others are batch axes.
        placement: which device computes which matrix; `None`: see `map_matrices`.

    Returns:
        A named chain; `update` needs `params`.

    Raises:
        TypeError: for a manifold or another argument of the wrong kind.
        ValueError: for numbers out of range and a weight decay; at init, naming the
            leaf, for one that is not a batch of matrices or not on the manifold.

    Example:
        >>> params = project({"w": jnp.arange(8.0).reshape(4, 2) ** 2}, Stiefel())
        >>> tx = manifold_muon(0.1)
        >>> state, update = tx.init(params), jax.jit(tx.update)
        >>> updates, _ = update({"w": jnp.ones((4, 2))}, state, params)
        >>> w = optax.apply_updates(params, updates)["w"]
        >>> bool(Stiefel().residual(w) < 1e-6)
        True

    Source: J. Bernstein, "Modular Manifolds", Thinking Machines Lab (2025).
    """
    manifold = links.manifold_of("manifold_muon", manifold, Stiefel())
    places = links.Places(axes=axes, placement=placement)
    direction = transforms.dual_ascent_spectral(
        manifold,
        steps=steps,
        tolerance=tolerance,
        certify=certify,
        **places,
    )
    return links.manifold_chain(
        "manifold_muon",
        manifold,
        *links.momentum_link(momentum, nesterov=nesterov),
        ("direction", direction),
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        **places,
    )
