"""Building blocks: Optax gradient transformations, to be chained."""

from manifold_optax.transforms._decay import (
    add_spectral_weight_decay,
    shrink_norm,
    ShrinkState,
    SpectralDecayState,
)
from manifold_optax.transforms._dual_ascent import (
    dual_ascent_spectral,
    DualAscentState,
)
from manifold_optax.transforms._momentum import Average, momentum
from manifold_optax.transforms._momentum_state import (
    CodedMomentumState,
    CorrectedMomentumState,
    MomentumState,
)
from manifold_optax.transforms._monitor import monitor, MonitorState
from manifold_optax.transforms._orthogonalize import orthogonalize_via_newton_schulz
from manifold_optax.transforms._project import project
from manifold_optax.transforms._qk_clip import apply_qk_clip, qk_clip
from manifold_optax.transforms._retract import (
    retract,
    retract_polar,
    RetractState,
)
from manifold_optax.transforms._router import balance_router_bias
from manifold_optax.transforms._scale import scale_by_shape, SHAPE_RULES, ShapeRule
from manifold_optax.transforms._scale_by_row_rms import RowRmsState, scale_by_row_rms
from manifold_optax.transforms._scale_by_size import scale_by_size
from manifold_optax.transforms._steepest import steepest, SteepestState
from manifold_optax.transforms._tangent import tangent_project

__all__ = (
    "SHAPE_RULES",
    "Average",
    "CodedMomentumState",
    "CorrectedMomentumState",
    "DualAscentState",
    "MomentumState",
    "MonitorState",
    "RetractState",
    "RowRmsState",
    "ShapeRule",
    "ShrinkState",
    "SpectralDecayState",
    "SteepestState",
    "add_spectral_weight_decay",
    "apply_qk_clip",
    "balance_router_bias",
    "dual_ascent_spectral",
    "momentum",
    "monitor",
    "orthogonalize_via_newton_schulz",
    "project",
    "qk_clip",
    "retract",
    "retract_polar",
    "scale_by_row_rms",
    "scale_by_shape",
    "scale_by_size",
    "shrink_norm",
    "steepest",
    "tangent_project",
)
