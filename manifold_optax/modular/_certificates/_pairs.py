"""The last product of a classifier: what each pair of its outputs depends on."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from manifold_optax.modular._bounds._mixed_norm import mixed_norm
from manifold_optax.modular._certificates._live_norms import live_norm
from manifold_optax.modular._computation._constants import constant_number
from manifold_optax.modular._computation._graph import Graph, Operation, Value


class LastProduct(NamedTuple):
    """`output = scale · enters @ weight + bias`.

    Attributes:
        enters: what is multiplied; it depends on the inputs.
        weight: made of parameters alone.
        axes: the axes of `weight` that are contracted.
        scale: the factor behind it.
    """

    enters: Value
    weight: Value
    axes: tuple[int, ...]
    scale: float


def last_product(
    graph: Graph, is_weight: Callable[[Value], bool]
) -> LastProduct | None:
    """The product whose last axis is the classes, if that is how a graph ends."""
    (value,), scale = graph.outputs, 1.0
    while (made := value.operation) is not None:
        if made.name == "dot_general":
            return _product(made, scale, is_weight)
        if made.name in ("add", "sub"):
            inputs = [x for x in made.operands if not is_weight(x)]
            if len(inputs) != 1:
                return None
            (value,) = inputs
        elif made.name in ("convert_element_type", "copy", "stop_gradient"):
            (value,) = made.operands
        elif made.name in ("mul", "div"):
            x, y = made.operands
            number = constant_number(y)
            if number is None and made.name == "mul":
                x, y, number = y, x, constant_number(x)
            if not number:
                return None
            scale *= number if made.name == "mul" else 1 / number
            value = x
        else:
            return None
        if value.shape != graph.outputs[0].shape:
            return None
    return None


def _product(
    operation: Operation, scale: float, is_weight: Callable[[Value], bool]
) -> LastProduct | None:
    """The activations times a weight whose one free axis is the last of the result."""
    (left, right), (batch, _) = operation.params["dimension_numbers"]
    x, y = operation.operands
    if batch or is_weight(x) or not is_weight(y):
        return None
    if len(y.shape) - len(right) != 1:
        return None
    # The contracted axes must be the last ones, which one norm measures.
    if tuple(sorted(left)) != tuple(range(len(x.shape) - len(left), len(x.shape))):
        return None
    if len(left) != 1:
        return None
    return LastProduct(x, y, tuple(right), scale)


def pair_norms(weight: Array, found: LastProduct) -> Float32[Array, "n n"]:
    """`scale · ‖wᵢ − wⱼ‖`, rounded up, for all pairs of columns."""
    rows = jnp.moveaxis(weight, found.axes, range(len(found.axes)))
    rows = rows.reshape(math.prod(rows.shape[: len(found.axes)]), -1).T
    rows = rows.astype(jnp.float32)
    norm = mixed_norm(rows.shape[1:], "o")

    def differences(row: Array) -> Array:
        # A difference of floats errs by half a unit of the last place of its size.
        return jax.vmap(lambda other: live_norm(row - other, norm))(rows)

    norms = jax.lax.map(differences, rows)
    return abs(found.scale) * norms * (1 + 4 * jnp.finfo(jnp.float32).eps)
