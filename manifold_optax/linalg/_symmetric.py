"""Products that are symmetric, behind one seam: Gram matrices, commuting factors.

Every product of this kind whose size grows with the matrix is asked for here. They are
plain products, unless `symmetric_kernel` is in force and the product is large enough.
"""

import contextlib
import contextvars
import functools
import importlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from manifold_optax._typing import Matrix, Square

Precision: TypeAlias = jax.lax.Precision | None

_HIGHEST = jax.lax.Precision.HIGHEST

_MIN_SIZE = 1024
"""Short side from which half the tiles still fill an accelerator.

Source: the gate of PaddleFormers (pull request 4963), and its measurements for batched
products (Paddle, pull request 79694): gains from 1024 on.
"""

_MIN_FLOPS = 7e10
"""FLOPs of the plain product, of all matrices of a batch, from which a kernel may win.

Source: a third, for one of three products, of the 2e11 FLOPs of a step in the gate of
PaddleFormers (pull request 4963). One product of 2048 × 2048 has 1.7e10 and runs at
0.78 times the speed of the plain one by a Triton kernel on an H100 in bfloat16, one of
4096 × 4096 has 1.4e11 and runs at 1.26 times (PyTorch, pull request 184886).
"""

_NARROW = ("float32", "bfloat16", "float16")
"""Dtypes of operands that the kernels multiply; they accumulate in float32."""

_NOT_ON_TPU = "float16"
"""The dtype that Mosaic does not load."""


class _Gate(NamedTuple):
    """Which products the kernel computes."""

    min_size: int
    min_flops: float
    interpret: bool

    def admits(self, left: Array) -> bool:
        """Whether the kernel computes the product of `[*batch, n, k]` operands."""
        size, length = left.shape[-2:]
        flops = 2 * math.prod(left.shape[:-2]) * size**2 * length
        return size >= self.min_size and flops >= self.min_flops and flops > 0


_in_force: contextvars.ContextVar[_Gate | None] = contextvars.ContextVar(
    "symmetric_kernel", default=None
)


@contextlib.contextmanager
def symmetric_kernel(
    *,
    min_size: int = _MIN_SIZE,
    min_flops: float = _MIN_FLOPS,
    interpret: bool = False,
) -> Iterator[None]:
    """Computes large symmetric products by a kernel that skips half of their tiles.

    Use it as a decorator of the function that is compiled, or as a context around what
    traces one. It changes programs that are **traced** in it: a function that was
    compiled before stays as it was. Off by default: the kernel was tested for symmetry
    and accuracy, but its speed was not measured on any device.

    It applies to Gram matrices and to products of commuting symmetric matrices in
    float32, bfloat16 and float16, as `newton_schulz`, `polar` and the solvers take
    them, on CUDA GPUs (by Triton) and on TPUs (by Mosaic, without float16). All other
    products and devices compute as before. The result of the kernel is symmetric bit
    for bit, sums are accumulated in float32, and derivatives are those of the plain
    product. XLA cannot split a kernel over devices: matrices must be whole on a
    device, or split by `jax.shard_map`, as this library's own placements do it. Pallas
    refuses to export one program for a CPU and for another platform at once.

    Args:
        min_size: number of rows of the result from which the kernel computes it.
        min_flops: FLOPs of the plain product, of all matrices of a batch together, from
            which the kernel computes it.
        interpret: whether Pallas's interpreter runs the kernel, on every device: very
            slow, for tests. Inside `jax.shard_map` it needs `check_vma=False`.

    Raises:
        ValueError: if `min_size` is less than 1 or `min_flops` is negative.

    Example:
        >>> orthogonalize = jax.jit(symmetric_kernel(min_size=2048)(newton_schulz))
        >>> jnp.round(jnp.diag(orthogonalize(jnp.diag(jnp.array([2.0, 1.0])))), 2)
        Array([0.69, 1.11], dtype=float32)

    Source: the triangle of tiles with its mirror image is that of the Triton kernel in
    KellerJordan/modded-nanogpt (pull request 109).
    """
    if min_size < 1 or not min_flops >= 0:
        raise ValueError(
            "symmetric_kernel needs min_size ≥ 1 and min_flops ≥ 0, got "
            f"min_size={min_size!r} and min_flops={min_flops!r}."
        )
    token = _in_force.set(_Gate(min_size, min_flops, interpret))
    try:
        yield
    finally:
        _in_force.reset(token)


def gram_product(
    x: Matrix,
    axis: int,
    *,
    precision: Precision = _HIGHEST,
    dtype: DTypeLike | None = None,
) -> Float[Array, "*batch k k"]:
    """Returns `xᵀ x` for `axis=-2` and `x xᵀ` for `axis=-1`, the axis summed over.

    It is symmetric up to rounding; `_reductions.gram` is so exactly.

    Args:
        x: `[*batch, m, n]`.
        axis: −2 or −1.
        precision: that of the product.
        dtype: that of the result; `None`: that of `x`.
    """
    gate = _in_force.get()
    if gate is not None and x.dtype.name in _NARROW:
        rows = x if axis == -1 else x.mT
        return _by_kernel(_Product(gate, True, precision, dtype), rows, rows)
    return _contracted(x, x, axis, precision, dtype)


def commuting_product(
    p: Square,
    q: Square,
    addend: Square | None = None,
    *,
    alpha: float | Array = 1.0,
    beta: float = 1.0,
    precision: Precision = _HIGHEST,
    dtype: DTypeLike | None = None,
) -> Square:
    """Returns `alpha·p q + beta·addend` of symmetric matrices, where `p q = q p`.

    Args:
        p: symmetric up to rounding, `[*batch, n, n]`.
        q: the same; it commutes with `p`, as polynomials of one matrix do.
        addend: symmetric, or None.
        alpha: factor of the product.
        beta: factor of the addend.
        precision: that of the product.
        dtype: that of the product; `None`: that of `p` and `q`.
    """
    gate = _in_force.get()
    if gate is None or p.dtype != q.dtype or p.dtype.name not in _NARROW:
        multiply = functools.partial(_matmul, p, q, precision, dtype)
        return _finished(multiply, addend, alpha, beta)
    how = _Product(gate, False, precision, dtype)
    if isinstance(alpha, jax.Array):
        multiply = functools.partial(_by_kernel, how, p, q)
        return _finished(multiply, addend, alpha, beta)
    how = how._replace(alpha=alpha, beta=beta)
    return _by_kernel(how, p, q, *(() if addend is None else (addend,)))


class _Product(NamedTuple):
    """All of a product that is no array."""

    gate: _Gate
    by_rows: bool
    """Whether the right factor stands by its rows (`left rightᵀ`), not its columns."""
    precision: Precision
    dtype: DTypeLike | None
    alpha: float = 1.0
    beta: float = 1.0

    def plain(self, left: Array, right: Array, *addend: Array) -> Array:
        """The product by XLA."""

        def multiply() -> Array:
            if self.by_rows:
                return _contracted(left, right, -1, self.precision, self.dtype)
            return _matmul(left, right, self.precision, self.dtype)

        rest = addend[0] if addend else None
        return _finished(multiply, rest, self.alpha, self.beta)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _by_kernel(how: _Product, *operands: Array) -> Array:
    """The product by the kernel, where the gate lets it."""
    return _seen_whole(how)(*operands)


@_by_kernel.defjvp
def _(
    how: _Product, primals: tuple[Array, ...], tangents: tuple[Array, ...]
) -> tuple[Array, Array]:
    (left, right, *_), (to_left, to_right, *to_addend) = primals, tangents
    moved = how.plain(to_left, right, *to_addend) + how.plain(left, to_right)
    return _by_kernel(how, *primals), moved


def _seen_whole(how: _Product) -> Callable[..., Array]:
    """The product as a function whose gate sees the batches that `vmap` makes."""

    @jax.custom_batching.custom_vmap
    def run(*operands: Array) -> Array:
        return _of_batch(how, *operands)

    @run.def_vmap
    def batched(size: int, which: list[bool], *operands: Array) -> tuple[Array, bool]:
        whole = [
            x if is_batched else jnp.broadcast_to(x, (size, *x.shape))
            for x, is_batched in zip(operands, which, strict=True)
        ]
        return _seen_whole(how)(*whole), True

    return run


def _of_batch(how: _Product, *operands: Array) -> Array:
    left = operands[0]
    if not how.gate.admits(left):
        return how.plain(*operands)
    # Only here: Triton's and Mosaic's front ends take as long to import as all else.
    kernels: Any = importlib.import_module("manifold_optax.linalg._symmetric_kernel")

    def by(multiply: Callable[..., Array], **options: Any) -> Callable[..., Array]:
        def run(*operands: Array) -> Array:
            # The columns of a symmetric right factor are its rows.
            flat = [x.reshape(-1, *x.shape[-2:]) for x in operands]
            found = multiply(
                *flat[:2],
                flat[2] if len(flat) > 2 else None,
                epilogue=kernels.Epilogue(how.alpha, how.beta),
                precision=how.precision,
                dtype=jnp.dtype(how.dtype or left.dtype),
                **options,
            )
            return found.reshape(*left.shape[:-1], left.shape[-2])

        return run

    if how.gate.interpret:
        return by(kernels.cuda_product, interpret=True)(*operands)
    places = {"cuda": by(kernels.cuda_product), "tpu": by(kernels.tpu_product)}
    if left.dtype == _NOT_ON_TPU:
        del places["tpu"]
    return jax.lax.platform_dependent(*operands, default=how.plain, **places)


def _matmul(x: Array, y: Array, precision: Precision, dtype: DTypeLike | None) -> Array:
    return jnp.matmul(x, y, precision=precision, preferred_element_type=dtype)


def _contracted(
    x: Array, y: Array, axis: int, precision: Precision, dtype: DTypeLike | None
) -> Array:
    """Sum over this axis of both, batch by batch."""
    batch, summed = tuple(range(x.ndim - 2)), (x.ndim + axis,)
    return jax.lax.dot_general(
        x,
        y,
        ((summed, summed), (batch, batch)),
        precision=precision,
        preferred_element_type=dtype,
    )


def _finished(
    multiply: Callable[[], Array],
    addend: Array | None,
    alpha: float | Array,
    beta: float,
) -> Array:
    # The addend comes first, because gradients are added up in the order of operations.
    rest = None if addend is None else _times(beta, addend)
    product = _times(alpha, multiply())
    return product if rest is None else rest + product


def _times(factor: float | Array, x: Array) -> Array:
    return x if not isinstance(factor, jax.Array) and factor == 1 else factor * x
