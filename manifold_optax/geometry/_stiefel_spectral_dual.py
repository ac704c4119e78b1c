"""The reduced problem of `_stiefel_spectral`: `n × n` matrices alone.

With `K` skew and `C` positive semidefinite, for symmetric `S`:

    dual: minimise  tr Q(S),  Q(S) = M(S)^{1/2},  M(S) = (K + S)ᵀ(K + S) + C

It is solved by majorise-minimise steps: with `Q R + R Q = Q(K + S) + (K + S)ᵀQ` the
point `S − R` minimises the majorant `½ tr(Q⁻¹ M(S) + Q)`. The steps are over-relaxed,
and extrapolated with weights 1/2, 2/3, … as in Nesterov's method. Every `S` gives a
feasible direction, every `Q(S)` an upper bound.

The backends share this code; they differ in how a root is taken and in the dtype.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from manifold_optax.linalg._reductions import gram, matmul, skew, symmetric
from manifold_optax.linalg._square_root import (
    eigh_root,
    EighRoot,
    product_root,
    ProductRoot,
)
from manifold_optax.linalg._symmetric import commuting_product

Root: TypeAlias = EighRoot | ProductRoot

_RELAXATION = 1.3
"""Over-relaxation of a step: best of 1, 1.3, 1.5, 1.7 over all kinds of gradients."""


_MARGIN = 1e-5
"""Distance from the boundary of the ball: the value loses at most that share."""

_LEAST_MARGIN = 1e-9
"""Rounding of float64, 2e-16, over the condition of a root, 1e-5, and a factor."""


_TRACE = (3e-4, 8)
"""Condition, inverted, and rows of the root whose trace is the dual value, in float32.

The ridge is the rounding of a square, which an eigendecomposition sees as well: each
null direction adds 3e-4 of the largest root. Eight rows are exact to 1e-7.
"""

_WIDE_TRACE = (1e-6, 12)
"""The same in float64: each null direction adds 1e-6, twelve rows are exact to 1e-7."""


class Backend(NamedTuple):
    """How roots are taken."""

    plain_root: Callable[[Array, float | Array], Root]
    """`(square, floor) -> root`, for the start at zero."""
    rough_root: Callable[[Array, float | Array], Root]
    """The same, for the steps."""
    root: Callable[[Array, float | Array], Root]
    """The same, for what the direction is made of."""
    into_ball: Callable[[Array], tuple[Array, Array]]
    """Skew `X` to one with `‖X‖₂ ≤ 1`, and an `L` with `L Lᵀ = I − XᵀX`."""
    wide: bool
    """Whether the reduced problem is solved in float64, whatever the dtype outside."""
    dual_value: Callable[[Array, Array, Array], Array]
    """`(rotation, square, shift) -> tr Q(S)`, by which a run with a tolerance stops."""
    ridge: float
    """Smallest eigenvalue of C, relative to the squared gradient, that is no noise."""


class Direction(NamedTuple):
    """Blocks of `W·tangent + G⊥·mixing·restᵀ`, and the measures of how good it is."""

    tangent: Array
    mixing: Array
    rest: Array
    value: Array
    """Inner product with the gradient."""
    shift: Array
    """A dual point `S`; `dual_value` makes an upper bound of it."""


def backend(name: str, dtype: DTypeLike, tolerance: float | None = None) -> Backend:
    """One of the `BACKENDS` of `_stiefel_spectral`, for gradients of a dtype.

    A small `tolerance` moves the direction nearer to the boundary of the ball.
    """
    wide = name != "products"
    # Gradients in float32 carry noise of 1e-7, whose square is what C sees.
    ridge = (1e-11 if dtype == jnp.float32 else 1e-13) if wide else 1e-8
    if name == "eigh":

        def root(square: Array, floor: float | Array) -> Root:
            return eigh_root(square, epsilon=1e-5, floor=floor)

        margin = _MARGIN if tolerance is None else min(_MARGIN, tolerance / 8)
        into_ball = functools.partial(_shrink, margin=max(margin, _LEAST_MARGIN))
        roots = (_root_in_float32, root, root)
        return Backend(*roots, into_ball, wide, dual_value, ridge)

    # Rounding in M moves its roots by the square root of a rounding unit, in float32
    # 2e-4 of the largest one; ten times that keeps the iteration on definite matrices.
    narrow = dtype == jnp.float32 and not wide
    epsilon, rows = (2e-3, 5) if narrow else (1e-4, 8)

    def by_products(rows: int) -> Callable[[Array, float | Array], Root]:
        return lambda square, floor: product_root(
            square, epsilon=epsilon, rows=rows, floor=floor
        )

    rough, exact = by_products(rows), by_products(rows + 1)
    return Backend(
        rough, rough, exact, _clip_softly, wide, dual_value_by_products, ridge
    )


def solve(rotation: Array, square: Array, *, steps: int, backend: Backend) -> Direction:
    """Direction after a fixed number of steps.

    Args:
        rotation: `K`, skew, `[n, n]`, of the gradient of unit norm.
        square: `C`, symmetric positive semidefinite, `[n, n]`.
        steps: number of steps, ≥ 0.
        backend: how roots are taken.
    """
    problem = _Problem(rotation, square, backend)
    state = problem.start()
    if steps == 0:
        return problem.direction_at(state.base)
    # The last point is not extrapolated, and its rough root is not needed.
    advance = lambda _, state: problem.advance(state)
    state = jax.lax.fori_loop(0, steps - 1, advance, state)
    return problem.direction_at(problem.step_from(state))


def solve_within(
    rotation: Array,
    square: Array,
    *,
    tolerance: float,
    rounding: float,
    steps: int,
    backend: Backend,
) -> Direction:
    """Best direction found when it is within `tolerance` of the best bound found.

    Args:
        rotation: as for `solve`.
        square: as for `solve`.
        tolerance: gap between value and bound, relative to the bound, at which to stop.
        rounding: what a certificate adds to the bound, over `1 + bound`.
        steps: largest number of steps.
        backend: how roots are taken.
    """
    problem = _Problem(rotation, square, backend)

    def unfinished(carry: "_Progress") -> Array:
        step, _, best, upper = carry
        allowed = tolerance * upper - rounding * (1 + upper)
        return (step < steps) & (upper - best.value > allowed)

    def refine(carry: "_Progress") -> "_Progress":
        step, state, best, upper = carry
        state = problem.advance(state)
        found = problem.direction_at(state.reached)
        bound = backend.dual_value(rotation, square, state.reached)
        better, tighter = found.value > best.value, bound < upper
        shift = jnp.where(tighter, state.reached, best.shift)
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), found, best)
        best = best._replace(shift=shift)
        return step + 1, state, best, jnp.where(tighter, bound, upper)

    state = problem.start()
    first = problem.direction_at(state.base)
    bound = backend.dual_value(rotation, square, state.base)
    carry = (jnp.asarray(0), state, first, bound)
    return jax.lax.while_loop(unfinished, refine, carry)[2]


class _State(NamedTuple):
    base: Array
    """`S`, extrapolated: where the next step starts."""
    reached: Array
    """`S` that the last step reached."""
    root: Root
    """`Q(base)`."""
    age: Array
    """Steps since the extrapolation began."""


_Progress: TypeAlias = tuple[Array, _State, Direction, Array]
"""Steps taken, state, best direction and best bound so far."""


class _Problem(NamedTuple):
    rotation: Array
    square: Array
    backend: Backend

    def start(self) -> _State:
        """The solution to first order in `K`, or zero if its dual value is lower.

        To first order `Q` is `C^{1/2}`, and the step from there is the solution. It is
        the better start unless `K` outweighs `C` in the directions that count.
        """
        first = self.backend.rough_root(self.square, self._floor)
        perturbed = -first.symmetrize(self.rotation)
        zero = jnp.zeros_like(perturbed)
        plain = gram(self.rotation) + self.square
        plain_root = self.backend.plain_root(plain, self._floor)
        perturbed_root = self.root_at(perturbed)
        better = perturbed_root.trace < plain_root.trace
        shift, root = jax.tree.map(
            lambda p, q: jnp.where(better, p, q),
            (perturbed, perturbed_root),
            (zero, plain_root),
        )
        return _State(shift, shift, root, jnp.zeros_like(root.trace))

    def root_at(self, shift: Array) -> Root:
        """Rough `Q(shift)`."""
        square = gram(self.rotation + shift) + self.square
        return self.backend.rough_root(square, self._floor)

    def step_from(self, state: _State) -> Array:
        """The over-relaxed step."""
        change = state.root.symmetrize(self.rotation + state.base, rough=True)
        return state.base - _RELAXATION * change

    def advance(self, state: _State) -> _State:
        """One step, and the extrapolation from which the next one starts."""
        reached = self.step_from(state)
        weight = state.age / (state.age + 1)
        base = reached + weight * (reached - state.reached)
        root = self.root_at(base)
        # Where the value rises the extrapolation starts anew: on kinks it can diverge.
        age = jnp.where(root.trace > state.root.trace, 0, state.age + 1)
        return _State(base, reached, root, age)

    def direction_at(self, shift: Array) -> Direction:
        """The tangent block that `S` implies, completed to the best feasible one."""
        return _best_feasible(self.rotation, self.square, shift, self.backend)

    @property
    def _floor(self) -> Array:
        return 1e-4 * jnp.sum(self.rotation**2) / jnp.sqrt(1.0 * len(self.rotation))


def _best_feasible(
    rotation: Array, square: Array, shift: Array, backend: Backend
) -> Direction:
    """The tangent block that `S` implies, completed to the best feasible direction."""
    scale = jnp.sum(rotation**2) + jnp.trace(square)
    moved = rotation + shift
    root = backend.root(gram(moved) + square, 1e-4 * scale)
    tangent, rest = backend.into_ball(skew(matmul(moved, root.inverse)))
    inside = symmetric(matmul(rest.T, matmul(square, rest)))
    # Without the ridge noise in C would be blown up to a direction.
    ridge = backend.ridge * scale * jnp.eye(len(square), dtype=square.dtype)
    inverse = backend.root(inside + ridge, 0.0).inverse
    value = jnp.sum(rotation * tangent) + jnp.sum(inverse * inside)
    return Direction(tangent, matmul(rest, inverse), rest, value, shift)


def dual_value(rotation: Array, square: Array, shift: Array) -> Array:
    """Upper bound `tr Q(S)` of the optimal value, by an eigendecomposition."""
    values = jnp.linalg.eigvalsh(gram(rotation + shift) + square)
    return jnp.sum(jnp.sqrt(jnp.maximum(values, 0)))


def dual_value_by_products(rotation: Array, square: Array, shift: Array) -> Array:
    """`tr Q(S)` by products alone, from above by the ridge of the root."""
    epsilon, rows = _WIDE_TRACE if square.dtype == jnp.float64 else _TRACE
    moved = gram(rotation + shift) + square
    return product_root(moved, epsilon=epsilon, rows=rows).trace


def _root_in_float32(square: Array, floor: float | Array) -> EighRoot:
    """Root of float64 matrices at less cost.

    Enough at zero, the better start where `K` outweighs `C`: without the null
    directions of a `C` of low rank there is nothing that float32 takes for noise.
    """
    narrow = [jnp.asarray(x, jnp.float32) for x in (square, floor)]
    root = eigh_root(narrow[0], epsilon=3e-4, floor=narrow[1])
    return jax.tree.map(lambda x: x.astype(square.dtype), root)


def _shrink(x: Array, margin: float) -> tuple[Array, Array]:
    """A little inside the ball, where `(K + S) Q⁻¹` lies up to the rounding of float64.

    The margin is above that, so that what is left is definite and has a Cholesky
    factor.
    """
    shrunk = (1 - margin) * x
    rest = jnp.eye(len(x), dtype=x.dtype) - gram(shrunk)
    return shrunk, jnp.linalg.cholesky(rest)


def _clip_softly(x: Array) -> tuple[Array, Array]:
    """Singular values below 1.06 to at most 1, by the polynomial `s(65 − s⁶⁴)/64`.

    It has its maximum 1 at `s = 1`, for every exponent, and is within 1.6 % of `s`
    below; a block in the interior is near stationary, so that this costs the square.
    """
    power = gram(x)
    for _ in range(5):
        power = commuting_product(power, power)
    # Strictly inside the ball, so that what is left is definite: at least 1e-4, and
    # above rounding. What the root adds to it, (5e-3)² of its norm, is less.
    clipped = (1 - 1e-4) * skew(65 * x - matmul(x, power)) / 64
    identity = jnp.eye(len(x), dtype=x.dtype)
    rest = (1 - 1e-4) * identity - gram(clipped)
    return clipped, product_root(rest, epsilon=5e-3, rows=6).matrix
