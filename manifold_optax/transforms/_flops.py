"""What the kernels cost, by which their matrices are dealt to owners.

Only ratios between shapes matter. Counts are those of products, as an accelerator does
them.
"""

from manifold_optax._typing import Flops
from manifold_optax.geometry import (
    ColumnRms,
    Euclidean,
    Frobenius,
    Manifold,
    Max,
    Norm,
    Oblique,
    RowRms,
    Spectral,
    Sphere,
    Stiefel,
)
from manifold_optax.linalg import newton_schulz_flops

_POLAR_STEPS = 10
"""Steps of `linalg.polar` from far away, as its docstring states them."""


def of_entries(short: int, long: int) -> int:
    """Norms and sums over the entries, in a few passes."""
    return 6 * short * long


def of_dual_ascent(steps: int | None) -> Flops:
    """The search of manifold Muon, as `stiefel_spectral_direction` states its cost.

    `None`: the steps that it takes by default, by products.
    """

    def flops(short: int, long: int) -> int:
        if short == 1:
            return of_entries(short, long)
        if short == long:
            # The closed form: a polar factor, and the products around it.
            return (12 + 4 * _POLAR_STEPS) * short**3
        default = 4 if long < 2 * short else 2
        products = 155 + 41 * (default if steps is None else steps)
        return 22 * long * short**2 + products * 2 * short**3

    return flops


def of_steepest(manifold: Manifold, norm: Norm) -> Flops:
    """The direction of a manifold and a norm."""
    if isinstance(manifold, Stiefel) and isinstance(norm, Spectral):
        return of_dual_ascent(None)
    entries = isinstance(norm, Frobenius | Max | RowRms | ColumnRms)
    if entries and isinstance(manifold, Euclidean | Sphere | Oblique):
        return of_entries
    return newton_schulz_flops


def of_retraction(manifold: Manifold) -> Flops:
    """The way back onto a manifold from near it."""
    if isinstance(manifold, Euclidean | Sphere | Oblique):
        return of_entries
    # Two steps of `linalg.polar`.
    return lambda short, long: 8 * long * short**2
