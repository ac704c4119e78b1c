"""`local_lipschitz_bound`: how fast the output changes near given inputs, at most."""

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from manifold_optax._checks import require_concrete, require_in_range
from manifold_optax._typing import ArrayTree
from manifold_optax.modular._bounds._sizes import Unreadable
from manifold_optax.modular._certificates._certificate import certificate
from manifold_optax.modular._certificates._domains import L2Ball
from manifold_optax.modular._certificates._local import LocalNetwork
from manifold_optax.modular._certificates._local_value import Around, Ball, Unbounded

_PASSES = 4
"""In so many steps a ball grows to its radius. On a pre-norm block in a ball of 1e-2
of the norm of its input, 1, 2 and 4 steps gave 1090, 243 and 150 for a Jacobian of 3.3
(`benchmarks/local_certificates.py` draws such blocks)."""

ROUNDED_UP = 1 + 4e-6
"""What a bound is multiplied with, for weights and products in float32."""


def local_lipschitz_bound(
    function: Callable[[ArrayTree, Any], Any],
    params: ArrayTree,
    x: Float[Array, "n ..."],
    radius: float,
    *,
    output: str | None = None,
) -> Float32[Array, " n"]:
    """For each input a number that no ratio of changes exceeds in a ball around it.

    For all `y` and `z` with `‖y − x[i]‖ ≤ radius` and `‖z − x[i]‖ ≤ radius`,
    `‖f(y) − f(z)‖ ≤ bound[i] · ‖y − z‖`; norms as in `lipschitz_bound`. The bound is
    the norm of the Jacobian at a point of the ball, and of how much the Jacobian moves
    on it: of all slopes an interval is computed. So it is the norm of the Jacobian for
    radius 0, and for large radii at most the global bound.

    It holds in real arithmetic, as `lipschitz_bound` does. The computation runs on the
    host, in float64, outside of `jit`.

    Args:
        function: `(params, x)` → an array, each example for itself.
        params: pytree of arrays.
        x: the centers.
        radius: Euclidean over all axes but the first, in `[0, inf)`.
        output: path of the output that counts; `None`: the first array of floats.

    Returns:
        `[n]`. Where a step has no local rule (loops, jumps, comparisons of numbers
        that move) it is the global bound, with a warning that names the step.

    Raises:
        ValueError: inside `jit`, or for a radius out of its range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from manifold_optax import modular
        >>> def mlp(params, x):
        ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
        >>> up = jnp.diag(jnp.array([2.0, 4.0, 4.0, 4.0]))
        >>> params = {"up": up, "down": jnp.eye(4)}
        >>> x = jnp.array([[1.0, -1.0, -1.0, -1.0]])
        >>> bound = modular.local_lipschitz_bound(mlp, params, x, 0.5)
        >>> print(f"{bound[0]:.3f}, {modular.lipschitz_bound(mlp, params, x):.3f}")
        2.000, 4.000

    Cost: for each input, for each of four passes, one product of the Jacobian of every
    value with the next weight, and of the matrices of all earlier errors; memory for
    the largest of these matrices, `entries · (inputs + entries in error)`.

    Source: M. Jordan and A. Dimakis, "Exactly Computing the Local Lipschitz Constant of
    ReLU Networks" (2003.01219), for interval slopes; L. Weng et al., "Towards Fast
    Computation of Certified Robustness for ReLU Networks" (1804.09699), section 3.4.
    """
    require_in_range("radius", radius, "[0, inf)")
    require_concrete("local_lipschitz_bound", "local bounds", params, x)
    like = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    centers = np.asarray(x, np.float64)
    norms = np.linalg.norm(centers.reshape(len(centers), -1), axis=1)
    within = L2Ball(like, float(np.max(norms, initial=0.0)) * ROUNDED_UP + radius)
    proof = certificate(function, params, within, output=output)
    most = float(proof.lipschitz(params))
    local = local_bounds(function, params, x, radius, output)
    return jnp.asarray(np.minimum(local, most), jnp.float32)


def local_bounds(
    function: Callable[[ArrayTree, Any], Any],
    params: ArrayTree,
    x: Float[Array, "n ..."],
    radius: float,
    output: str | None = None,
) -> np.ndarray:
    """Like `local_lipschitz_bound`, whatever the global bound is: ∞ without a rule."""
    like = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    network = read_locally("local_lipschitz_bound", function, params, like, output)
    bounds = np.full(len(x), np.inf)
    steps = range(1, _PASSES + 1) if radius else (_PASSES,)
    for k, center in enumerate(np.asarray(x, np.float64)):
        if network is None:
            break
        radii = [radius * step / _PASSES for step in steps]
        *_, last = network.outputs(center[None], radii)
        if last is not None:
            axes = [len(last.shape) - 1] if last.shape else []
            bounds[k] = float(np.max(last.norms(axes), initial=0.0)) * ROUNDED_UP
    return bounds


@dataclasses.dataclass(frozen=True, eq=False)
class LocalOutputs:
    """The outputs of a network on growing balls.

    Attributes:
        network: the network.
        name: of the function that asks, for the warning.
        warned: holds something after the first warning.
    """

    network: LocalNetwork
    name: str
    warned: list[str] = dataclasses.field(default_factory=list)

    def outputs(
        self, center: np.ndarray, radii: list[float]
    ) -> Iterator[Around | None]:
        """The output on each ball; `None` where nothing is known of it.

        Args:
            center: with its first axis of 1.
            radii: in growing order.
        """
        ball: Ball | None = None
        for radius in radii:
            try:
                ball = Ball(radius, ball)
                yield self.network.around(center, ball)
            except (Unbounded, Unreadable) as error:
                if isinstance(error, Unreadable):
                    self._warn(str(error))
                yield None
                return

    def _warn(self, problem: str) -> None:
        if not self.warned:
            self.warned.append(problem)
            _warn(self.name, problem)


def read_locally(
    name: str,
    function: Callable[..., Any],
    params: ArrayTree,
    like: jax.ShapeDtypeStruct,
    output: str | None = None,
) -> LocalOutputs | None:
    """A network for local bounds; `None`, with a warning, where there is no way."""
    try:
        return LocalOutputs(LocalNetwork(function, params, like, output), name)
    except Unreadable as error:
        _warn(name, str(error))
        return None


def _warn(name: str, problem: str) -> None:
    warnings.warn(
        f"{name}: the global bound is in the place of a local one. {problem}",
        stacklevel=4,
    )


def local_radii(
    function: Callable[[ArrayTree, Any], Array],
    params: ArrayTree,
    x: Float[Array, "n ..."],
    labels: np.ndarray,
    margins: np.ndarray,
    pairs: np.ndarray,
) -> np.ndarray:
    """How far each input may move before its decision can change, by local bounds.

    On the way from the center the margin over class `j` falls no faster than the bound
    of `f_label − f_j` on the ball that has been reached: the bounds of growing balls
    are summed.

    Args:
        function: `(params, x)` → `[n, classes]`.
        params: pytree of arrays.
        x: the centers.
        labels: `[n]`.
        margins: `[n, classes]`: output of the label less that of the class.
        pairs: `[classes, classes]`: global bounds of differences.
    """
    like = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    network = read_locally("certified_radius", function, params, like)
    radii = np.zeros(len(x))
    for k, center in enumerate(np.asarray(x, np.float64)):
        others = np.arange(margins.shape[1]) != labels[k]
        if np.any(margins[k][others] <= 0):
            continue
        most, margin = pairs[labels[k]], margins[k]
        if network is None:
            radii[k] = _travelled([], [], margin[others], most[others])
        else:
            radii[k] = _local_radius(
                network, center[None], int(labels[k]), margin, most
            )
    return radii


_STEPS = 8
"""In so many steps the ball grows to the largest radius that there could be. Each
costs as much as the others, and the sum comes nearer to the integral."""


def _local_radius(
    network: LocalOutputs,
    center: np.ndarray,
    label: int,
    margin: np.ndarray,
    most: np.ndarray,
) -> float:
    """The radius of one input."""
    others = np.arange(len(margin)) != label
    margin, most = margin[others], most[others]
    (at_center,) = network.outputs(center, [0.0])
    if at_center is None:
        return _travelled([], [], margin, most)
    rates = _pair_rates(at_center, label)[others]
    largest = float(np.min(np.divide(margin, rates, where=rates > 0,
                                     out=np.full(len(margin), np.inf))))  # fmt: skip
    if not math.isfinite(largest):
        return _travelled([], [], margin, most)
    radii = [largest * step / _STEPS for step in range(1, _STEPS + 1)]
    found: list[np.ndarray] = []
    for out in network.outputs(center, radii):
        if out is None:
            break
        found.append(np.minimum(_pair_rates(out, label)[others], most))
        steps = np.diff([0.0, *radii[: len(found)]])
        if np.any(steps @ np.stack(found) >= margin):
            break
    return _travelled(radii[: len(found)], found, margin, most)


def _pair_rates(out: Around, label: int) -> np.ndarray:
    """A bound of the derivative of `f_label − f_j` on the ball, for each j."""
    difference = out.map(
        lambda c: c[..., label : label + 1] - c,
        lambda c: np.broadcast_to(c, out.shape)[..., label : label + 1] + c,
        out.center,
    )
    return difference.rows.reshape(-1) * ROUNDED_UP


def _travelled(
    radii: list[float],
    rates: list[np.ndarray],
    margin: np.ndarray,
    most: np.ndarray,
) -> float:
    """How far one comes until a margin is used up.

    Args:
        radii: ends of the steps.
        rates: bounds on each step.
        margin: what there is.
        most: bounds beyond the last step.
    """
    start, left = 0.0, margin
    for end, rate in zip([*radii, math.inf], [*rates, most], strict=True):
        with np.errstate(divide="ignore"):
            reached = float(np.min(np.where(rate > 0, left / rate, np.inf)))
        if start + reached <= end:
            return start + reached
        left = left - (end - start) * rate
        start = end
    return start
