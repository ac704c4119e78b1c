"""Manifold Muon's direction: Stiefel under the spectral norm, solved on its dual."""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array

from manifold_optax._checks import (
    require_in_range,
    require_instance,
    require_one_of,
    require_params,
    require_static_steps,
)
from manifold_optax._typing import ArrayTree, AxisName, Matrix
from manifold_optax.geometry import (
    BACKENDS,
    Stiefel,
    stiefel_spectral_direction,
)
from manifold_optax.matrices import (
    Axes,
    LAST_TWO,
    map_matrices,
    per_matrix,
    Placement,
)
from manifold_optax.transforms._leaves import (
    divide_leaves,
    multiply_leaves,
    sizes_at,
)


class DualAscentState(NamedTuple):
    """State of `dual_ascent_spectral`: what is known of the last direction.

    Each leaf is float32, `[*batch]` (`[*batch, blocks]` for a `Split`), NaN before the
    first update.
    """

    gap: ArrayTree
    """Relative duality gap, an upper bound of what was lost; NaN when not asked for."""
    tangency: ArrayTree
    """`‖WᵀA + AᵀW‖_F / ‖A‖_F`."""


def dual_ascent_spectral(
    manifold: Stiefel | None = None,
    *,
    steps: int | None = None,
    tolerance: float | None = None,
    backend: str | None = None,
    axes: Axes = LAST_TWO,
    placement: Placement | None = None,
    certify: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Steepest tangent direction of unit spectral norm on the Stiefel manifold.

    Replaces the update `G` at the parameter `W` by the `A` that maximises `⟨A, G⟩` over
    `WᵀA + AᵀW = 0`, `‖A‖₂ ≤ 1` (`‖A‖₂ ≤ s` on the manifold of scale `s`). The solver
    is scale-invariant and starts cold at every step, so it keeps no dual variable; see
    `geometry.stiefel_spectral_direction` for the algorithm. (`steepest(manifold,
    Spectral())` is the same direction without steps, certificate and state.) The
    parameters must lie on the manifold: project them first. A `tangency` above 1e-4
    says that they do not.

    Args:
        manifold: `Stiefel(scale)`; `None`: scale 1.
        steps: majorise-minimise steps, ≥ 0 and static. `None`: 2 to 8 by shape and
            backend. With a `tolerance` the largest number, `None`: 64.
        tolerance: relative duality gap at which the solver stops, in (0, 1); `None`: a
            fixed number of steps. Matrices that are solved together on an accelerator
            stop together.
        backend: `"eigh"` (eigendecompositions in float64), `"products"` (products
            alone), `"products64"` (products in float64, for accelerators that are as
            fast in it); `None`: the first on a CPU, the second elsewhere.
        axes: which axes of a leaf are the matrix; all others are batch axes.
        placement: which device computes which matrix; `None`: see `map_matrices`.
        certify: whether to fill the state's `gap`, at the cost of two more small
            eigendecompositions and `4·m·n²` FLOPs.

    Returns:
        A transformation with state `DualAscentState` that needs `params`. A gradient
        without a tangent part gives 0.

    Raises:
        ValueError: for negative steps, a tolerance out of range, an unknown backend;
            at update, if `params` is None or a leaf is not a batch of matrices.
        TypeError: for steps that are not a static int, or another manifold.

    Cost: `22·m·n²` FLOPs, and on the short side `4 + steps` eigendecompositions or
    `155 + 41·steps` products.

    Example:
        >>> tx = dual_ascent_spectral(certify=True)
        >>> params = {"w": jnp.eye(4, 2)}
        >>> gradient = {"w": jnp.arange(8.0).reshape(4, 2)}
        >>> _, state = tx.update(gradient, tx.init(params), params)
        >>> bool(state.gap["w"] < 1e-2)
        True

    Source: J. Bernstein, "Modular Manifolds", Thinking Machines Lab (2025).
    """
    require_static_steps("steps", steps)
    _check_tolerance(tolerance)
    if backend is not None:
        require_one_of("backend", backend, BACKENDS)
    manifold = Stiefel() if manifold is None else manifold
    require_instance("manifold of dual_ascent_spectral", manifold, Stiefel)

    solve = functools.partial(
        stiefel_spectral_direction,
        steps=steps,
        tolerance=tolerance,
        backend=backend,
        certify=certify,
    )

    def kernel(
        update: Matrix, point: Matrix, *numbers: Array, axis_name: AxisName = None
    ) -> Any:
        del numbers
        found = solve(point, update, axis_name=axis_name)
        gap = jnp.full((), jnp.nan) if found.gap is None else found.gap
        return (found.direction,), (gap, found.tangency)

    def init_fn(params: ArrayTree) -> DualAscentState:
        unknown = float("nan")
        return DualAscentState(
            per_matrix(params, unknown, axes=axes),
            per_matrix(params, unknown, axes=axes),
        )

    def update_fn(
        updates: ArrayTree,
        state: Any,
        params: Any = None,
        **extra_args: Any,
    ) -> tuple[ArrayTree, DualAscentState]:
        del extra_args
        require_params(params, "dual_ascent_spectral")
        sizes = sizes_at(manifold, updates, params, axes)
        (found,), numbers = map_matrices(
            kernel,
            (updates, divide_leaves(params, sizes)),
            (state.gap, state.tangency),
            axes=axes,
            placement=placement,
        )
        return multiply_leaves(found, sizes, like=updates), DualAscentState(*numbers)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _check_tolerance(tolerance: Any) -> None:
    if tolerance is None:
        return
    require_in_range("tolerance", tolerance, 0.0, 1.0)
    if not isinstance(tolerance, Tracer) and not tolerance:
        raise ValueError(
            "tolerance must be above 0, the solver never gets there; got 0."
        )
