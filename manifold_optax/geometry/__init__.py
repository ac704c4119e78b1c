"""Manifolds, norms, and the steepest direction of each pair.

Pure functions of arrays; frozen, hashable, static objects without `__call__`, so that
`optax.inject_hyperparams` leaves them alone.
"""

from manifold_optax.geometry._base import divide, Manifold, Norm, Size
from manifold_optax.geometry._euclidean import Euclidean
from manifold_optax.geometry._norms import Frobenius, Max, Spectral
from manifold_optax.geometry._sphere import Sphere
from manifold_optax.geometry._steepest import steepest_direction
from manifold_optax.geometry._stiefel import Stiefel
from manifold_optax.geometry._stiefel_spectral import (
    SpectralDirection,
    stiefel_spectral_direction,
)

__all__ = (
    "Euclidean",
    "Frobenius",
    "Manifold",
    "Max",
    "Norm",
    "Size",
    "Spectral",
    "SpectralDirection",
    "Sphere",
    "Stiefel",
    "divide",
    "steepest_direction",
    "stiefel_spectral_direction",
)
