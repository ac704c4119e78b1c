"""Matrix-aware and manifold-constrained optimizers, as Optax transformations.

    import manifold_optax as mo

    params = mo.project(params, mo.Stiefel())
    tx = mo.manifold_muon(0.1)

From small to large: `linalg` (functions of arrays), manifolds and norms, building
blocks to chain, optimizers, labels and placements.
"""

from manifold_optax import initializers, linalg, sharding
from manifold_optax.geometry import (
    Euclidean,
    Frobenius,
    Manifold,
    Max,
    Norm,
    Spectral,
    Sphere,
    steepest_direction,
    Stiefel,
)
from manifold_optax.labels import label_by_path, label_matrices
from manifold_optax.matrices import (
    LAST_TWO,
    map_matrices,
    plan_matrices,
    Split,
)
from manifold_optax.optimizers import (
    hybrid,
    hyperspherical_descent,
    manifold_muon,
    muon,
    sign_descent,
)
from manifold_optax.transforms import (
    dual_ascent_spectral,
    DualAscentState,
    momentum,
    MomentumState,
    orthogonalize_via_newton_schulz,
    project,
    retract,
    retract_polar,
    scale_by_shape,
    steepest,
    tangent_project,
)

__version__ = "0.1.0"

__all__ = (
    "LAST_TWO",
    "DualAscentState",
    "Euclidean",
    "Frobenius",
    "Manifold",
    "Max",
    "MomentumState",
    "Norm",
    "Spectral",
    "Sphere",
    "Split",
    "Stiefel",
    "__version__",
    "dual_ascent_spectral",
    "hybrid",
    "hyperspherical_descent",
    "initializers",
    "label_by_path",
    "label_matrices",
    "linalg",
    "manifold_muon",
    "map_matrices",
    "momentum",
    "muon",
    "orthogonalize_via_newton_schulz",
    "plan_matrices",
    "project",
    "retract",
    "retract_polar",
    "scale_by_shape",
    "sharding",
    "sign_descent",
    "steepest",
    "steepest_direction",
    "tangent_project",
)
