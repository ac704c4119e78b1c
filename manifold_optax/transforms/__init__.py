"""Building blocks: Optax gradient transformations, to be chained."""

from manifold_optax.transforms._dual_ascent import (
    dual_ascent_spectral,
    DualAscentState,
)
from manifold_optax.transforms._momentum import momentum, MomentumState
from manifold_optax.transforms._orthogonalize import orthogonalize_via_newton_schulz
from manifold_optax.transforms._retract import project, retract, retract_polar
from manifold_optax.transforms._scale import scale_by_shape, SHAPE_RULES
from manifold_optax.transforms._steepest import steepest
from manifold_optax.transforms._tangent import tangent_project

__all__ = (
    "SHAPE_RULES",
    "DualAscentState",
    "MomentumState",
    "dual_ascent_spectral",
    "momentum",
    "orthogonalize_via_newton_schulz",
    "project",
    "retract",
    "retract_polar",
    "scale_by_shape",
    "steepest",
    "tangent_project",
)
