"""A kernel for one matrix, on many."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

from manifold_optax._typing import AxisName, Kernel

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
    axis_name: AxisName = None,
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """The kernel on one matrix of each tree, `short × long`, and its numbers.

    Stacks keep the long side last in memory (Gram products are then row times row);
    the kernel sees `long × short`, in the last of `dtypes`, and what it returns leaves
    in the first.
    """
    transposed = (x.astype(dtypes[-1]).mT for x in matrices)
    ys, new = kernel(*transposed, *carried, axis_name=axis_name)
    if len(ys) != outputs or len(new) != len(carried):
        raise ValueError(
            f"The kernel must return {outputs} matrices and {len(carried)} carried "
            f"arrays, got {len(ys)} and {len(new)}."
        )
    cast = tuple(n.astype(c.dtype) for n, c in zip(new, carried, strict=True))
    return tuple(y.mT.astype(dtypes[0]) for y in ys), cast


def over_stack(one: Callable[[Any], Any], arguments: Any, matrix_bytes: int) -> Any:
    """`one` on each entry of the leading axis of `arguments`, as the backend likes it.

    Args:
        one: arguments of one matrix → results, without the leading axis.
        arguments: a tree of arrays with one leading axis.
        matrix_bytes: size of one matrix as the kernel sees it.
    """
    count = jax.tree.leaves(arguments)[0].shape[0]
    if count == 1:
        first = jax.tree.map(lambda x: x[0], arguments)
        return jax.tree.map(lambda x: x[None], one(first))
    if jax.default_backend() == "cpu":
        # One matrix at a time stays in the cache: faster than a batched product.
        return jax.lax.map(one, arguments)
    chunk = max(1, min(count, _CHUNK_BYTES // (_KERNEL_COPIES * matrix_bytes)))
    if chunk == count:
        return jax.vmap(one)(arguments)
    return jax.lax.map(one, arguments, batch_size=chunk)
