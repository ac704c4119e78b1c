"""An optimizer for a network that was read: directions, shares, retractions."""

from typing import Any

import optax

from manifold_optax import transforms
from manifold_optax._checks import require_flag, require_in_range, require_one_of
from manifold_optax._typing import ArrayTree, Schedule
from manifold_optax.geometry import Euclidean
from manifold_optax.matrices import Placement
from manifold_optax.modular._budgets._budget import (
    Budget,
    budget as budget_of_module,
    check_module,
    KINDS,
    ReadModule,
    Sensitivity,
)
from manifold_optax.modular._budgets._directions import (
    direction_links,
    Group,
    groups_of,
)
from manifold_optax.modular._budgets._scale import scale_by_modular_budget
from manifold_optax.optimizers import hybrid
from manifold_optax.optimizers._links import Momentum, momentum_link


def modular_optimizer(
    module: ReadModule,
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: Momentum = 0.95,
    nesterov: bool = True,
    others: optax.GradientTransformation | None = None,
    budget: Budget | Sensitivity = "nominal",
    schedule: Schedule | None = None,
    placement: Placement | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Steepest descent in the modular norm of a network that was read.

    Each parameter with a share takes its steepest direction of unit norm on its
    manifold, times its share of the learning rate, and is brought back to its manifold.
    The chain is `momentum → direction → share → learning_rate → retraction`, once for
    each distinct manifold and norm of the network, joined by `hybrid`.

    Args:
        module: what `read` returns.
        learning_rate: number ≥ 0 or schedule, for all parameters with a share: how much
            a step changes the output, to first order.
        momentum: decay of the average in [0, 1), an `Average`, or a transformation in
            its place; `None` for none.
        nesterov: whether the average looks one step ahead.
        others: for the parameters without a share; `None`: `optax.adamw(3e-4)`.
        budget: the shares; a name stands for `budget(module, sensitivity=name)`.
        schedule: coefficients of `orthogonalize_via_newton_schulz` for matrices without
            a constraint, such as `linalg.JORDAN`; cheaper, but the norm of a direction
            is then only near 1. `None`: exact directions.
        placement: which device computes which matrix; `None`: see `map_matrices`.

    Returns:
        A transformation over the whole model. Its state is that of the momentum and of
        `others`; `update` needs `params`.

    Raises:
        TypeError: for arguments of another kind.
        ValueError: for numbers out of range, as `budget` does, and for a manifold and a
            norm without a known direction. At init, for parameters of other paths or
            shapes than were read, and for weights off their manifold (see
            `project_parameters`).

    Example:
        >>> def forward(params, x):
        ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
        >>> params, x = {"up": jnp.eye(4), "down": jnp.eye(4)}, jnp.ones((2, 4))
        >>> module = mo.modular.read(forward, params, x)
        >>> tx = modular_optimizer(module, 0.1, momentum=None)
        >>> updates, _ = tx.update(params, tx.init(params), params)
        >>> round(float(updates["up"][0, 0]), 4)
        -0.05

    Source: T. Large et al., "Scalable Optimization in the Modular Norm" (arXiv
    2405.14813, 2024); J. Bernstein, "Modular Manifolds", Thinking Machines Lab (2025).
    """
    check_module("module", module)
    require_in_range("learning_rate", learning_rate, "[0, inf)", schedule=True)
    require_flag("nesterov", nesterov)
    shared = _shared(module, budget)
    groups = groups_of(shared.atoms, module.shapes)
    share = scale_by_modular_budget(shared)

    def chain(group: Group) -> optax.GradientTransformation:
        links = (
            *momentum_link(momentum, nesterov=nesterov),
            *direction_links(group, schedule=schedule, placement=placement),
            ("share", share),
            ("scale_by_learning_rate", optax.scale_by_learning_rate(learning_rate)),
        )
        if group.manifold == Euclidean():
            return optax.named_chain(*links)
        retraction = transforms.retract(
            group.manifold, axes=group.axes, placement=placement
        )
        return optax.named_chain(*links, ("retraction", retraction))

    chains = {label: chain(group) for label, group in groups.distinct.items()}
    return hybrid(chains, others=others, labels=groups)


def project_parameters(
    module: ReadModule, params: ArrayTree, *, placement: Placement | None = None
) -> ArrayTree:
    """Brings every parameter onto its manifold, for the start of training.

    Parameters without a constraint, vectors among them, are returned as they are: how
    large they are at the start is the matter of their initializer.

    Args:
        module: what `read` returns.
        params: the parameters that were read.
        placement: which device computes which matrix; `None`: see `map_matrices`.

    Returns:
        A tree like `params`, in its dtypes.

    Raises:
        TypeError: for a module of another kind.
        ValueError: for parameters of other paths or shapes than were read.

    Example:
        >>> def forward(params, x):
        ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
        >>> params = {"up": 2 * jnp.eye(4), "down": jnp.eye(4)}
        >>> geometry = {"up": (mo.Stiefel(), mo.RmsToRms())}
        >>> module = mo.modular.read(
        ...     forward, params, jnp.ones((2, 4)), geometry=geometry
        ... )
        >>> params = project_parameters(module, params)
        >>> bool(mo.Stiefel().residual(params["up"]) < 1e-6)
        True
    """
    check_module("module", module)
    groups = groups_of(module.atoms, module.shapes)
    groups(params)
    for group in groups.distinct.values():
        if group.manifold != Euclidean():
            axes = groups.axes_of(group)
            params = transforms.project(
                params, group.manifold, axes=axes, placement=placement
            )
    return params


def _shared(module: ReadModule, budget: Any) -> Budget:
    if isinstance(budget, Budget):
        unread = sorted(set(budget.shares) - set(module.shapes))
        if unread:
            raise ValueError(
                "The budget is one of another module: it has shares for the parameters "
                f"{unread}, which this module does not have."
            )
        return budget
    require_one_of("budget", budget, KINDS)
    return budget_of_module(module, sensitivity=budget)
