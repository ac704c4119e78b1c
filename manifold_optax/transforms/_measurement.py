"""What `monitor` computes: the measures of every matrix of a tree, and its marks."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._typing import ArrayTree, AxisName, Matrix
from manifold_optax.diagnostics import (
    angle,
    COUNTS,
    OF_WEIGHTS,
    orthogonality_error,
    rms,
)
from manifold_optax.geometry import Manifold
from manifold_optax.linalg import spectral_norm
from manifold_optax.linalg._reductions import gram, near_one, nonzero
from manifold_optax.matrices import AxesLike, map_matrices, Placement
from manifold_optax.transforms._largest import largest
from manifold_optax.transforms._leaves import unit_map

_STEPS = 8
"""Power iterations. On a Gram matrix each counts twice."""


def measurement(
    names: Sequence[str],
    axes: AxesLike,
    manifold: Manifold | None,
    placement: Placement | None,
) -> Callable[[ArrayTree, ArrayTree, ArrayTree], dict[str, ArrayTree]]:
    """`(updates, gradients, weights) -> {name: tree of numbers}`, without counts."""
    # Rounded on the wire, numbers would be those of the rounding.
    exact = None if placement is None else dataclasses.replace(placement, wire=None)
    own = tuple(n for n in names if n not in COUNTS and n != "residual")
    read = ["update"]
    read += ["gradient"] if "angle" in own else []
    read += ["weight"] if set(own) & set(OF_WEIGHTS) else []

    def kernel(*matrices: Matrix, axis_name: AxisName = None) -> Any:
        found = _measured(own, dict(zip(read, matrices, strict=True)), axis_name)
        (first, *others) = found
        return found if others else first

    def residual(point: Matrix, axis_name: AxisName = None) -> Array:
        assert manifold is not None
        return manifold.unit().residual(point, axis_name=axis_name)

    def measure(
        updates: ArrayTree, gradients: ArrayTree, weights: ArrayTree
    ) -> dict[str, ArrayTree]:
        found: dict[str, ArrayTree] = {}
        if own:
            trees = {"update": updates, "gradient": gradients, "weight": weights}
            numbers = map_matrices(
                kernel,
                [trees[name] for name in read],
                returns=("number",) * len(own),
                axes=axes,
                placement=exact,
            )
            found |= zip(own, numbers if len(own) > 1 else (numbers,), strict=True)
        if "residual" in names and manifold is not None:
            distances = unit_map(
                residual, manifold, axes=axes, placement=exact, returns=("number",)
            )
            found["residual"] = distances((), (weights,), like=None)
        return found

    return measure


def marks_of(
    names: Sequence[str], steps: ArrayTree, gradients: ArrayTree, axes: AxesLike
) -> dict[str, ArrayTree]:
    """1 for each matrix that is to be counted, 0 for the others.

    `gradients` is `None` where they are the `steps`.
    """
    kinds: dict[str, Callable[[Array], Array]] = {
        "applied": lambda most: (most > 0) & jnp.isfinite(most),
        "skipped": lambda most: most == 0,
        "nonfinite": lambda most: ~jnp.isfinite(most),
    }
    chosen = [name for name in COUNTS if name in names]
    if not chosen:
        return {}
    own = set(chosen) != {"nonfinite"} or gradients is None
    of_steps = largest(steps, axes) if own else None
    of_gradients = of_steps
    if gradients is not None and "nonfinite" in chosen:
        of_gradients = largest(gradients, axes)

    def mark(name: str) -> ArrayTree:
        most = of_gradients if name == "nonfinite" else of_steps
        return jax.tree.map(lambda leaf: kinds[name](leaf).astype(jnp.float32), most)

    return {name: mark(name) for name in chosen}


def _measured(
    names: tuple[str, ...],
    matrices: dict[str, Array],
    axis_name: AxisName = None,
) -> tuple[Array, ...]:
    """The measures of one tall matrix, in the order of `names`.

    Args:
        names: some of `MEASURES`, none of `COUNTS`, and not `"residual"`.
        matrices: the `"update"`, and the `"gradient"` and the `"weight"` as far as a
            measure reads them.
        axis_name: mesh axes over which the rows are split.
    """
    found: dict[str, Array] = {}
    update = matrices["update"]
    if {"update_spectral_norm", "stable_rank"} & set(names):
        # Of the Gram matrix, which `orthogonality_error` needs: compiled once for both.
        near, scale = near_one(update, axis_name)
        square = gram(near, axis_name)
        most = spectral_norm(square, steps=_STEPS).norm
        found["update_spectral_norm"] = scale[..., 0, 0] * jnp.sqrt(most)
        found["stable_rank"] = jnp.trace(square, axis1=-2, axis2=-1) / nonzero(most)
    if "update_rms" in names:
        found["update_rms"] = rms(update, axis_name=axis_name)
    if "orthogonality_error" in names:
        found["orthogonality_error"] = orthogonality_error(update, axis_name=axis_name)
    if "angle" in names:
        gradient = matrices["gradient"]
        found["angle"] = angle(-update, gradient, axis_name=axis_name)
    if "weight_spectral_norm" in names:
        norm = spectral_norm(matrices["weight"], steps=_STEPS, axis_name=axis_name)
        found["weight_spectral_norm"] = norm.norm
    if "weight_rms" in names:
        found["weight_rms"] = rms(matrices["weight"], axis_name=axis_name)
    return tuple(found[name] for name in names)
