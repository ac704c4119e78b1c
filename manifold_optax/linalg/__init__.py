"""Matrix functions on arrays: polynomials, polar factors, norms, matrix equations.

Matrices stand in the last two axes, batches before them. No function here knows a
pytree or Optax. `axis_name` names the mesh axes over which the rows are split when a
function runs inside `jax.shard_map`.
"""

from manifold_optax.linalg._coefficients import (
    CANS,
    check_schedule,
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
from manifold_optax.linalg._float64 import in_float64
from manifold_optax.linalg._lyapunov import (
    lyapunov_by_products,
    solve_lyapunov,
    solve_lyapunov_in_basis,
)
from manifold_optax.linalg._newton_schulz import (
    FORMS,
    newton_schulz,
    newton_schulz_flops,
    PRECONDITIONERS,
)
from manifold_optax.linalg._polar import polar, polar_svd
from manifold_optax.linalg._polar_express import polar_express
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
from manifold_optax.linalg._spectral import (
    nuclear_norm,
    spectral_norm,
    spectral_norm_bound,
    SpectralNorm,
)
from manifold_optax.linalg._spectral_clip import (
    contraction,
    soft_cap,
    spectral_clip,
)
from manifold_optax.linalg._square_root import (
    eigh_root,
    EighRoot,
    product_root,
    ProductRoot,
)

__all__ = (
    "CANS",
    "CLASSIC",
    "CUBIC",
    "DEEPSEEK",
    "FORMS",
    "JORDAN",
    "MODULA",
    "POLAR_EXPRESS",
    "POLAR_EXPRESS_FAST",
    "POLAR_EXPRESS_WIDE",
    "PRECONDITIONERS",
    "SIMPLE",
    "TAYLOR",
    "YOU",
    "EighRoot",
    "ProductRoot",
    "SpectralNorm",
    "check_schedule",
    "contraction",
    "dot",
    "eigh_root",
    "frobenius_norm",
    "gram",
    "in_float64",
    "inner",
    "lyapunov_by_products",
    "matmul",
    "max_abs",
    "newton_schulz",
    "newton_schulz_flops",
    "nonzero",
    "normalize",
    "nuclear_norm",
    "polar",
    "polar_express",
    "polar_svd",
    "product_root",
    "row_count",
    "skew",
    "soft_cap",
    "solve_lyapunov",
    "solve_lyapunov_in_basis",
    "spectral_clip",
    "spectral_norm",
    "spectral_norm_bound",
    "symmetric",
)
