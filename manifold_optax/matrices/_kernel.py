"""A kernel for one matrix, on many."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._typing import AxisName, Kernel
from manifold_optax.linalg._device import on_cpu

_CHUNK_BYTES = 1 << 28
"""Bound of the working memory of one batched call on an accelerator, 256 MiB."""

_KERNEL_COPIES = 8
"""Matrices of working memory that a kernel is assumed to need per matrix."""


def apply_kernel(
    kernel: Kernel,
    matrices: tuple[Array, ...],
    carried: tuple[Array, ...],
    outputs: int,
    dtypes: tuple[str, ...],
    *,
    turn: bool = True,
    axis_name: AxisName = None,
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """The kernel on one matrix of each tree and its numbers.

    The kernel sees them in the last of `dtypes`, transposed if `turn`; what it returns
    leaves in the first, and in the orientation in which the matrices came.
    """

    def turned(x: Array) -> Array:
        return x.mT if turn else x

    wide = (turned(x.astype(dtypes[-1])) for x in matrices)
    ys, new = kernel(*wide, *carried, axis_name=axis_name)
    if len(ys) != outputs or len(new) != len(carried):
        raise ValueError(
            f"The kernel must return {outputs} matrices and {len(carried)} carried "
            f"arrays, got {len(ys)} and {len(new)}."
        )
    rows, columns = matrices[0].shape
    _check_shapes(
        "matrices", ys, [(columns, rows) if turn else (rows, columns)] * outputs
    )
    _check_shapes("carried arrays", new, [c.shape for c in carried])
    cast = tuple(n.astype(c.dtype) for n, c in zip(new, carried, strict=True))
    return tuple(turned(y).astype(dtypes[0]) for y in ys), cast


def _check_shapes(what: str, found: Any, wanted: Sequence[tuple[int, ...]]) -> None:
    """Smaller results would leave a part of what they are written over."""
    for array, shape in zip(found, wanted, strict=True):
        if tuple(array.shape) != tuple(shape):
            raise ValueError(
                f"The kernel must return {what} of the shapes that it was given, here "
                f"{tuple(shape)}; got {tuple(array.shape)}."
            )


def over_stack(
    one: Callable[[Any], Any],
    stacks: tuple[Array, ...],
    numbers: tuple[Array, ...],
    outputs: int,
    matrix_bytes: int,
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """`one` on each matrix of the stacks, as the backend likes it.

    Args:
        one: `(matrices, numbers)` of one matrix → results, without the leading axis.
        stacks: `[count, m, n]`, one for each input tree.
        numbers: `[count, …]`.
        outputs: number of matrices that `one` returns, in the dtype of the first.
        matrix_bytes: size of one matrix as the kernel sees it.
    """
    count, first = len(stacks[0]), stacks[0]
    chunk = chunk_size(count, matrix_bytes)
    if chunk == count:
        return batched(one, (stacks, numbers))
    # A result takes the place of what it was made of: no second stack.
    places = [x if x.dtype == first.dtype else jnp.zeros_like(first) for x in stacks]
    places += [jnp.zeros_like(first) for _ in range(outputs - len(stacks))]
    replaced = [k < outputs and x is places[k] for k, x in enumerate(stacks)]

    def advance(start: Any, size: int, state: Any) -> Any:
        sources = [
            state[0][k] if replaced[k] else stack for k, stack in enumerate(stacks)
        ]
        part = [jax.lax.dynamic_slice_in_dim(x, start, size) for x in sources]
        own = [jax.lax.dynamic_slice_in_dim(c, start, size) for c in state[1]]
        results = batched(one, (tuple(part), tuple(own)))
        return jax.tree.map(
            lambda whole, new: jax.lax.dynamic_update_slice_in_dim(
                whole, new, start, axis=0
            ),
            state,
            results,
        )

    return in_chunks(advance, count, chunk, (tuple(places[:outputs]), numbers))


def in_chunks(
    advance: Callable[[Any, int, Any], Any], count: int, chunk: int, state: Any
) -> Any:
    """`advance(start, size, state)` over `count` entries, `chunk` at a time."""
    full, rest = divmod(count, chunk)
    if full == 1:
        state = advance(0, chunk, state)
    else:
        state = jax.lax.fori_loop(
            0, full, lambda i, state: advance(i * chunk, chunk, state), state
        )
    return advance(full * chunk, rest, state) if rest else state


def chunk_size(count: int, matrix_bytes: int) -> int:
    """How many of `count` matrices are computed at once.

    On a CPU one, which stays in the cache: faster than a batched product. Elsewhere as
    many as the bound of the working memory allows.
    """
    if on_cpu():
        return 1
    return max(1, min(count, _CHUNK_BYTES // (_KERNEL_COPIES * matrix_bytes)))


def batched(one: Callable[[Any], Any], arguments: Any) -> Any:
    """`one` on all entries of the leading axis at once."""
    if jax.tree.leaves(arguments)[0].shape[0] > 1:
        return jax.vmap(one)(arguments)
    first = jax.tree.map(lambda x: x[0], arguments)
    return jax.tree.map(lambda x: x[None], one(first))
