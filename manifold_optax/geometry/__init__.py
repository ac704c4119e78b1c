"""Manifolds, norms, and the steepest direction of each pair.

Pure functions of arrays; frozen, hashable, static objects without `__call__`, so that
`optax.inject_hyperparams` leaves them alone.
"""

from manifold_optax.geometry._ball import Ball, Band
from manifold_optax.geometry._band_spectral import band_spectral_direction
from manifold_optax.geometry._certified import CertifiedDirection
from manifold_optax.geometry._diagonal_gram import DiagonalGram
from manifold_optax.geometry._entry_norms import L1, Max, PNorm
from manifold_optax.geometry._euclidean import Euclidean
from manifold_optax.geometry._gram_spectral import gram_spectral_direction
from manifold_optax.geometry._manifold import Manifold, Size
from manifold_optax.geometry._norm import BallNorm, BlockNorm, Norm
from manifold_optax.geometry._norms import Frobenius, RmsToRms, Spectral
from manifold_optax.geometry._oblique import Oblique
from manifold_optax.geometry._p_norm_sphere import p_norm_direction, PNormSphere
from manifold_optax.geometry._row_norms import ColumnRms, RowRms
from manifold_optax.geometry._spectral_sphere import SpectralSphere
from manifold_optax.geometry._sphere import Sphere
from manifold_optax.geometry._sphere_spectral import normal_spectral_direction
from manifold_optax.geometry._steepest import (
    certified_direction,
    has_certificate,
    needs_whole,
    pair_table,
    steepest_direction,
)
from manifold_optax.geometry._stiefel import Stiefel
from manifold_optax.geometry._stiefel_spectral import (
    BACKENDS,
    stiefel_spectral_direction,
)

__all__ = (
    "BACKENDS",
    "L1",
    "Ball",
    "BallNorm",
    "Band",
    "BlockNorm",
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
    "SpectralSphere",
    "Sphere",
    "Stiefel",
    "band_spectral_direction",
    "certified_direction",
    "gram_spectral_direction",
    "has_certificate",
    "needs_whole",
    "normal_spectral_direction",
    "p_norm_direction",
    "pair_table",
    "steepest_direction",
    "stiefel_spectral_direction",
)
