"""The norm of a change of all weights: what it may change the output by."""

import collections
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._typing import ArrayTree, AxisName, Matrix, PerMatrix
from manifold_optax.geometry import Norm
from manifold_optax.matrices import Axes, map_matrices, STACKED
from manifold_optax.modular._algebra._expression import Module
from manifold_optax.modular._algebra._module import atoms, repeats, shares
from manifold_optax.trees import is_absent, leaves_by_path


def modular_norm(module: Module, updates: ArrayTree) -> Array:
    """Returns the modular norm of a change of the weights, a float32 scalar.

    This is the largest `‖ΔW‖ / share` over atoms and slices, where `‖ΔW‖` is in the
    atom's norm (the largest over its matrices, if it is a batch of them). A change of
    the weights by it changes the output by that much at most, to first order. After a
    step of `share · learning rate` in the norm of every atom it is the learning rate.

    Call it under `jax.jit`; outside, each call compiles anew.

    Args:
        module: network whose atoms name the leaves.
        updates: tree of changes. Leaves that no atom names do not count; `None` and
            `optax.MaskedNode` are changes of 0.

    Returns:
        The norm; infinite if a frozen atom, one of mass 0, changes.

    Raises:
        TypeError: for a leaf that is not real floating.
        ValueError: if an atom has no leaf, or one whose shape does not fit its axes or
            its repeats; and as `shares`.

    Example:
        >>> from manifold_optax.modular import Atom, modular_norm
        >>> updates = {"up": jnp.full((1, 1), 0.5), "down": jnp.full((1, 1), -0.25)}
        >>> modular_norm(Atom("down") @ (2 * Atom("up")), updates)
        Array(2., dtype=float32)
    """
    found = shares(module)
    norms = _norms(module, updates)
    ratios = [jnp.zeros(1)]
    for path, each in norms.items():
        share = jnp.asarray(found[path], each.dtype)
        # A frozen atom that does not move must not give 0 / 0.
        ratios.append(jnp.where(each == 0, 0, each / share))
    return jnp.max(jnp.concatenate(ratios))


def _norms(module: Module, updates: ArrayTree) -> dict[str, Array]:
    """Norm of the change of each atom that has one, `[slices]`, by path."""
    leaves, counts = leaves_by_path(updates), repeats(module)
    # Atoms of one norm and axes go through one map, which stacks them.
    groups = collections.defaultdict[tuple[Norm, Axes | None], dict[str, Array]](dict)
    for path, atom in atoms(module).items():
        if path not in leaves:
            raise ValueError(
                f"The module has an atom {path!r}, but the updates have no such leaf; "
                f"they have {', '.join(map(repr, leaves)) or 'none'}."
            )
        if is_absent(leaves[path]):
            continue
        leaf = jnp.asarray(leaves[path])
        if leaf.shape[: len(counts[path])] != counts[path]:
            raise ValueError(
                f"The atom {path!r} is repeated {counts[path]} times, so its leaf "
                f"needs these leading axes; its shape is {leaf.shape}."
            )
        axes = atom.axes
        if axes is None:
            leaf, axes = _as_matrices(leaf, path, len(counts[path])), STACKED
        groups[atom.norm, axes][path] = leaf
    norms: dict[str, Array] = {}
    for (norm, axes), tree in groups.items():
        kernel = functools.partial(_value, norm)
        values: Mapping[str, Any] = map_matrices(
            kernel, (tree,), returns=("number",), axes=axes, orientation="fixed"
        )
        for path, value in values.items():
            slices = value.reshape(math.prod(counts[path]), -1)
            norms[path] = jnp.max(slices, axis=-1)
    return norms


def _as_matrices(leaf: Array, path: str, leading: int) -> Array:
    """A leaf without declared axes as `[*leading, in, out]`.

    A vector is the linear map from the number 1 to its entries, so `RmsToRms` is its
    root mean square.
    """
    axes = leaf.ndim - leading
    if axes > 2:
        raise ValueError(
            f"The leaf {path!r} of shape {leaf.shape} has {axes} axes that no Repeat "
            "accounts for, and its atom does not say which of them are the matrix: "
            "Atom(path, axes=mo.STACKED) for [*batch, in, out], for example."
        )
    if axes == 2:
        return leaf
    return leaf.reshape(*leaf.shape[:leading], 1, -1)


def _value(norm: Norm, x: Matrix, *, axis_name: AxisName = None) -> PerMatrix:
    return norm.value(x, axis_name=axis_name)
