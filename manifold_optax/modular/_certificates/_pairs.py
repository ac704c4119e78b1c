"""The last product of a classifier: what each pair of its outputs depends on."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from manifold_optax.modular._bounds._mixed_norm import mixed_norm
from manifold_optax.modular._certificates._evaluate import EPS
from manifold_optax.modular._certificates._live_norms import live_norm
from manifold_optax.modular._computation._constants import constant_number
from manifold_optax.modular._computation._graph import Graph, Operation, Value


class LastProduct(NamedTuple):
    """`output = scale · enters @ weight + bias`.

    Attributes:
        enters: what is multiplied; it depends on the inputs.
        weight: made of parameters alone.
        axis: the axis of `weight` that is contracted; it has one other.
        scale: the factor behind it.
    """

    enters: Value
    weight: Value
    axis: int
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
    if batch or is_weight(x) or not is_weight(y) or len(y.shape) != 2:
        return None
    if tuple(left) != (len(x.shape) - 1,):  # One vector enters each product.
        return None
    return LastProduct(x, y, right[0], scale)


def pair_norms(weight: Array, found: LastProduct) -> Float32[Array, "n n"]:
    """`scale · ‖wᵢ − wⱼ‖`, rounded up, for all pairs of columns."""
    rows = jnp.moveaxis(weight, found.axis, 1).astype(jnp.float32)
    norm = mixed_norm(rows.shape[1:], "o")

    def differences(row: Array) -> Array:
        # A difference of floats errs by half a unit of the last place of its size.
        return jax.vmap(lambda other: live_norm(row - other, norm))(rows)

    norms = jax.lax.map(differences, rows)
    return abs(found.scale) * norms * (1 + 4 * EPS)
