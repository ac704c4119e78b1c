"""What array functions refuse, by the name of the function, and scales at the edge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from manifold_optax import linalg, Spectral, Sphere, Stiefel
from manifold_optax.linalg._reductions import frobenius_norm, normalize

FUNCTIONS = {
    "newton_schulz": linalg.newton_schulz,
    "polar": linalg.polar,
    "polar_svd": linalg.polar_svd,
    "spectral_norm": linalg.spectral_norm,
    "spectral_norm_bound": linalg.spectral_norm_bound,
    "nuclear_norm": linalg.nuclear_norm,
    "spectral_clip": lambda x: linalg.spectral_clip(x, 1.0),
    "soft_cap": lambda x: linalg.soft_cap(x, 1.0),
    "solve_lyapunov": lambda x: linalg.solve_lyapunov(x, x),
    "Sphere": Sphere().project,
    "Stiefel": Stiefel().residual,
}
everywhere = pytest.mark.parametrize("name", FUNCTIONS)


@everywhere
@pytest.mark.parametrize("dtype", [jnp.complex64, jnp.int32, jnp.bool_])
def test_only_real_floating_arrays(name, dtype, unhooked):
    with pytest.raises(TypeError, match=f"{name} needs a real floating array, got"):
        jax.eval_shape(FUNCTIONS[name], jnp.ones((4, 4), dtype))


@everywhere
@pytest.mark.parametrize("shape", [(), (4,)])
def test_only_matrices(name, shape, unhooked):
    with pytest.raises(ValueError, match=f"{name} needs matrices"):
        jax.eval_shape(FUNCTIONS[name], jnp.ones(shape))


@pytest.mark.parametrize("method", ["value", "dual_value", "steepest"])
def test_norms_name_the_dtype(method, unhooked):
    with pytest.raises(TypeError, match=r"real floating array.*, got dtype complex64"):
        jax.eval_shape(getattr(Spectral(), method), jnp.ones((3, 2), jnp.complex64))


@pytest.mark.parametrize("scale", [8e37, 9e37, 3e38])
def test_entries_near_the_largest_number_do_not_vanish(scale):
    # XLA divides by a number by multiplying with its inverse, which is subnormal from
    # 8.5e37 on and was flushed to 0.
    x = np.eye(4, 3, dtype=np.float32)
    x[3, 1] = 1

    @jax.jit
    def compute(x):
        norm = frobenius_norm(x[:1])
        return normalize(x), linalg.polar(x), linalg.newton_schulz(x), norm

    found = compute(jnp.asarray(x * np.float32(scale)))
    expected = compute(jnp.asarray(x))
    for large, plain in zip(found[:3], expected[:3], strict=True):
        # The input is rounded anew (seen: 2e-7).
        np.testing.assert_allclose(large, plain, atol=2e-6)
    np.testing.assert_allclose(found[3], np.float32(scale) * expected[3], rtol=1e-6)
