"""Manifolds, norms, and the steepest direction of each pair.

Pure functions of arrays; frozen, hashable, static objects without `__call__`, so that
`optax.inject_hyperparams` leaves them alone.
"""

from manifold_optax.geometry._ball import Ball, Band
from manifold_optax.geometry._band_spectral import band_spectral_direction
from manifold_optax.geometry._base import divide, Manifold, Norm, Size, widen
from manifold_optax.geometry._certified import CertifiedDirection
from manifold_optax.geometry._diagonal_gram import DiagonalGram
from manifold_optax.geometry._entry_norms import L1, Max, PNorm
from manifold_optax.geometry._euclidean import Euclidean
from manifold_optax.geometry._gram_spectral import gram_spectral_direction
from manifold_optax.geometry._norms import Frobenius, RmsToRms, Spectral
from manifold_optax.geometry._oblique import Oblique
from manifold_optax.geometry._p_norm_sphere import p_norm_direction, PNormSphere
from manifold_optax.geometry._row_norms import ColumnRms, RowRms
from manifold_optax.geometry._spectral_sphere import SpectralSphere
from manifold_optax.geometry._sphere import Sphere
from manifold_optax.geometry._sphere_spectral import normal_spectral_direction
from manifold_optax.geometry._steepest import needs_whole, steepest_direction
from manifold_optax.geometry._stiefel import Stiefel
from manifold_optax.geometry._stiefel_spectral import (
    BACKENDS,
    SpectralDirection,
    stiefel_spectral_direction,
)

__all__ = (
    "BACKENDS",
    "L1",
    "Ball",
    "Band",
    "CertifiedDirection",
    "ColumnRms",
    "DiagonalGram",
    "Euclidean",
    "Frobenius",
    "Manifold",
    "Max",
    "Norm",
    "Oblique",
    "PNorm",
    "PNormSphere",
    "RmsToRms",
    "RowRms",
    "Size",
    "Spectral",
    "SpectralDirection",
    "SpectralSphere",
    "Sphere",
    "Stiefel",
    "band_spectral_direction",
    "divide",
    "gram_spectral_direction",
    "needs_whole",
    "normal_spectral_direction",
    "p_norm_direction",
    "steepest_direction",
    "stiefel_spectral_direction",
    "widen",
)
