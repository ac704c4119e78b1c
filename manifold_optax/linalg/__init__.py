"""Matrix functions on arrays: polynomials, polar factors, norms, matrix equations.

Matrices stand in the last two axes, batches before them. No function here knows a
pytree or Optax. `axis_name` names the mesh axes over which the rows are split when a
function runs inside `jax.shard_map`.
"""

from manifold_optax.linalg._coefficients import (
    check_schedule,
    JORDAN,
    POLAR_EXPRESS,
    YOU,
)
from manifold_optax.linalg._lyapunov import (
    solve_lyapunov,
    solve_lyapunov_in_basis,
)
from manifold_optax.linalg._newton_schulz import newton_schulz
from manifold_optax.linalg._polar import polar, polar_svd
from manifold_optax.linalg._reductions import (
    dot,
    frobenius_norm,
    gram,
    inner,
    matmul,
    max_abs,
    nonzero,
    normalize,
    row_count,
    skew,
    symmetric,
)
from manifold_optax.linalg._spectral import nuclear_norm, spectral_norm, SpectralNorm

__all__ = (
    "JORDAN",
    "POLAR_EXPRESS",
    "YOU",
    "SpectralNorm",
    "check_schedule",
    "dot",
    "frobenius_norm",
    "gram",
    "inner",
    "matmul",
    "max_abs",
    "newton_schulz",
    "nonzero",
    "normalize",
    "nuclear_norm",
    "polar",
    "polar_svd",
    "row_count",
    "skew",
    "solve_lyapunov",
    "solve_lyapunov_in_basis",
    "spectral_norm",
    "symmetric",
)
