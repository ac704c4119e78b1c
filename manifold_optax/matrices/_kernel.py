"""A kernel for one matrix, on many."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._typing import AxisName, Flops, Kernel
from manifold_optax.linalg._device import on_cpu

Result: TypeAlias = Literal["matrix", "number"]
"""What a kernel returns for one matrix: a matrix like it, or a number of it."""

Shapes: TypeAlias = tuple[tuple[int, ...], ...]
"""Shapes of several arrays of one matrix."""

_CHUNK_BYTES = 1 << 28
"""Bound of the working memory of one batched call on an accelerator, 256 MiB."""

_KERNEL_COPIES = 8
"""Matrices of working memory that a kernel is assumed to need per matrix."""


class Call(NamedTuple):
    """A kernel, what it returns, and what it costs."""

    kernel: Kernel
    returns: tuple[Result, ...]
    flops: Flops | None = None
    """`None`: as five steps of Newton–Schulz."""

    def count_of(self, kind: Result) -> int:
        """Number of results of this kind that the kernel returns for one matrix."""
        return self.returns.count(kind)

    def run(
        self,
        matrices: Sequence[Array],
        numbers: Sequence[Array],
        axis_name: AxisName = None,
    ) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """Runs the kernel on one matrix; returns its matrices and its numbers apart.

        Raises:
            ValueError: if the kernel returns another number of results than declared,
                or a matrix of another shape than it was given.
            TypeError: if a number is not floating.
        """
        found = self.kernel(*matrices, *numbers, axis_name=axis_name)
        several = isinstance(found, tuple)
        results: tuple[Any, ...] = found if several else (found,)
        if len(results) != len(self.returns) or several != (len(self.returns) > 1):
            got = f"a tuple of {len(results)}" if several else "one array"
            raise ValueError(
                f"The kernel must return {_expected(self.returns)}, got {got}; declare "
                "what it returns with returns=."
            )
        ys, new = self.apart(tuple(map(jnp.asarray, results)))
        shape = matrices[0].shape
        for y in ys:
            if y.shape != shape:
                raise ValueError(
                    "The kernel must return matrices of the shape that it was given, "
                    f"here {shape}; got {y.shape}."
                )
        for number in new:
            if not jnp.issubdtype(number.dtype, jnp.floating):
                raise TypeError(
                    "The kernel must return numbers of a real floating dtype, because "
                    f"they become float32; got {number.dtype}."
                )
        return ys, tuple(number.astype(jnp.float32) for number in new)

    def apart(self, results: Sequence[Any]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """The matrices and the numbers among what the kernel returns."""
        pairs = list(zip(self.returns, results, strict=True))
        return (
            tuple(result for kind, result in pairs if kind == "matrix"),
            tuple(result for kind, result in pairs if kind == "number"),
        )

    def together(self, matrices: Sequence[Any], numbers: Sequence[Any]) -> Any:
        """What the kernel returns, of its matrices and its numbers."""
        sources = {"matrix": iter(matrices), "number": iter(numbers)}
        results = tuple(next(sources[kind]) for kind in self.returns)
        if len(results) == 1:
            (results,) = results
        return results

    def numbers_of(self, matrices: Sequence[Any], numbers: Sequence[Any]) -> Shapes:
        """Shapes of the numbers that the kernel returns for one matrix.

        Args:
            matrices: `jax.ShapeDtypeStruct`s of one whole matrix of each tree.
            numbers: those of the numbers that it reads.
        """
        if "number" not in self.returns:
            return ()
        _, found = jax.eval_shape(self.run, tuple(matrices), tuple(numbers))
        return tuple(number.shape for number in found)


def check_returns(returns: Any) -> tuple[Result, ...]:
    """`returns` as a tuple; TypeError or ValueError if it declares nothing valid."""
    if isinstance(returns, str) or not isinstance(returns, Sequence):
        raise TypeError(
            "returns must be a tuple of 'matrix' and 'number', one for each result of "
            f"the kernel, got {returns!r}."
        )
    if not returns or any(kind not in ("matrix", "number") for kind in returns):
        raise ValueError(
            "returns must hold 'matrix' or 'number' for each result of the kernel, got "
            f"{returns!r}."
        )
    return tuple(returns)


def _expected(returns: Sequence[Result]) -> str:
    if len(returns) == 1:
        return f"one array, a {returns[0]}, and no tuple"
    return f"a tuple of {len(returns)} ({', '.join(returns)})"


def apply_kernel(
    call: Call,
    matrices: tuple[Array, ...],
    numbers: tuple[Array, ...],
    written: Shapes,
    dtypes: tuple[str, ...],
    *,
    turn: bool = True,
    axis_name: AxisName = None,
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Runs the kernel on one matrix of each tree and its numbers.

    The kernel sees the matrices in the last of `dtypes`, transposed if `turn`. What it
    returns leaves in the first of `dtypes`, and in the orientation in which the
    matrices came; numbers leave as float32, in the shapes `written`.
    """

    def turned(x: Array) -> Array:
        return x.mT if turn else x

    wide = [turned(x.astype(dtypes[-1])) for x in matrices]
    ys, new = call.run(wide, numbers, axis_name)
    found = tuple(number.shape for number in new)
    if found != written:
        # Smaller results would leave a part of what they are written over.
        raise ValueError(
            "The kernel must return numbers of the same shapes whether axis_name is "
            f"given or not; without they are {written}, with {axis_name!r} {found}."
        )
    return tuple(turned(y).astype(dtypes[0]) for y in ys), new


def over_stack(
    one: Callable[[Any], Any],
    stacks: tuple[Array, ...],
    numbers: tuple[Array, ...],
    outputs: int,
    written: Shapes,
    matrix_bytes: int,
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Applies `one` to every matrix: singly on a CPU, in chunks on an accelerator.

    Args:
        one: `(matrices, numbers)` of one matrix → `(matrices, numbers)`.
        stacks: `[count, m, n]`, one for each input tree.
        numbers: `[count, …]`, one for each tree of numbers that are read.
        outputs: number of matrices that `one` returns, in the dtype of the first.
        written: shapes of the numbers that `one` returns.
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
        own = [jax.lax.dynamic_slice_in_dim(c, start, size) for c in numbers]
        results = batched(one, (tuple(part), tuple(own)))
        return jax.tree.map(
            lambda whole, new: jax.lax.dynamic_update_slice_in_dim(
                whole, new, start, axis=0
            ),
            state,
            results,
        )

    # Made of the stack, so that they lie on its mesh and vary over the same axes.
    zeros = jnp.zeros_like(first[:, 0, 0], jnp.float32)
    blank = tuple(
        jnp.broadcast_to(zeros.reshape(count, *(1,) * len(shape)), (count, *shape))
        for shape in written
    )
    return in_chunks(advance, count, chunk, (tuple(places[:outputs]), blank))


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
    """Applies `one` to all entries of the leading axis at once."""
    if jax.tree.leaves(arguments)[0].shape[0] > 1:
        return jax.vmap(one)(arguments)
    first = jax.tree.map(lambda x: x[0], arguments)
    return jax.tree.map(lambda x: x[None], one(first))
