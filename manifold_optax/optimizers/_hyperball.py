"""Hyperball: any direction, with the Frobenius norm of each matrix kept."""

import optax

from manifold_optax import transforms
from manifold_optax._checks import require_instance
from manifold_optax.geometry import Euclidean, Frobenius, Sphere
from manifold_optax.matrices import AxesLike, Placement
from manifold_optax.optimizers import _links as links


def hyperball(
    learning_rate: optax.ScalarOrSchedule,
    *,
    inner: optax.GradientTransformation | None = None,
    manifold: Sphere | None = None,
    momentum: links.Momentum = 0.95,
    nesterov: bool = True,
    weight_decay: None = None,
    axes: AxesLike = None,
    placement: Placement | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Hyperball for a group of matrices: another optimizer's direction on a sphere.

    The chain is `momentum → inner → direction → size → scale_by_learning_rate →
    retraction`: `W ← R·norm(W − η·R·norm(u))`, with `norm(x) = x/‖x‖_F`, `u` the update
    of `inner` and `R` the norm of `W`. A step turns a matrix by about `η`, whatever the
    size of gradients and weights; there is no weight decay to balance it. The default,
    with Muon's direction as `inner`, is known as MuonH.

    `Sphere("kept")` holds the norm that each matrix has at initialisation. A matrix
    that is zero there has no direction and stays zero: initialise it otherwise, or give
    it another optimizer. A kept norm is read from the parameters at each step. In
    float32 it comes out the same after any number of steps. With parameters in
    bfloat16 their roundings add up to several per cent, and a number is the better
    choice (off by 8e-4 at worst, without a drift).

    Args:
        learning_rate: number ≥ 0 or schedule; the length of the step in units of the
            radius. (From AdamW or Muon with decay: about `√(learning_rate·decay)`.)
        inner: makes the direction from the average; `None`:
            `orthogonalize_via_newton_schulz()`. With one that has its own averages, as
            `optax.scale_by_adam()`, set `momentum=None`.
        manifold: `Sphere(radius)`; `None`: `Sphere("kept")`.
        momentum, nesterov, weight_decay, axes, placement: as for `manifold_muon`.

    Returns:
        A named chain. It needs and raises what `manifold_muon` does.

    Example:
        >>> params = {"w": jnp.array([[3.0, 0.0], [0.0, 4.0]])}
        >>> tx = hyperball(0.1)
        >>> updates, _ = tx.update({"w": jnp.ones((2, 2))}, tx.init(params), params)
        >>> jnp.linalg.norm(optax.apply_updates(params, updates)["w"]).round(4)
        Array(5., dtype=float32)

    Source: arXiv 2606.16899 (2026).
    """
    manifold = links.manifold_of("hyperball", manifold, Sphere("kept"))
    places = links.Places(axes=axes, placement=placement)
    if inner is None:
        inner = transforms.orthogonalize_via_newton_schulz(**places)
    require_instance("inner of hyperball", inner, optax.GradientTransformation)
    direction = transforms.steepest(Euclidean(), Frobenius(), **places)
    return links.manifold_chain(
        "hyperball",
        manifold,
        *links.momentum_link(momentum, nesterov=nesterov),
        ("inner", inner),
        ("direction", direction),
        ("size", transforms.scale_by_size(manifold, axes=axes)),
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        **places,
    )
