"""`lipschitz_bound` and `change_bound`: a certificate, made and used at once."""

import warnings
from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Float32

from manifold_optax._typing import ArrayTree
from manifold_optax.modular._certificates._certificate import certificate
from manifold_optax.modular._network import Network


def lipschitz_bound(
    function: Callable[..., Any] | Network,
    params: ArrayTree,
    *inputs: Any,
    output: str | None = None,
    floor: float = 0.0,
) -> Float32[Array, ""]:
    """A number that no ratio of a change of the output to that of the input exceeds.

    For all `x` and `y` in the set of inputs `‖f(x) − f(y)‖ ≤ bound · ‖x − y‖`. Of the
    input the norm is Euclidean over all axes but the first, along which examples lie;
    of the output Euclidean over the last axis; of several examples, and of several
    positions of the output, the largest counts. Where there are several inputs, each
    changes by at most `‖x − y‖`. Tokens (integers) are all exchanged: the bound is then
    that of the change itself.

    It is the product of the norms of the layers or, for inputs that hold one example
    (the first axis 1), less: a nonlinear step is a multiple and a remainder, of the
    multiples the layers are multiplied out, and remainders are bounded apart. This is
    done up to the sizes of small networks.

    Norms of weights are those of the live arrays, rounded up; the computation between
    them is read as in real arithmetic, so that the rounding of the model's own forward
    pass comes on top of it.

    Args:
        function: pure function of the parameters and the inputs, or a `Network`.
        params: pytree of arrays, which may be traced.
        *inputs: sets of inputs, or arrays that stand for all of their shape; see
            `certificate`.
        output: path of the output that counts; `None`: the first array of floats.
        floor: least RMS of what enters a norm layer, in `[0, inf)`.

    Returns:
        A float32 number. It is infinite, with a warning that names the step, where a
        step has no bound on that set: products of two activations that are not
        bounded, jumps, primitives without a rule. Weights that are not finite give
        infinity, too.

    Raises:
        ValueError: for an output that does not exist.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from manifold_optax import modular
        >>> def mlp(params, x):
        ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
        >>> params = {"up": 2 * jnp.eye(4), "down": 3 * jnp.eye(4)}
        >>> bound = modular.lipschitz_bound(mlp, params, jnp.ones((1, 4)))
        >>> print(f"{bound:.3f}")
        6.000

    Cost: of `read`; and of each matrix about 6 products of its smaller side, in one
    pass. Inside `jit` it is read once, when it is traced. For one example also products
    of layers, at most 4e9 multiplications of those within the network.

    Source: P. Combettes, J.-C. Pesquet, "Lipschitz Certificates for Layered Network
    Structures Driven by Averaged Activation Operators" (1903.01014), for
    layers together; M. Fazlyab et al., "Efficient and Accurate Estimation of Lipschitz
    Constants"
    (1906.04893), section 1, for the product of norms; H. Kim et al., "The Lipschitz
    Constant of Self-Attention" (2006.04710) for why attention needs a bounded set.
    """
    proof = certificate(function, params, *inputs, output=output, floor=floor)
    _warn("lipschitz_bound", proof.problem("inputs"))
    return proof.lipschitz(params)


def change_bound(
    function: Callable[..., Any] | Network,
    params: ArrayTree,
    updates: ArrayTree,
    *inputs: Any,
    output: str | None = None,
    floor: float = 0.0,
) -> Float32[Array, ""]:
    """How far a step of the parameters moves the output, at most, on a set of inputs.

    `‖f(params + updates, x) − f(params, x)‖ ≤ bound` for all `x` in the set, Euclidean
    over the last axis of the output, at the worst position. The step is finite: for a
    chain of layers the bound is `(∏(σ + δ) − ∏ σ)·‖x‖` with norms σ of the weights and
    δ of their steps, or less, where the weights after the step have smaller norms.

    Args:
        function: pure function of the parameters and the inputs, or a `Network`.
        params: pytree of arrays, which may be traced.
        updates: the same, added to them: what `optax.apply_updates` adds, or rounded
            weights less the weights.
        *inputs: sets of inputs; see `certificate`.
        output: path of the output that counts; `None`: the first array of floats.
        floor: least RMS of what enters a norm layer, in `[0, inf)`.

    Returns:
        A float32 number; infinite, with a warning that names the step, where a step
        has no bound on that set, as for inputs of any size.

    Raises:
        ValueError: for trees of another structure or shapes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from manifold_optax import modular
        >>> def mlp(params, x):
        ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
        >>> params = {"up": jnp.eye(4), "down": jnp.eye(4)}
        >>> updates = {"up": 0.1 * jnp.eye(4), "down": 0.1 * jnp.eye(4)}
        >>> ball = modular.L2Ball(jnp.ones((1, 4)), 1.0)
        >>> print(f"{modular.change_bound(mlp, params, updates, ball):.3f}")
        0.210

    Cost: that of `lipschitz_bound` twice, and norms of the step.
    """
    proof = certificate(function, params, *inputs, output=output, floor=floor)
    _warn("change_bound", proof.problem("step"))
    return proof.change(params, updates)


def _warn(name: str, problem: str | None) -> None:
    if problem is not None:
        warnings.warn(f"{name} is infinite. {problem}", stacklevel=3)
