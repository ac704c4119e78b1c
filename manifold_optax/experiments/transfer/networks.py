"""The networks whose width and depth change: three perceptrons and a transformer.

Equal layers are slices of stacked weights, applied by one `scan`, so that the time to
compile does not depend on the depth.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from manifold_optax.experiments.lm.layers import rotate

FamilyName: TypeAlias = Literal["plain", "residual", "mean", "transformer"]
Params: TypeAlias = Mapping[str, Float[Array | np.ndarray, "..."]]
Stream: TypeAlias = Float[Array, "batch length width"]

HEAD_SIZE = 16

# Added to the mean square in a norm, as in Flax.
_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class Network:
    """One network of matrices, without biases and gains.

    With `f(x) = relu(x) W` and `N` layers, a layer of the perceptrons is `f(x)`
    ("plain"), `x + f(x)` ("residual") or `(1 − 1/N) x + f(x)/N` ("mean"). A block of
    the transformer is `x + attention(norm(x))`, then `x + feed_forward(norm(x))`.

    Attributes:
        family: Kind of the layers.
        width: Entries of what passes from layer to layer.
        depth: Number of layers, or of blocks, without the first and the last matrix.
        inputs: Entries of an example, or number of characters.
        outputs: Number of classes, or of characters.
    """

    family: FamilyName
    width: int
    depth: int
    inputs: int
    outputs: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter; those of the layers begin with the depth."""
        depth, width, heads = self.depth, self.width, self.width // HEAD_SIZE
        outer = {"first": (self.inputs, width), "last": (width, self.outputs)}
        if self.family != "transformer":
            return {**outer, "inner": (depth, width, width)}
        return {
            **outer,
            "query": (depth, width, heads, HEAD_SIZE),
            "key": (depth, width, heads, HEAD_SIZE),
            "value": (depth, width, heads, HEAD_SIZE),
            "output": (depth, heads, HEAD_SIZE, width),
            "up": (depth, width, 4 * width),
            "down": (depth, 4 * width, width),
        }

    @property
    def matrices(self) -> int:
        """Number of its matrices."""
        return 2 + self.depth * (len(self.shapes) - 2)

    def draw(self, seed: int) -> dict[str, np.ndarray]:
        """Draws parameters: orthogonal matrices times a number, and an embedding.

        The number keeps the RMS of what passes near 1: √2 where a ReLU stands before
        the matrix, and, where `N` results are added to a stream, 1/√N of it, as in
        GPT-2 (A. Radford et al., 2019, section 2.3). The embedding is Gaussian.
        """
        random = np.random.default_rng(seed)
        drawn = {}
        for name, shape in self.shapes.items():
            if name == "first" and self.family == "transformer":
                leaf = random.standard_normal(shape)
            else:
                leaf = self._gain(name) * _orthogonal(random, name, shape)
            drawn[name] = leaf.astype(np.float32)
        return drawn

    def apply(self, params: Params, inputs: Shaped[Array, "batch ..."]) -> Array:
        """Returns the logits: of each example, or of the character after each."""
        outer = ("first", "last")
        inner = {name: leaf for name, leaf in params.items() if name not in outer}
        if self.family == "transformer":
            stream = jnp.asarray(params["first"])[inputs]
            stream = _scan(_block, stream, inner)
            return _norm(stream) @ params["last"]
        stream = _scan(self._layer, inputs @ params["first"], inner)
        return jax.nn.relu(stream) @ params["last"]

    def _layer(self, x: Array, own: Params) -> Array:
        result = jax.nn.relu(x) @ own["inner"]
        match self.family:
            case "residual":
                return x + result
            case "mean":
                return (1 - 1 / self.depth) * x + result / self.depth
            case _:
                return result

    def _gain(self, name: str) -> float:
        if self.family == "transformer":
            summand = name in ("output", "down")
            return (2 * self.depth) ** -0.5 if summand else 1.0
        if name == "inner":
            share = self.depth**-0.5 if self.family == "residual" else 1.0
            return 2**0.5 * share
        return 1.0


def _scan(layer: Any, x: Array, stacked: Params) -> Array:
    return jax.lax.scan(lambda x, own: (layer(x, own), None), x, stacked)[0]


def _block(x: Stream, own: Params) -> Stream:
    normed = _norm(x)
    query, key, value = (
        jnp.einsum("blw,whs->blhs", normed, own[name])
        for name in ("query", "key", "value")
    )
    attended = jax.nn.dot_product_attention(
        rotate(query), rotate(key), value, is_causal=True
    )
    x = x + jnp.einsum("blhs,hsw->blw", attended, own["output"])
    return x + jax.nn.relu(_norm(x) @ own["up"]) @ own["down"]


def _norm(x: Stream) -> Stream:
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + _EPSILON)


def _orthogonal(
    random: np.random.Generator, name: str, shape: tuple[int, ...]
) -> np.ndarray:
    """Draws matrices that keep the RMS of an even input, reshaped to a parameter.

    All singular values are 1, or √(fan_out/fan_in) where a matrix widens.
    """
    stack = shape[:1] if name not in ("first", "last") else ()
    sizes = shape[len(stack) :]
    split = 2 if name == "output" else 1
    fan_in, fan_out = int(np.prod(sizes[:split])), int(np.prod(sizes[split:]))
    long, short = max(fan_in, fan_out), min(fan_in, fan_out)
    columns, triangle = np.linalg.qr(random.standard_normal((*stack, long, short)))
    # The signs make the distribution uniform (F. Mezzadri, math-ph/0609050).
    signs = np.sign(np.diagonal(triangle, axis1=-2, axis2=-1))
    columns = columns * signs[..., None, :]
    matrices = columns if fan_in >= fan_out else columns.swapaxes(-1, -2)
    return max(1.0, fan_out / fan_in) ** 0.5 * matrices.reshape(shape)
