"""Scale of an update by the shape of its matrix."""

import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import optax
from jaxtyping import Array

from manifold_optax._checks import require_one_of
from manifold_optax._typing import ArrayTree
from manifold_optax.matrices import AxesLike
from manifold_optax.matrices._view import views_of
from manifold_optax.transforms._leaves import per_block
from manifold_optax.transforms._start import start
from manifold_optax.trees import map_leaves

ShapeRule: TypeAlias = Literal["none", "width", "spectral", "rms"]
"""Name of a factor of `scale_by_shape`."""

SHAPE_RULES: dict[str, Callable[[int, int], float]] = {
    "none": lambda *_: 1.0,
    "width": lambda fan_out, fan_in: math.sqrt(max(1.0, fan_out / fan_in)),
    "spectral": lambda fan_out, fan_in: math.sqrt(fan_out / fan_in),
    "rms": lambda fan_out, fan_in: 0.2 * math.sqrt(max(fan_out, fan_in)),
}
"""Named factors as functions of fan-out and fan-in.

"width": K. Jordan's Muon, the default of Optax and PyTorch. "spectral": RMS→RMS norm 1
(J. Bernstein, L. Newhouse, arXiv 2409.20325, and muP); Emerging-Optimizers calls √max
"spectral", which is another factor. "rms": the root mean square of an AdamW update, 0.2
(J. Liu et al., "Muon is scalable for LLM training", arXiv 2502.16982, section 2.2).
"""


def scale_by_shape(
    rule: ShapeRule = "width", *, axes: AxesLike = None
) -> optax.GradientTransformationExtraArgs:
    """Multiplies each update by a factor of the shape of its matrix.

    | rule | factor | after orthogonalization |
    |---|---|---|
    | `"none"` | 1 | spectral norm 1 |
    | `"width"` | √max(1, fan_out/fan_in) | Muon's own |
    | `"spectral"` | √(fan_out/fan_in) | RMS→RMS norm 1 |
    | `"rms"` | 0.2·√max(fan_out, fan_in) | root mean square 0.2, AdamW's |

    The factors depend on which axis is fan-in: a Flax kernel is `(fan_in, fan_out)`, a
    PyTorch weight the other way round (say so with `axes`).

    Args:
        rule: name of the factor.
        axes: which axes of a leaf are fan-in and fan-out; all others are batch axes.

    Returns:
        A stateless transformation; updates keep their dtype.

    Raises:
        ValueError: for an unknown rule; at update, for a leaf that is not a batch of
            matrices.

    Example:
        >>> tx = scale_by_shape("spectral")
        >>> updates = {"w": jnp.ones((1, 4))}
        >>> tx.update(updates, tx.init(updates))[0]
        {'w': Array([[2., 2., 2., 2.]], dtype=float32)}
    """
    require_one_of("rule", rule, tuple(SHAPE_RULES))
    factor = SHAPE_RULES[rule]

    def scale(path: str, update: Array) -> Array:
        if update.size == 0:
            return update
        views = views_of(update, path, axes)
        factors = per_block(
            update, views, lambda view: factor(view.fan_out, view.fan_in)
        )
        return (update * factors).astype(update.dtype)

    def update_fn(
        updates: ArrayTree, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[ArrayTree, Any]:
        del params, extra_args
        return map_leaves(scale, updates), state

    return optax.GradientTransformationExtraArgs(
        start("scale_by_shape", axes, planned=False), update_fn
    )
