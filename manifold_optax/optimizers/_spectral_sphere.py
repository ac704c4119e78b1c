"""The spectral sphere optimizer: the largest singular value is fixed."""

import optax

from manifold_optax import transforms
from manifold_optax.geometry import Spectral, SpectralSphere
from manifold_optax.matrices import AxesLike, Placement
from manifold_optax.optimizers import _links as links


def spectral_sphere(
    learning_rate: optax.ScalarOrSchedule,
    *,
    manifold: SpectralSphere | None = None,
    momentum: links.Momentum = 0.9,
    nesterov: bool = True,
    weight_decay: None = None,
    certify: bool = False,
    axes: AxesLike = None,
    placement: Placement | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Spectral sphere optimizer (SSO) for a group of matrices: `‖W‖₂` stays the same.

    The chain is `momentum → direction → scale_by_learning_rate → retraction`. The
    direction is the one of unit spectral norm that goes furthest along the average
    without changing the largest singular value to first order; the retraction divides
    by the spectral norm after the step. (The published code divides before the step,
    and so leaves the parameters off the sphere by one step.)

    Args:
        learning_rate: number ≥ 0 or schedule; the spectral norm of the step in units of
            the radius.
        manifold: `SpectralSphere(radius)`; `None`: radius `"rms"`, as published, so
            that the RMS→RMS norm of every matrix is 1.
        certify: whether the state keeps the relative gap of each direction, which
            `diagnostics.collect` gathers.
        momentum, nesterov, weight_decay, axes, placement: as for `manifold_muon`.

    Returns:
        A named chain. It needs and raises what `manifold_muon` does.

    Example:
        >>> manifold = SpectralSphere("rms")
        >>> params = project({"w": jnp.arange(8.0).reshape(4, 2) ** 2}, manifold)
        >>> tx = spectral_sphere(0.1)
        >>> updates, _ = tx.update({"w": jnp.ones((4, 2))}, tx.init(params), params)
        >>> w = optax.apply_updates(params, updates)["w"]
        >>> bool(manifold.residual(w.T) < 1e-6)  # a kernel [fan_in, fan_out]
        True

    Source: J. Su, "Muon on the spectral sphere", kexue.fm 11241 (2025); its default
    decay and radius are those of the SSO code.
    """
    manifold = links.manifold_of("spectral_sphere", manifold, SpectralSphere("rms"))
    places = links.Places(axes=axes, placement=placement)
    direction = transforms.steepest(manifold, Spectral(), certify=certify, **places)
    return links.manifold_chain(
        "spectral_sphere",
        manifold,
        *links.momentum_link(momentum, nesterov=nesterov),
        ("direction", direction),
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        **places,
    )
