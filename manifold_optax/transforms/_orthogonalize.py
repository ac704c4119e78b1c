"""Muon's direction: each matrix orthogonalized by a Newton–Schulz polynomial."""

import functools
from typing import Any

import optax
from jax.typing import DTypeLike

from manifold_optax._checks import require_compute_dtype, require_one_of
from manifold_optax._typing import ArrayTree, Schedule
from manifold_optax.linalg import JORDAN, newton_schulz
from manifold_optax.linalg._options import (
    check_schedule,
    Form,
    FORMS,
    Preconditioner,
    PRECONDITIONERS,
)
from manifold_optax.matrices import AxesLike, map_matrices, Placement
from manifold_optax.transforms._start import check_layout, start


def orthogonalize_via_newton_schulz(
    schedule: Schedule = JORDAN,
    *,
    form: Form = "auto",
    preconditioner: Preconditioner = "frobenius",
    axes: AxesLike = None,
    placement: Placement | None = None,
    compute_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """A transformation: replaces each matrix by its approximate polar factor.

    (Optax has an array function of this name; ours of that kind is
    `linalg.newton_schulz`.) The update becomes the steepest direction of unit spectral
    norm, up to the accuracy of the schedule: with `JORDAN` all singular values that
    were above 1 % of the Frobenius norm end in [0.68, 1.14].

    Args:
        schedule: rows of polynomial coefficients, one per step.
        form: `"direct"`, `"gram"` (on the small Gram matrix, with restarts), or
            `"auto"`, the one with fewer FLOPs; see `linalg.newton_schulz`.
        preconditioner: the norm that matrices are divided by, `"frobenius"` or the
            tighter `"schatten"`.
        axes: which axes of a leaf are the matrix; all others are batch axes.
        placement: which device computes which matrix; `None`: see `map_matrices`.
        compute_dtype: dtype of the operands of the products, e.g. `jnp.bfloat16`; sums
            are in at least float32. `None`: at least float32.

    Returns:
        A stateless transformation. Leaves have at least two axes, any scale; updates
        leave in the dtype in which they came.

    Raises:
        ValueError: for a schedule that is not a tuple of rows of three numbers, or an
            unknown form or preconditioner.
        ValueError, TypeError: at update, for a leaf that is not a batch of matrices of
            real floating dtype, naming it.

    Example:
        >>> tx = optax.chain(momentum(0.95), orthogonalize_via_newton_schulz())

    Source: K. Jordan et al., "Muon" (2024).
    """
    check_layout(axes, placement)
    check_schedule(schedule)
    require_one_of("form", form, FORMS)
    require_one_of("preconditioner", preconditioner, PRECONDITIONERS)
    require_compute_dtype("compute_dtype", compute_dtype)
    kernel = functools.partial(
        newton_schulz,
        schedule=schedule,
        form=form,
        preconditioner=preconditioner,
        compute_dtype=compute_dtype,
    )

    def update_fn(
        updates: ArrayTree, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[ArrayTree, Any]:
        del params, extra_args
        updates = map_matrices(
            kernel, (updates,), axes=axes, orientation="either", placement=placement
        )
        return updates, state

    return optax.GradientTransformationExtraArgs(
        start("orthogonalize_via_newton_schulz", axes, placement=placement), update_fn
    )
