"""Flax-style initializers on manifolds."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._checks import require_instance
from manifold_optax.geometry import Manifold, Sphere, Stiefel
from manifold_optax.matrices import AxesByPath, AxesLike, check_axes
from manifold_optax.transforms import project

__all__ = ("on_manifold", "sphere", "stiefel")


def on_manifold(
    manifold: Manifold,
    base: Callable[..., Array] | None = None,
    *,
    axes: AxesLike = None,
) -> Callable[..., Array]:
    """Initializer that draws from `base` and projects onto `manifold`.

    Args:
        manifold: the constraint.
        base: initializer `(key, shape, dtype) -> array`; `None`: standard Gaussian,
            which gives the uniform distribution on spheres and Stiefel manifolds.
        axes: which axes of the array are the matrix; all others are batch axes.

    Returns:
        An initializer `(key, shape, dtype=jnp.float32) -> array`. It draws and projects
        in float32 (QR and SVD routines fail in half precision; the polar factor would
        only be inaccurate) and casts at the end.

    Raises:
        TypeError: for a manifold, a base or axes of another kind. The initializer
            raises what `project` does.

    Example:
        >>> init = on_manifold(Stiefel(), jax.nn.initializers.lecun_uniform())
        >>> bool(Stiefel().residual(init(jax.random.key(0), (8, 4))) < 1e-6)
        True
    """
    require_instance("manifold of on_manifold", manifold, Manifold)
    by_path = isinstance(axes, AxesByPath) and not isinstance(axes, type)
    if axes is not None and not by_path:
        check_axes(axes)
    base = jax.nn.initializers.normal(1.0) if base is None else base
    if not callable(base):
        raise TypeError(f"base must be an initializer or None, got {base!r}.")

    def init(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        wide = jnp.promote_types(dtype, jnp.float32)
        return project(base(key, shape, wide), manifold, axes=axes).astype(dtype)

    return init


def stiefel(scale: float | str = 1.0, *, axes: AxesLike = None) -> Callable[..., Array]:
    """Initializer with all singular values equal to `scale`, uniformly distributed.

    Example:
        >>> w = stiefel("rms")(jax.random.key(0), (16, 4))
        >>> jnp.linalg.norm(w, 2).round(4)
        Array(0.5, dtype=float32)
    """
    return on_manifold(Stiefel(scale), axes=axes)


def sphere(radius: float | str = 1.0, *, axes: AxesLike = None) -> Callable[..., Array]:
    """Initializer with Frobenius norm `radius`, uniformly distributed.

    Example:
        >>> jnp.linalg.norm(sphere(2.0)(jax.random.key(0), (16, 4))).round(4)
        Array(2., dtype=float32)
    """
    return on_manifold(Sphere(radius), axes=axes)
