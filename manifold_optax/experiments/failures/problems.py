"""What the tasks are made of: first parameters, losses, and what is judged.

A `Draw` makes the parameters and the data of a seed. A `Loss` returns what a step
descends, and the extra arguments of the update. A `Measure` returns what is judged,
without noise. Matrices are `[fan_in, fan_out]`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32, Key

Tree: TypeAlias = Any

STEPS = 300
"""Steps of every run; the thresholds are derived from it where they say so."""

ROWS, COLUMNS = 16, 8
CONDITION = 1e-4
"""Smallest curvature over the largest, which is 1."""


class Moment(NamedTuple):
    """What differs from step to step: its number, from 0, and the key of its noise."""

    step: Int32[Array, ""]
    key: Key[Array, ""]


Draw: TypeAlias = Callable[[Key[Array, ""]], tuple[Tree, Tree]]
Loss: TypeAlias = Callable[[Tree, Tree, Moment], tuple[Array, Tree]]
Measure: TypeAlias = Callable[[Tree, Tree], Array]
TargetLoss: TypeAlias = Callable[[Array, Tree, Moment], Array]
"""(difference from the target, data, moment) → loss."""


def frame(
    key: Key[Array, ""], rows: int = ROWS, columns: int = COLUMNS
) -> Float32[Array, "rows columns"]:
    """Returns a random matrix with orthonormal rows or columns, the fewer of them."""
    return jax.random.orthogonal(key, max(rows, columns))[:rows, :columns]


def squares(x: Float[Array, "..."]) -> Float[Array, ""]:
    """Returns half the sum of the squares."""
    return 0.5 * jnp.sum(jnp.square(x))


def _norm(x: Float[Array, "..."]) -> Float[Array, ""]:
    return jnp.sqrt(jnp.sum(jnp.square(x)))


def descends(measure: Measure) -> Loss:
    """Returns the loss that is itself what is judged."""

    def loss(params: Tree, data: Tree, now: Moment) -> tuple[Array, Tree]:
        del now
        return measure(params, data), {}

    return loss


# One matrix on its way from one frame to another.


def draw_target(key: Key[Array, ""]) -> tuple[Tree, Tree]:
    """Draws a start and a target, and the curvatures that some losses have."""
    keys = jax.random.split(key, 5)
    start, target, other = (frame(own) for own in keys[:3])
    rotation = jax.random.orthogonal(keys[3], ROWS)
    spectrum = jnp.geomspace(1.0, CONDITION, ROWS)
    data = {
        "start": start,
        "target": target,
        "other": other,
        "hessian": (rotation * spectrum[None]) @ rotation.T,
        "curvatures": CONDITION ** jax.random.uniform(keys[4], start.shape),
    }
    return {"w": start}, data


def draw_bfloat16(key: Key[Array, ""]) -> tuple[Tree, Tree]:
    """Draws the same with parameters, and so gradients, in bfloat16."""
    params, data = draw_target(key)
    return {"w": params["w"].astype(jnp.bfloat16)}, data


def to_target(loss: TargetLoss) -> Loss:
    """Returns a loss of the difference from the target, in float32."""

    def whole(params: Tree, data: Tree, now: Moment) -> tuple[Array, Tree]:
        difference = params["w"].astype(jnp.float32) - data["target"]
        return loss(difference, data, now), {}

    return whole


def distance(params: Tree, data: Tree) -> Array:
    """Returns the distance from the target, over that of the start."""
    difference = params["w"].astype(jnp.float32) - data["target"]
    return _norm(difference) / _norm(data["start"] - data["target"])


def plain(difference: Array, data: Tree, now: Moment) -> Array:
    """Half the squared distance."""
    del data, now
    return squares(difference)


def curved(difference: Array, data: Tree, now: Moment) -> Array:
    """Has curvatures along directions of the input."""
    del now
    return 0.5 * jnp.sum(difference * (data["hessian"] @ difference))


def curved_entries(difference: Array, data: Tree, now: Moment) -> Array:
    """Has a curvature for every entry."""
    del now
    return 0.5 * jnp.sum(jnp.square(difference) * data["curvatures"])


def noisy(draw: Callable[..., Array], size: float) -> TargetLoss:
    """Returns the plain loss with noise in every entry of the gradient.

    Args:
        draw: Key and shape → noise of size 1.
        size: Its size, over the root mean square of the first difference.
    """

    def loss(difference: Array, data: Tree, now: Moment) -> Array:
        unit = jnp.sqrt(jnp.mean(jnp.square(data["start"] - data["target"])))
        noise = size * unit * draw(now.key, difference.shape)
        return squares(difference) + jnp.sum(noise * difference)

    return loss


def one_row(difference: Array, data: Tree, now: Moment) -> Array:
    """Sees one row at a time."""
    del data
    row = jax.random.randint(now.key, (), 0, ROWS)
    return ROWS * squares(difference[row])


def far_away(difference: Array, data: Tree, now: Moment) -> Array:
    """Is flat where the start is: a Gaussian well, whose exponent is there -24."""
    del now
    start = jnp.sum(jnp.square(data["start"] - data["target"]))
    return -jnp.exp(-24 * jnp.sum(jnp.square(difference)) / start)


def jump(difference: Array, data: Tree, now: Moment) -> Array:
    """Has another target during the first 60 % of the steps."""
    before = now.step < 0.6 * STEPS
    return squares(difference + before * (data["target"] - data["other"]))


def scale_jump(difference: Array, data: Tree, now: Moment) -> Array:
    """Has another target and 100 times the loss during a third of the steps."""
    before = now.step < STEPS // 3
    shifted = difference + before * (data["target"] - data["other"])
    return jnp.where(before, 100.0, 1.0) * squares(shifted)


def poisoned(difference: Array, data: Tree, now: Moment) -> Array:
    """Is not a number in three steps, two of them in a row."""
    del data
    bad = (now.step == 30) | (now.step == 31) | (now.step == STEPS // 2)
    return jnp.where(bad, jnp.nan, 1.0) * squares(difference)


def draw_table(key: Key[Array, ""]) -> tuple[Tree, Tree]:
    """Draws an embedding of 32 words."""
    target = jax.random.normal(key, (32, COLUMNS))
    return {"w": jnp.zeros_like(target)}, {"start": 0 * target, "target": target}


def rare_rows(difference: Array, data: Tree, now: Moment) -> Array:
    """Sees eight words at a time; word k comes with a probability of 1/k to the first.

    The probability of the 32nd is 1/130.
    """
    del data
    logits = -jnp.log(jnp.arange(1.0, 1 + len(difference)))
    return squares(difference[jax.random.categorical(now.key, logits, shape=(8,))]) / 8


def draw_regression(examples: int, rank: int) -> Draw:
    """Returns how to draw a linear regression without noise, by a frame.

    Where the inputs span less than all dimensions, it starts at zero, and the target
    is within the span.
    """

    def draw(key: Key[Array, ""]) -> tuple[Tree, Tree]:
        keys = jax.random.split(key, 4)
        basis = frame(keys[0], ROWS, rank)
        inputs = jax.random.normal(keys[1], (examples, rank)) @ basis.T
        start, target = frame(keys[2]), frame(keys[3])
        if rank < ROWS:
            start, target = jnp.zeros_like(start), basis @ (basis.T @ target)
        return {"w": start}, {"inputs": inputs, "start": start, "target": target}

    return draw


def regression(difference: Array, data: Tree, now: Moment) -> Array:
    """The mean of half the squares of the errors."""
    del now
    return squares(data["inputs"] @ difference) / len(data["inputs"])


def draw_direction(key: Key[Array, ""]) -> tuple[Tree, Tree]:
    """Draws a start of length 0.01, and a target of length 1."""
    first, second = jax.random.split(key)
    start, target = (frame(own) / COLUMNS**0.5 for own in (first, second))
    return {"w": 0.01 * start}, {"start": start, "target": target}


def direction_error(params: Tree, data: Tree) -> Array:
    """Returns the distance of the directions, over that of the start."""
    return distance({"w": params["w"] / _norm(params["w"])}, data)


def direction_loss(params: Tree, data: Tree, now: Moment) -> tuple[Array, Tree]:
    """Depends on the direction alone."""
    del now
    return squares(params["w"] / _norm(params["w"]) - data["target"]), {}


# Several matrices.


def draw_factors(
    shapes: Sequence[tuple[int, int]], scales: Sequence[float], rank: int
) -> Draw:
    """Returns how to draw factors, and a product of unit singular values to reach."""

    def draw(key: Key[Array, ""]) -> tuple[Tree, Tree]:
        keys = jax.random.split(key, len(shapes) + 2)
        factors = {
            f"w{k}": scale * frame(keys[k], *shape)
            for k, (shape, scale) in enumerate(zip(shapes, scales, strict=True))
        }
        left = frame(keys[-1], shapes[0][0], rank)
        right = frame(keys[-2], rank, shapes[-1][1])
        return factors, {"target": left @ right}

    return draw


def _product(params: Tree) -> Array:
    product = params["w0"]
    for k in range(1, len(params)):
        product = product @ params[f"w{k}"]
    return product


def product_loss(params: Tree, data: Tree, now: Moment) -> tuple[Array, Tree]:
    """Half the squared distance of the product."""
    del now
    return squares(_product(params) - data["target"]), {}


def product_error(params: Tree, data: Tree) -> Array:
    """Returns the distance of the product, over that of zero."""
    return _norm(_product(params) - data["target"]) / _norm(data["target"])


def draw_small(key: Key[Array, ""]) -> tuple[Tree, Tree]:
    """Draws entries of 1e-3."""
    return {"w": 1e-3 * jax.random.normal(key, (ROWS, COLUMNS))}, {}


def sign_loss(params: Tree, data: Tree, now: Moment) -> tuple[Array, Tree]:
    """Has two minima for every entry, -1/4 and 1/4."""
    del data, now
    return squares(4 * jnp.square(params["w"]) - 0.25), {}


def sign_error(params: Tree, data: Tree) -> Array:
    """Returns the root mean square of the errors of the squares, 1 at zero."""
    del data
    return jnp.sqrt(jnp.mean(jnp.square(16 * jnp.square(params["w"]) - 1)))


def draw_valley(key: Key[Array, ""]) -> tuple[Tree, Tree]:
    """Draws a matrix near -1/2 times the identity, and its square."""
    x = -0.5 * jnp.eye(8) + 0.1 * jax.random.normal(key, (8, 8))
    return {"x": x, "y": x @ x}, {"start": x}


def valley_loss(params: Tree, data: Tree, now: Moment) -> tuple[Array, Tree]:
    """Rosenbrock's function of two matrices, with its factor 100."""
    del data, now
    x, y = params["x"], params["y"]
    return 2 * squares(jnp.eye(8) - x) + 200 * squares(y - x @ x), {}


def valley_left(params: Tree, data: Tree) -> Array:
    """Returns the distance of `x` from the identity, over that of the start."""
    return _norm(params["x"] - jnp.eye(8)) / _norm(data["start"] - jnp.eye(8))
