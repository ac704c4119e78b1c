"""The spectral sphere optimizer: the largest singular value is fixed."""

import optax

from manifold_optax import transforms
from manifold_optax.geometry import Spectral, SpectralSphere
from manifold_optax.matrices import AxesLike, Placement
from manifold_optax.optimizers._links import (
    manifold_chain,
    manifold_of,
    Momentum,
    momentum_link,
)


def spectral_sphere(
    learning_rate: optax.ScalarOrSchedule,
    *,
    manifold: SpectralSphere | None = None,
    momentum: Momentum = 0.9,
    nesterov: bool = True,
    weight_decay: None = None,
    certify: bool = False,
    axes: AxesLike = None,
    placement: Placement | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Spectral sphere optimizer (SSO) for a group of matrices: `‖W‖₂` stays the same.

    The chain is `momentum → direction → learning_rate → retraction`. The direction is
    the one of unit spectral norm that goes furthest along the average without changing
    the largest singular value to first order; the retraction divides by the spectral
    norm after the step. (The published code divides before the step, and so leaves the
    parameters off the sphere by one step.)

    Args:
        learning_rate: number ≥ 0 or schedule; the spectral norm of the step in units of
            the radius.
        manifold: `SpectralSphere(radius)`; `None`: radius `"rms"`, as published, so
            that the RMS→RMS norm of every matrix is 1.
        momentum: decay of the average in [0, 1), or a transformation in its place;
            `None` for none.
        nesterov: whether the average looks one step ahead.
        weight_decay: not supported, because the retraction would undo it. Any other
            value than `None` raises an error that explains this.
        certify: whether the state keeps the relative gap of each direction, which
            `diagnostics.collect` gathers.
        axes: which axes of a leaf are the matrix; all others are batch axes.
        placement: which device computes which matrix; `None`: see `map_matrices`.

    Returns:
        A named chain; `update` needs `params`, on the manifold: project them first.

    Raises:
        TypeError: for a manifold that is not `SpectralSphere`.
        ValueError: for numbers out of range and a weight decay; at init, naming the
            leaf, for one that is not a batch of matrices or not on the manifold.

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
    manifold = manifold_of("spectral_sphere", manifold, SpectralSphere("rms"))
    direction = transforms.steepest(
        manifold, Spectral(), certify=certify, axes=axes, placement=placement
    )
    return manifold_chain(
        "spectral_sphere",
        manifold,
        *momentum_link(momentum, nesterov=nesterov),
        ("direction", direction),
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        axes=axes,
        placement=placement,
    )
