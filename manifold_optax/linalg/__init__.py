"""Matrix functions on arrays: polynomials, polar factors, norms, matrix equations.

Matrices stand in the last two axes, batches before them. No function here knows a
pytree or Optax. `axis_name` names the mesh axes over which the rows are split when a
function runs inside `jax.shard_map`.
"""

from manifold_optax.linalg._coefficients import (
    CANS,
    CLASSIC,
    CUBIC,
    DEEPSEEK,
    JORDAN,
    MODULA,
    POLAR_EXPRESS,
    POLAR_EXPRESS_FAST,
    POLAR_EXPRESS_WIDE,
    SIMPLE,
    TAYLOR,
    YOU,
)
from manifold_optax.linalg._lyapunov import (
    solve_lyapunov,
)
from manifold_optax.linalg._newton_schulz import (
    newton_schulz,
    newton_schulz_flops,
)
from manifold_optax.linalg._polar import polar, polar_svd
from manifold_optax.linalg._polar_express import polar_express
from manifold_optax.linalg._spectral import (
    nuclear_norm,
    spectral_norm,
    spectral_norm_bound,
    SpectralNorm,
)
from manifold_optax.linalg._spectral_clip import (
    soft_cap,
    spectral_clip,
)
from manifold_optax.linalg._symmetric import symmetric_kernel

__all__ = (
    "CANS",
    "CLASSIC",
    "CUBIC",
    "DEEPSEEK",
    "JORDAN",
    "MODULA",
    "POLAR_EXPRESS",
    "POLAR_EXPRESS_FAST",
    "POLAR_EXPRESS_WIDE",
    "SIMPLE",
    "TAYLOR",
    "YOU",
    "SpectralNorm",
    "newton_schulz",
    "newton_schulz_flops",
    "nuclear_norm",
    "polar",
    "polar_express",
    "polar_svd",
    "soft_cap",
    "solve_lyapunov",
    "spectral_clip",
    "spectral_norm",
    "spectral_norm_bound",
    "symmetric_kernel",
)
