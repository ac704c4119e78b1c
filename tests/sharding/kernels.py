"""Kernels of different needs, as transformations will hand them to the map."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax import linalg
from manifold_optax.geometry import stiefel_spectral_direction


def newton_schulz(x: Array, axis_name: Any = None) -> Any:
    """One matrix in, one out."""
    return linalg.newton_schulz(x, axis_name=axis_name)


def stiefel_spectral(gradient: Array, point: Array, axis_name: Any = None) -> Any:
    """Two in, one out, and two numbers."""
    found = stiefel_spectral_direction(
        point, gradient, certify=True, axis_name=axis_name
    )
    return found.direction, found.gap, found.tangency


def rank_one_decay(x: Array, right: Array, axis_name: Any = None) -> Any:
    """One and a vector in, the same out: σ₁ u₁ v₁ᵀ by one step of power iteration."""
    norm, left, right = linalg.spectral_norm(x, right, steps=1, axis_name=axis_name)
    return norm * left[:, None] * right[None, :], right


def reject(gradient: Array, point: Array, axis_name: Any = None) -> Any:
    """Needs what `stiefel_spectral` needs, and compiles at once: no solver."""
    along, size = jnp.sum(gradient * point), jnp.sum(point**2)
    if axis_name is not None:
        along, size = jax.lax.psum((along, size), axis_name)
    return gradient - along / size * point, along, size


def weigh(x: Array, right: Array, axis_name: Any = None) -> Any:
    """Needs what `rank_one_decay` needs, and compiles at once."""
    moved = x.T @ (x @ right)
    if axis_name is not None:
        moved = jax.lax.psum(moved, axis_name)
    return x * right[None, :], moved


RETURNS = {
    newton_schulz: ("matrix",),
    stiefel_spectral: ("matrix", "number", "number"),
    reject: ("matrix", "number", "number"),
    rank_one_decay: ("matrix", "number"),
    weigh: ("matrix", "number"),
}
