"""Small problems whose answers NumPy knows in float64."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

import manifold_optax as mo

_ROWS, _COLUMNS = 96, 64


@dataclasses.dataclass(frozen=True)
class Check:
    """One figure.

    Attributes:
        what: was computed.
        error: of it.
        bound: that a machine which computes as it should keeps.
    """

    what: str
    error: float
    bound: float

    @property
    def is_good(self) -> bool:
        """Whether the error is within the bound; NaN is not."""
        return self.error <= self.bound

    @property
    def verdict(self) -> str:
        """One word."""
        return "ok" if self.is_good else "WRONG"


def _draw(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((_ROWS, _COLUMNS))


def _single(x: np.ndarray) -> Array:
    return jnp.asarray(x, jnp.float32)


def _point() -> Array:
    """A point of the Stiefel manifold, exact to float32."""
    return _single(np.linalg.qr(_draw(1))[0])


def polar_factor() -> Check:
    """By products alone, in full precision on every device."""
    x = _draw(0)
    left, _, right = np.linalg.svd(x, full_matrices=False)
    found = jax.jit(mo.linalg.polar)(_single(x))
    error = np.abs(np.asarray(found, np.float64) - left @ right).max()
    # 60 rounding units of float32, times the condition of this matrix, 8.
    return Check("polar factor", float(error), 6e-5)


def newton_schulz() -> Check:
    """The same polynomials, in the precision that products have by default."""
    x = _draw(0)
    y = x / np.linalg.norm(x)
    for a, b, c in mo.linalg.JORDAN:
        gram = y.T @ y
        y = a * y + y @ (b * gram + c * gram @ gram)
    found = jax.jit(mo.linalg.newton_schulz)(_single(x))
    error = np.linalg.norm(np.asarray(found, np.float64) - y) / np.linalg.norm(y)
    # Products of bfloat16, the default of a TPU, give 5e-2; of TF32 6e-3; of float32
    # 1e-5.
    return Check("Newton–Schulz, default precision", float(error), 1e-1)


def stiefel_gap() -> Check:
    """The certified distance of manifold Muon's direction from the best one."""
    found = jax.jit(
        lambda point, gradient: mo.geometry.stiefel_spectral_direction(
            point, gradient, certify=True
        )
    )(_point(), _single(_draw(2)))
    assert found.gap is not None
    # Of a Gaussian gradient, by products too; docs/stiefel_solver.md has harder ones.
    return Check("manifold Muon's direction, certified gap", float(found.gap), 9e-3)


def stiefel_residual() -> Check:
    """The distance from the manifold after ten steps."""
    tx = mo.manifold_muon(0.1)
    params = {"w": _point()}
    state = tx.init(params)

    @jax.jit
    def step(gradient: Array, state: optax.OptState, params: dict[str, Array]):
        updates, state = tx.update({"w": gradient}, state, params)
        return optax.apply_updates(params, updates), state

    for seed in range(10):
        params, state = step(_single(_draw(seed)), state, params)
    w = np.asarray(params["w"], np.float64)
    error = np.linalg.norm(w.T @ w - np.eye(_COLUMNS), 2)
    return Check("manifold Muon, ‖WᵀW − I‖₂ after 10 steps", float(error), 1e-5)


def kept_radius() -> Check:
    """The norm that a sphere takes from its point, after a hundred projections."""
    sphere = mo.Sphere("kept")
    x = _single(_draw(3))
    start = np.linalg.norm(np.asarray(x, np.float64))
    step = jax.jit(lambda x: sphere.retract(x, 0.01 * jnp.roll(x, 1)))
    for _ in range(100):
        x = step(x)
    error = abs(np.linalg.norm(np.asarray(x, np.float64)) / start - 1)
    return Check("kept radius of a sphere after 100 steps", float(error), 1e-6)


def optax_muon() -> Check:
    """The updates of Optax's Muon and of ours."""
    params, gradient = {"w": _point()}, {"w": _single(_draw(4))}
    ours, theirs = mo.muon(1.0, weight_decay=None), optax.contrib.muon(1.0)
    first, _ = jax.jit(ours.update)(gradient, ours.init(params), params)
    second, _ = jax.jit(theirs.update)(gradient, theirs.init(params), params)
    error = jnp.linalg.norm(first["w"] - second["w"]) / jnp.linalg.norm(second["w"])
    # The products are associated differently; in bfloat16 both err by 5e-2.
    return Check("mo.muon beside optax.contrib.muon", float(error), 1e-1)


def scales() -> Check:
    """Directions of tiny and of huge gradients."""
    norm = mo.Spectral()
    direct = jax.jit(norm.steepest)
    expected = direct(_single(_draw(5)))
    errors = [
        float(jnp.abs(direct(_single(scale * _draw(5))) - expected).max())
        for scale in (1e-30, 1e30)
    ]
    error = max(errors) if all(map(math.isfinite, errors)) else float("nan")
    # Rounding of the scaled entries, times the condition, 8.
    return Check("directions of gradients of 1e-30 and 1e30", error, 1e-4)


CHECKS: tuple[Callable[[], Check], ...] = (
    polar_factor,
    newton_schulz,
    stiefel_gap,
    stiefel_residual,
    kept_radius,
    optax_muon,
    scales,
)
