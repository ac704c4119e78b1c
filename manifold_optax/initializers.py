"""Flax-style initializers on manifolds."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._checks import require_instance
from manifold_optax.geometry import Manifold, Sphere, Stiefel
from manifold_optax.matrices import AxesLike
from manifold_optax.matrices._axes import check_axes_like
from manifold_optax.matrices._view import views_of
from manifold_optax.transforms import project

__all__ = ("on_manifold", "sphere", "stiefel")


def on_manifold(
    manifold: Manifold,
    base: Callable[..., Array] | None = None,
    *,
    axes: AxesLike = None,
    path: str = "",
) -> Callable[..., Array]:
    """Returns an initializer that draws from `base` and projects onto `manifold`.

    Args:
        manifold: the constraint.
        base: initializer `(key, shape, dtype) -> array`; `None`: standard Gaussian,
            which gives the uniform distribution on spheres and Stiefel manifolds.
        axes: which axes of the array are the matrix; all others are batch axes.
        path: path of the parameter, by which `mo.Roles` as `axes` know it.

    Returns:
        An initializer `(key, shape, dtype=jnp.float32) -> array`. It draws and projects
        in float32 (QR and SVD routines fail in half precision; the polar factor would
        only be inaccurate) and casts at the end.

    Raises:
        TypeError: if `manifold`, `base` or `axes` is of another kind.
        ValueError: (the initializer) for a shape that `axes` do not fit, and for a
            parameter that is no matrix by its role.

    Example:
        >>> init = on_manifold(Stiefel(), jax.nn.initializers.lecun_uniform())
        >>> bool(Stiefel().residual(init(jax.random.key(0), (8, 4))) < 1e-6)
        True
    """
    require_instance("manifold of on_manifold", manifold, Manifold)
    check_axes_like(axes)
    base = jax.nn.initializers.normal(1.0) if base is None else base
    if not callable(base):
        raise TypeError(f"base must be an initializer or None, got {base!r}.")

    def init(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        drawn = base(key, shape, jnp.promote_types(dtype, jnp.float32))
        # What is no matrix would come back as it was drawn, off the manifold.
        views_of(drawn, path, axes)
        return project({path: drawn}, manifold, axes=axes)[path].astype(dtype)

    return init


def stiefel(scale: float | str = 1.0, *, axes: AxesLike = None) -> Callable[..., Array]:
    """Returns an initializer of uniform points with all singular values at `scale`.

    Example:
        >>> w = stiefel("rms")(jax.random.key(0), (16, 4))
        >>> jnp.linalg.norm(w, 2).round(4)
        Array(0.5, dtype=float32)
    """
    return on_manifold(Stiefel(scale), axes=axes)


def sphere(radius: float | str = 1.0, *, axes: AxesLike = None) -> Callable[..., Array]:
    """Returns an initializer with Frobenius norm `radius`, uniformly distributed.

    Example:
        >>> jnp.linalg.norm(sphere(2.0)(jax.random.key(0), (16, 4))).round(4)
        Array(2., dtype=float32)
    """
    return on_manifold(Sphere(radius), axes=axes)
