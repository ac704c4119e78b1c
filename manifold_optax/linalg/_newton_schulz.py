"""Newton–Schulz: an odd polynomial of a matrix, by matrix products alone."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array

from manifold_optax._checks import require_one_of
from manifold_optax._typing import AxisName, Matrix, Schedule
from manifold_optax.linalg._coefficients import JORDAN
from manifold_optax.linalg._device import by_platform, on_cpu
from manifold_optax.linalg._float64 import in_float64
from manifold_optax.linalg._gram_polynomial import (
    flops,
    polynomial,
    relative_cost,
    segments,
    split_segments,
)
from manifold_optax.linalg._inputs import require_matrices
from manifold_optax.linalg._options import (
    check_schedule,
    Form,
    FORMS,
    Preconditioner,
    PRECONDITIONERS,
)
from manifold_optax.linalg._reductions import (
    divisor,
    gathered_max_abs,
    matmul,
    nonzero,
)
from manifold_optax.linalg._symmetric import (
    commuting_product,
    gram_product,
    Precision,
)


def newton_schulz(
    x: Matrix,
    schedule: Schedule = JORDAN,
    *,
    form: Form = "auto",
    preconditioner: Preconditioner = "frobenius",
    compute_dtype: DTypeLike | None = None,
    axis_name: AxisName = None,
) -> Matrix:
    """Approximate orthogonal polar factor `U f(S) Vᵀ` of `x = U S Vᵀ`.

    `x` is divided by a norm and then, for each row `(a, b, c)` of the schedule,
    replaced by `a·x + (b·A + c·A²)·x` with the smaller Gram matrix `A` of `x`. The
    singular values pass through the rows one after another. The schedules tuned for
    Muon do not converge to 1: this is a direction, never a retraction (for which there
    is `polar`).

    Args:
        x: `[*batch, m, n]`, real floating, any scale from 1e-30 to 1e30 in float32.
        schedule: rows `(a, b, c)`, one per step.
        form: `"direct"`: two products with the long side at each step. `"gram"`: two
            at each restart (JORDAN: twice in all), and between them the rows act on
            the small Gram matrix; its rounding differs from that of `"direct"`, by
            about as much as that errs. `"auto"`: the cheaper one, where a FLOP of the
            small products counts as one of the long ones on a CPU (as two, if these
            are narrow), as eight elsewhere. For JORDAN in float32 on a CPU that is
            `"gram"` where the long side is more than 1.5 times the short one. With
            split rows it is `"gram"`.
        preconditioner: the norm, an upper bound of `‖x‖₂`. `"frobenius"`: `‖x‖_F`.
            `"schatten"`: `‖xxᵀ‖_F^½`, the tighter Schatten-4 norm, from the first Gram
            matrix: small singular values end nearer to 1, at no product more.
        compute_dtype: dtype of the operands of the products, e.g. `jnp.bfloat16`;
            sums are always accumulated in at least float32. `None`: the dtype of `x`,
            at least float32. The products run at JAX's default matmul precision. Those
            of the Gram form between two restarts are in at least float32, at full
            precision.
        axis_name: mesh axes over which the rows of `x` are split, inside `shard_map`;
            then `x` must have at least as many rows, in all, as columns. `"gram"` takes
            one all-reduce, of the Gram matrix, in all (in float32 on accelerators one
            more after every five rows or so), and one all-gather of a number per device
            and matrix; its small products are in float64 on a CPU, at full precision
            elsewhere, and every device computes all of them. `"direct"` takes one
            all-reduce per row and at most `6·m·n²` FLOPs per row, shared by all
            devices: for matrices near to square whose products cost more than the
            messages.

    Returns:
        An array like `x`. A zero matrix gives zero; a matrix with a NaN or an infinite
        entry gives NaN everywhere.

    Raises:
        TypeError: for an array that is not real floating.
        ValueError: for an array of fewer than two axes, a schedule that is not a tuple
            of rows of three numbers, or an unknown form or preconditioner.

    Cost: with `k = min(m, n)`, `4·m·n·k + 2·k³` FLOPs a row in the direct form, and
    `4·m·n·k + (4·r − 3)·2·k³` for every `r` rows between restarts in the Gram form;
    `2·k³` less for each row with `c = 0`. With split rows `m` is that of a device.

    Example:
        >>> x = jnp.diag(jnp.array([3.0, 2.0, 1.0]))
        >>> jnp.round(jnp.diag(newton_schulz(x)), 2)
        Array([1.12, 0.68, 0.7 ], dtype=float32)

    Source: K. Jordan et al., "Muon" (2024); the Gram form: Dao-AILab,
    gram-newton-schulz (2026); the Schatten norm: `optax.contrib.muon`.
    """
    require_matrices(x, "newton_schulz")
    check_schedule(schedule)
    require_one_of("form", form, FORMS)
    require_one_of("preconditioner", preconditioner, PRECONDITIONERS)
    iterate = functools.partial(
        _iterate,
        schedule=schedule,
        form=form,
        preconditioner=preconditioner,
        compute_dtype=compute_dtype,
        axis_name=axis_name,
    )
    everywhere_the_same = form != "auto" and axis_name is None
    return iterate(x) if everywhere_the_same else by_platform(iterate, x)


def newton_schulz_flops(
    short: int, long: int, schedule: Schedule = JORDAN, *, parts: int = 1
) -> int:
    """Floating-point operations of `newton_schulz` on one matrix, for planning.

    Args:
        short: size of the short side.
        long: size of the long side.
        schedule: rows `(a, b, c)`.
        parts: number of devices among which the long side is split. With more than one
            the count is that of each device.

    Returns:
        FLOPs of the form that takes fewer of them, of the Gram form for a split matrix.

    Example:
        >>> newton_schulz_flops(256, 256), newton_schulz_flops(256, 1024)
        (503316480, 1006632960)
        >>> newton_schulz_flops(256, 65536, parts=8)
        2717908992
    """
    if parts > 1:
        return int(flops(split_segments(schedule, 1.0), short, long // parts))
    direct = tuple((row,) for row in schedule)
    return int(min(flops(rows, short, long) for rows in (direct, segments(schedule))))


def _iterate(
    x: Matrix,
    *,
    schedule: Schedule,
    form: Form,
    preconditioner: Preconditioner,
    compute_dtype: DTypeLike | None,
    axis_name: AxisName,
) -> Matrix:
    wide = jnp.promote_types(x.dtype, jnp.float32)
    operand = wide if compute_dtype is None else jnp.dtype(compute_dtype)
    tall = axis_name is not None or x.shape[-2] > x.shape[-1]
    # Rows are the short side from here on, where turning the matrix pays.
    turned = tall and (axis_name is not None or operand != wide)
    y = (x.mT if turned else x).astype(wide)
    y = y / divisor(gathered_max_abs(y, axis_name))
    if operand != wide:
        # XLA on CPUs has no narrow products of operands, or with a result, that it came
        # to transpose: it must not merge one with the transposition.
        y = jax.lax.optimization_barrier(y.astype(operand))

    in_double = axis_name is not None and on_cpu()
    small = jnp.dtype(jnp.float64) if in_double else wide
    step = _Step(wide, operand, small, preconditioner, axis_name, tall and not turned)
    for index, rows in enumerate(_plan(schedule, form, y, step)):
        y = step.advance(y.astype(operand), rows, first=index == 0)
    return (y.mT if turned else y).astype(x.dtype)


def _plan(
    schedule: Schedule, form: str, y: Array, step: "_Step"
) -> tuple[Schedule, ...]:
    """Rows between two Gram products of the long side: one each in the direct form."""
    direct = tuple((row,) for row in schedule)
    if form == "direct":
        return direct
    if step.axis_name is not None:
        eps = [float(jnp.finfo(dtype).eps) for dtype in (step.wide, step.small)]
        return split_segments(schedule, eps[0] / eps[1])
    joined = segments(schedule)
    if form == "gram":
        return joined
    cost = relative_cost(step.operand != step.wide, on_cpu=on_cpu())
    sizes = sorted(y.shape[-2:])
    cheaper = flops(joined, *sizes, small_cost=cost) < flops(direct, *sizes)
    return joined if cheaper else direct


class _Step(NamedTuple):
    """How the rows between two Gram products are applied."""

    wide: np.dtype
    """dtype of what is summed and added."""
    operand: np.dtype
    """dtype of the operands of the long products."""
    small: np.dtype
    """dtype of the small products of a matrix with split rows."""
    preconditioner: str
    axis_name: AxisName
    tall: bool
    """Whether the columns are the short side, not the rows."""

    def advance(self, y: Array, rows: Schedule, *, first: bool) -> Array:
        """`y` after `rows`; divided by its norm if `first`."""
        joined = len(rows) > 1
        if joined and self.axis_name is not None:
            return self._advance_split(y, rows, first)
        gram, norm = self._scaled(self._gram(y, self.wide, None), first)
        if joined:
            # The multiple of I and the rest cancel in part, so they are added first.
            factor, matrix = polynomial(rows, gram, commuting_product)
            y = self._on_short(_plus_identity(matrix, factor) / norm, y)
            return y if self.operand == self.wide else jax.lax.optimization_barrier(y)
        if self.axis_name is not None and y.shape[-1] < y.shape[-2]:
            # A square of the Gram matrix would cost more, on each device.
            [(a, b, c)] = list(rows)
            z = self._product(gram, y)
            return (a * y.astype(self.wide) + b * z + c * self._product(gram, z)) / norm
        # Of one row they do not, and apart a narrow dtype does not round the factor.
        factor, matrix = polynomial(rows, self._rounded(gram), self._commuting)
        return factor / norm * y.astype(self.wide) + self._on_short(matrix / norm, y)

    def _advance_split(self, y: Array, rows: Schedule, first: bool) -> Array:
        """The same by one all-reduce: no restart, so the more digits."""
        precision = jax.lax.Precision.HIGHEST if self.operand == self.wide else None

        def small(y: Array) -> Array:
            dtype = jnp.promote_types(y.dtype, self.wide)
            gram, norm = self._scaled(self._gram(y, dtype, precision), first)
            factor, matrix = polynomial(rows, gram, commuting_product, symmetrize=True)
            return _plus_identity(matrix, factor) / norm

        if self.small != self.wide:
            return matmul(in_float64(small)(y.astype(self.wide)), y.astype(self.wide))
        return matmul(small(y), y.astype(self.wide))

    def _product(self, left: Array, right: Array) -> Array:
        left, right = left.astype(self.operand), right.astype(self.operand)
        return jnp.matmul(left, right, preferred_element_type=self.wide)

    def _commuting(self, p: Array, q: Array, *addend: Array, **factors: float) -> Array:
        p, q = p.astype(self.operand), q.astype(self.operand)
        return commuting_product(
            p, q, *addend, **factors, precision=None, dtype=self.wide
        )

    def _rounded(self, gram: Array) -> Array:
        """`gram` as its product with itself sees it, so that both terms of a row agree.

        XLA would drop two conversions that undo one another.
        """
        if self.operand == self.wide:
            return gram
        info = jnp.finfo(self.operand)
        return jax.lax.reduce_precision(gram, info.nexp, info.nmant)

    def _on_short(self, matrix: Array, y: Array) -> Array:
        """A symmetric matrix on the short side of `y`."""
        return self._product(y, matrix) if self.tall else self._product(matrix, y)

    def _gram(self, y: Array, dtype: DTypeLike, precision: Precision) -> Array:
        # Row times row ("NT"), without a transposition: the fastest form of a product
        # on every backend, and on CPUs the only one of this kind that stays narrow.
        # Column times column saves a tall matrix two transpositions, which cost more.
        long = -2 if self.tall else -1
        gram = gram_product(y, long, precision=precision, dtype=dtype)
        return gram if self.axis_name is None else jax.lax.psum(gram, self.axis_name)

    def _scaled(self, gram: Array, first: bool) -> tuple[Array, Array | float]:
        """The Gram matrix of the normalized matrix, and the norm of that given."""
        if not first:
            return gram, 1.0
        if self.preconditioner == "schatten":
            square = jnp.linalg.norm(gram, axis=(-2, -1), keepdims=True)
        else:
            square = jnp.trace(gram, axis1=-2, axis2=-1)[..., None, None]
        square = nonzero(square)
        return gram / square, jnp.sqrt(square)


def _plus_identity(matrix: Array, factor: float) -> Array:
    identity = jnp.eye(matrix.shape[-1], dtype=matrix.dtype)
    return matrix + factor * jnp.broadcast_to(identity, matrix.shape)
