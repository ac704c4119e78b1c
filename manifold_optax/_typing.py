"""Array and tree aliases of the whole package.

Matrices stand in the last two axes; every axis before them is a batch axis. Inside
`linalg` and `geometry` a matrix is `m × n` without a meaning for its rows; from
`matrices` upwards a leaf has input axes (fan-in, contracted with the activations) and
output axes (fan-out). A Flax kernel is stored `(fan_in, fan_out)`.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

from jaxtyping import Array, Float

Scalar: TypeAlias = float | int | Array
"""A hyperparameter: a number, or a traced one under `optax.inject_hyperparams`."""

Matrix: TypeAlias = Float[Array, "*batch m n"]
"""One matrix or a batch of matrices."""

Square: TypeAlias = Float[Array, "*batch n n"]
"""One square matrix or a batch of them."""

PerMatrix: TypeAlias = Float[Array, "*batch"]
"""One number per matrix."""

Schedule: TypeAlias = tuple[tuple[float, float, float], ...]
"""Rows `(a, b, c)` of odd polynomials `a·s + b·s³ + c·s⁵`, one row per step."""

AxisName: TypeAlias = str | tuple[str, ...] | None
"""Mesh axes that split the long (row) side of a matrix; `None`: it is whole."""

ArrayTree: TypeAlias = Any
"""A pytree of arrays: parameters, updates or per-matrix numbers. Any object is one."""

Kernel: TypeAlias = Callable[..., Array | tuple[Array, ...]]
"""`(*matrices, *numbers_in, axis_name=None) -> results`, for one matrix of each tree.

A kernel with one result returns that array, one with several a tuple of arrays. Each
result is a matrix of the shape that the kernel was given, or a number per matrix: a
scalar, or a vector of the short side. `axis_name` names the mesh axes that split the
rows; `None`: the matrix is whole.
"""

Flops: TypeAlias = Callable[[int, int], int]
"""Operations of a kernel for one matrix, from its short side and its long side."""
