"""Matrix-aware and manifold-constrained optimizers, as Optax transformations.

    import manifold_optax as mo

    params = mo.project(params, mo.Stiefel())
    tx = mo.manifold_muon(0.1)

The names below stand in groups by purpose, from whole optimizers down to functions of
arrays.
"""

from manifold_optax import (
    attention,
    diagnostics,
    geometry,
    initializers,
    linalg,
    modular,
    programs,
    sharding,
    states,
    trees,
)
from manifold_optax.attention import Attention, HeadPart
from manifold_optax.diagnostics import describe
from manifold_optax.geometry import (
    Ball,
    Band,
    ColumnRms,
    DiagonalGram,
    Euclidean,
    Frobenius,
    L1,
    Manifold,
    Max,
    Norm,
    Oblique,
    PNorm,
    PNormSphere,
    RmsToRms,
    RowRms,
    Spectral,
    SpectralSphere,
    Sphere,
    steepest_direction,
    Stiefel,
)
from manifold_optax.matrices import (
    CONV,
    HEADS,
    HEADS_OUT,
    map_matrices,
    OUT_IN,
    plan_matrices,
    Split,
    STACKED,
)
from manifold_optax.modular import modular_optimizer, scale_by_modular_budget
from manifold_optax.optimizers import (
    hybrid,
    hyperball,
    hyperspherical_descent,
    manifold_muon,
    muon,
    muon_clip,
    normuon,
    scion,
    sign_descent,
    spectral_sphere,
    spel,
)
from manifold_optax.roles import Role, Roles, roles
from manifold_optax.transforms import (
    add_spectral_weight_decay,
    apply_qk_clip,
    Average,
    balance_router_bias,
    CodedMomentumState,
    CorrectedMomentumState,
    dual_ascent_spectral,
    DualAscentState,
    momentum,
    MomentumState,
    monitor,
    MonitorState,
    orthogonalize_via_newton_schulz,
    project,
    qk_clip,
    retract,
    retract_polar,
    RetractState,
    RowRmsState,
    scale_by_row_rms,
    scale_by_shape,
    scale_by_size,
    shrink_norm,
    ShrinkState,
    SpectralDecayState,
    steepest,
    SteepestState,
    tangent_project,
)

__version__ = "0.1.0"

__all__ = ["__version__"]

# A whole model: what its parameters are, and one optimizer for all of them.
__all__ += ["Role", "Roles", "describe", "hybrid", "roles"]

# A whole model, read from its computation: roles, budgets and an optimizer.
__all__ += ["modular", "modular_optimizer", "scale_by_modular_budget"]

# How a leaf is a batch of matrices.
__all__ += ["CONV", "HEADS", "HEADS_OUT", "OUT_IN", "STACKED", "Split"]

# Optimizers of matrices without a constraint.
__all__ += ["muon", "normuon", "scion", "sign_descent"]

# Optimizers of matrices on a manifold, and the way there.
__all__ += [
    "hyperball",
    "hyperspherical_descent",
    "initializers",
    "manifold_muon",
    "project",
    "spectral_sphere",
    "spel",
]

# Attention logits that stay bounded, balanced experts.
__all__ += [
    "Attention",
    "HeadPart",
    "apply_qk_clip",
    "attention",
    "balance_router_bias",
    "muon_clip",
    "qk_clip",
]

# Manifolds and sets.
__all__ += [
    "Ball",
    "Band",
    "DiagonalGram",
    "Euclidean",
    "Manifold",
    "Oblique",
    "PNormSphere",
    "SpectralSphere",
    "Sphere",
    "Stiefel",
]

# Norms.
__all__ += [
    "L1",
    "ColumnRms",
    "Frobenius",
    "Max",
    "Norm",
    "PNorm",
    "RmsToRms",
    "RowRms",
    "Spectral",
]

# Building blocks to chain, and their states.
__all__ += [
    "Average",
    "CodedMomentumState",
    "CorrectedMomentumState",
    "DualAscentState",
    "MomentumState",
    "MonitorState",
    "RetractState",
    "RowRmsState",
    "ShrinkState",
    "SpectralDecayState",
    "SteepestState",
    "add_spectral_weight_decay",
    "dual_ascent_spectral",
    "momentum",
    "orthogonalize_via_newton_schulz",
    "retract",
    "retract_polar",
    "scale_by_row_rms",
    "scale_by_shape",
    "scale_by_size",
    "shrink_norm",
    "steepest",
    "tangent_project",
]

# Several devices, what a compiled program does, what the last step was like.
__all__ += [
    "diagnostics",
    "monitor",
    "plan_matrices",
    "programs",
    "sharding",
    "states",
]

# To build more: functions of arrays, of matrices in trees, of trees.
__all__ += ["geometry", "linalg", "map_matrices", "steepest_direction", "trees"]
