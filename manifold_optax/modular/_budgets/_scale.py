"""Products of updates with numbers that are known beforehand: shares and lengths."""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from manifold_optax._typing import ArrayTree
from manifold_optax.geometry import Manifold, Norm, RmsToRms
from manifold_optax.matrices import AxesLike
from manifold_optax.matrices._report import check_matrices
from manifold_optax.matrices._view import View, views_of
from manifold_optax.modular._budgets._atom_axes import axes_of_atoms
from manifold_optax.modular._budgets._budget import Budget, budget, ReadModule
from manifold_optax.trees import is_absent, leaves_by_path, map_leaves

Factor: TypeAlias = float | np.ndarray
"""A number, or an array that broadcasts with its leaf."""


def scale_by_modular_budget(
    module: ReadModule | Budget,
) -> optax.GradientTransformationExtraArgs:
    """Multiplies each update by the share of its parameter.

    After directions of unit norm it makes the learning rate a change of the output:
    all steps together change the output by at most the learning rate, to first order.
    The slices of a scanned stack have a share each, along the leading axis of the leaf.

    Args:
        module: what `read` returns, whose nominal budget is taken, or a `Budget`.

    Returns:
        A stateless transformation. Updates keep their dtype; the product is taken in at
        least float32. `None` and masked leaves pass.

    Raises:
        TypeError: for a module of another kind.
        ValueError: at init and update, naming it, for a parameter without a share, and
            for a stack with another number of slices than shares.

    Example:
        >>> def forward(params, x):
        ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
        >>> params, x = {"up": jnp.eye(4), "down": jnp.eye(4)}, jnp.ones((2, 4))
        >>> module = mo.modular.read(forward, params, x)
        >>> tx = optax.chain(
        ...     mo.steepest(mo.Euclidean(), mo.RmsToRms()),
        ...     scale_by_modular_budget(module),
        ...     optax.scale_by_learning_rate(0.1),
        ... )
        >>> updates, _ = tx.update(params, tx.init(params), params)
        >>> round(float(updates["up"][0, 0]), 4)
        -0.05
    """
    shared = module if isinstance(module, Budget) else budget(module)
    axes = axes_of_atoms(shared.atoms)

    def factor_of(path: str, leaf: Any) -> Factor:
        return _share_of(shared, path, tuple(leaf.shape))

    def init_fn(params: ArrayTree) -> optax.EmptyState:
        leaves = {k: v for k, v in leaves_by_path(params).items() if not is_absent(v)}
        for path, leaf in leaves.items():
            factor_of(path, leaf)
        matrices = {path: leaf for path, leaf in leaves.items() if path in axes.axes}
        check_matrices("scale_by_modular_budget", matrices, axes, planned=False)
        return optax.EmptyState()

    return optax.GradientTransformationExtraArgs(init_fn, _product_with(factor_of))


def scale_to_unit_norm(
    manifold: Manifold, norm: Norm, *, axes: AxesLike
) -> optax.GradientTransformationExtraArgs:
    """Multiplies directions of `steepest` so that they have length 1 in `norm`.

    Args:
        manifold: with which the directions were made; they have the length of its size.
        norm: in which lengths are measured. The directions were made with
            `norm.free_of_shape`.
        axes: which axes of a leaf are the matrix.

    Returns:
        A stateless transformation; updates keep their dtype.
    """

    def factor_of(path: str, leaf: Any) -> Factor:
        views = views_of(leaf, path, axes)
        return _per_block(views, len(leaf.shape), lambda v: _factor(v, manifold, norm))

    return optax.GradientTransformationExtraArgs(
        optax.init_empty_state, _product_with(factor_of)
    )


def has_unit_norm(manifold: Manifold, norm: Norm) -> bool:
    """Whether `scale_to_unit_norm` would multiply by 1, whatever the shape."""
    if norm == RmsToRms():
        return manifold.size == "rms"
    return manifold.size == 1


def _factor(view: View, manifold: Manifold, norm: Norm) -> float:
    """The factor that gives a direction norm 1."""
    if not view.fan_in or not view.fan_out:
        return 1.0
    root = (view.fan_out / view.fan_in) ** 0.5
    size = root if manifold.size == "rms" else float(manifold.size)
    return (root if norm == RmsToRms() else 1.0) / size


def _per_block(
    views: tuple[View, ...], rank: int, number: Callable[[View], float]
) -> Factor:
    """A number per block, laid out along the split axis."""
    numbers = [number(view) for view in views]
    if len(set(numbers)) == 1:
        return numbers[0]
    first = views[0]
    assert first.window is not None
    sizes = [view.window[2] - view.window[1] for view in views if view.window]
    along = np.tile(np.repeat(numbers, sizes), first.repeats)
    # The split axis of the leaf: where blocks repeat, the view has one axis more.
    axis = first.window[0] - (first.repeats > 1)
    shape = [1] * rank
    shape[axis] = along.size
    return along.reshape(shape)


def _share_of(shared: Budget, path: str, shape: tuple[int, ...]) -> Factor:
    """The share of a leaf, or those of its slices.

    Raises:
        ValueError: if it has none, or not as many as the leaf has slices.
    """
    if path not in shared.shares:
        raise ValueError(
            f"The parameter {path!r} of shape {shape} has no share in the budget. Give "
            "such parameters another optimizer: mo.modular.modular_optimizer does, and "
            "mo.hybrid by their labels; vectors have a share with vectors=True. These "
            f"have one: {', '.join(shared.shares)}."
        )
    shares = shared.shares[path]
    grid = grid_of(path, shape, len(shares))
    if len(set(shares)) == 1:
        return shares[0]
    return np.reshape(shares, grid)


def grid_of(path: str, shape: tuple[int, ...], slices: int) -> tuple[int, ...]:
    """Shape in which one number per slice broadcasts with a leaf.

    The slices of a scanned stack lie along the leading axis of its leaf; those of
    nested scans along as many leading axes, the outermost first.

    Raises:
        ValueError: if no leading axes hold this number of slices.
    """
    for axes in range(len(shape) + 1):
        if math.prod(shape[:axes]) == slices:
            return (*shape[:axes], *(1,) * (len(shape) - axes))
    raise ValueError(
        f"There are {slices} shares for {path!r}, one per slice of a scanned stack, "
        f"but the leading axes of the leaf of shape {shape} do not hold {slices} "
        "slices. Read the module again with these parameters."
    )


def _product_with(factor_of: Callable[[str, Any], Factor]) -> Any:
    """The `update` that multiplies each leaf by its factor."""

    def multiply(path: str, update: Array) -> Array:
        # A share rounded to bfloat16 would be off by up to 0.4 %.
        wide = jnp.promote_types(update.dtype, jnp.float32)
        factor = factor_of(path, update)
        if isinstance(factor, np.ndarray):
            factor = jnp.asarray(factor, wide)
        return (update.astype(wide) * factor).astype(update.dtype)

    def update_fn(
        updates: ArrayTree, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[ArrayTree, Any]:
        del params, extra_args
        return map_leaves(multiply, updates), state

    return update_fn
