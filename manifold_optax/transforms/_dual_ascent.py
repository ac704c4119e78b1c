"""Manifold Muon's direction: Stiefel under the spectral norm, solved on its dual."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import optax
from jaxtyping import Array

from manifold_optax._checks import (
    require_flag,
    require_in_range,
    require_instance,
    require_one_of,
    require_params,
    require_static_steps,
)
from manifold_optax._typing import ArrayTree, AxisName, Matrix
from manifold_optax.geometry import (
    BACKENDS,
    CertifiedDirection,
    Stiefel,
    stiefel_spectral_direction,
)
from manifold_optax.matrices import AxesLike, per_matrix, Placement, Result
from manifold_optax.transforms._flops import of_dual_ascent
from manifold_optax.transforms._leaves import orientation_of, unit_map
from manifold_optax.transforms._stage import Stage, staged
from manifold_optax.transforms._start import start
from manifold_optax.trees import fill_absent


class DualAscentState(NamedTuple):
    """State of `dual_ascent_spectral`: what is known of the last direction.

    Each leaf is float32, `[*batch]` (`[*batch, blocks]` for a `Split`).
    """

    gap: ArrayTree
    """Relative duality gap, an upper bound of what was lost, in [0, 1]; 1 before the
    first update. `None` in place of the tree where it was not asked for."""
    tangency: ArrayTree
    """`‖WᵀA + AᵀW‖_F / ‖A‖_F`; 0 before the first update."""


def dual_ascent_spectral(
    manifold: Stiefel | None = None,
    *,
    steps: int | None = None,
    tolerance: float | None = None,
    backend: Literal["eigh", "products", "products64"] | None = None,
    axes: AxesLike = None,
    placement: Placement | None = None,
    certify: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Steepest tangent direction of unit spectral norm on the Stiefel manifold.

    Replaces the update `G` at the parameter `W` by the `A` that maximises `⟨A, G⟩` over
    `WᵀA + AᵀW = 0`, `‖A‖₂ ≤ 1` (`‖A‖₂ ≤ s` on the manifold of scale `s`). The solver
    is scale-invariant and starts cold at every step, so it keeps no dual variable; see
    `geometry.stiefel_spectral_direction` for the algorithm. (`steepest(manifold,
    Spectral())` is the same direction without a choice of steps and backend.) The
    parameters must lie on the manifold: project them first. A `tangency` above 1e-4
    says that they do not.

    Args:
        manifold: `Stiefel(scale)`; `None`: scale 1.
        steps: majorise-minimise steps, ≥ 0 and static. `None`: 2 to 8 by shape and
            backend. With a `tolerance` the largest number; `None`:
            256.
        tolerance: relative duality gap at which the solver stops, in (0, 1); `None`: a
            fixed number of steps. The `gap` in the state shows whether it was reached.
            Matrices that are solved together on an accelerator stop together.
        backend: `"eigh"` (eigendecompositions in float64), `"products"` (products
            alone), `"products64"` (products in float64, for accelerators that are as
            fast in it); `None`: the first on a CPU, the second elsewhere.
        axes: which axes of a leaf are the matrix; all others are batch axes.
        placement: which device computes which matrix; `None`: see `map_matrices`.
        certify: whether the state has a `gap`, at the cost of two more small
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
        >>> _, state = jax.jit(tx.update)(gradient, tx.init(params), params)
        >>> bool(state.gap["w"] < 1e-2)
        True

    Source: J. Bernstein, "Modular Manifolds", Thinking Machines Lab (2025).
    """
    manifold = Stiefel() if manifold is None else manifold
    require_instance("manifold of dual_ascent_spectral", manifold, Stiefel)
    solve = _solver(steps, tolerance, backend, certify=certify)

    def kernel(
        update: Matrix, point: Matrix, axis_name: AxisName = None
    ) -> tuple[Array, ...]:
        found = solve(point, update, axis_name=axis_name)
        assert found.tangency is not None
        gap = (found.gap,) if certify and found.gap is not None else ()
        return found.direction, *gap, found.tangency

    returns: tuple[Result, ...] = ("matrix", *(["number"] if certify else []), "number")
    solve_all = unit_map(
        kernel,
        manifold,
        axes=axes,
        placement=placement,
        returns=returns,
        flops=of_dual_ascent(steps),
    )

    def unknown(params: ArrayTree) -> DualAscentState:
        return DualAscentState(
            per_matrix(params, 1.0, axes=axes) if certify else None,
            per_matrix(params, 0.0, axes=axes),
        )

    init_fn = start(
        "dual_ascent_spectral",
        axes,
        placement=placement,
        manifold=manifold,
        state=unknown,
    )

    def update_fn(
        updates: ArrayTree, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[ArrayTree, DualAscentState]:
        del extra_args
        require_params(params, "dual_ascent_spectral")
        found, *numbers = solve_all((updates,), (params,), like=updates)
        return found, known(state, numbers)

    def known(old: DualAscentState, numbers: Sequence[ArrayTree]) -> DualAscentState:
        *gap, tangency = numbers
        return DualAscentState(
            fill_absent(gap[0], old.gap) if gap else None,
            fill_absent(tangency, old.tangency),
        )

    stage = Stage(
        name="dual_ascent_spectral",
        kernel=kernel,
        returns=returns,
        in_units=True,
        orientation=orientation_of(manifold.transposable),
        whole=False,
        manifold=manifold,
        axes=axes,
        placement=placement,
        flops=of_dual_ascent(steps),
        state=known,
    )
    return staged(init_fn, update_fn, stage)


def _solver(
    steps: int | None,
    tolerance: float | None,
    backend: Literal["eigh", "products", "products64"] | None,
    *,
    certify: bool,
) -> Callable[..., CertifiedDirection]:
    """The solver of checked arguments."""
    require_static_steps("steps", steps)
    require_flag("certify", certify)
    require_in_range("tolerance", tolerance, "(0, 1)", optional=True)
    if backend is not None:
        require_one_of("backend", backend, BACKENDS)
    return functools.partial(
        stiefel_spectral_direction,
        steps=steps,
        tolerance=tolerance,
        backend=backend,
        certify=certify,
    )
