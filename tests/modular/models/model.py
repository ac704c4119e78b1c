"""One model as a user has it, and what is true of each of its parameters."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx

import manifold_optax as mo
from manifold_optax.matrices._view import views_of

BATCH = 2
"""Examples of every batch."""


class Golden(NamedTuple):
    """The right answer for one parameter."""

    role: mo.Role
    use: str = ""
    """How the model uses the parameter, in a word: "bias", "gain", "tied", …"""
    alternative: mo.Role | None = None
    """A second role that is as good, where use alone does not decide."""


class Model(NamedTuple):
    """A model and the golden answer for every one of its leaves.

    `forward(params, *inputs)` returns the logits, or a tuple of the logits and of side
    outputs. Paths are those of `trees.leaf_path`.
    """

    name: str
    forward: Callable[..., Any]
    params: Any
    """Shapes of the parameters, a plain pytree of `jax.ShapeDtypeStruct`."""
    inputs: tuple[Any, ...]
    """Arrays; shapes alone where a batch would be large."""
    roles: Mapping[str, mo.Role]
    uses: Mapping[str, str]
    alternatives: Mapping[str, mo.Role]
    """Roles that are as good as those of `roles`, for a few leaves."""
    refuses: str | None = None
    """The primitive for which the model cannot be read; `None`: it can."""


PER_HEAD_AXES = optax.contrib.MuonDimensionNumbers(reduction_axis=-3, output_axis=-1)
"""`[*layers, in, heads, head_dim]`, each head a matrix of its own."""

MATRIX = Golden(mo.Role("matrix", mo.STACKED))
"""`[*layers, in, out]`."""

READOUT = Golden(mo.Role("readout", mo.STACKED))
CONVOLUTION = Golden(mo.Role("matrix", mo.CONV))
PER_HEAD = Golden(mo.Role("matrix", PER_HEAD_AXES), "heads")
FROM_HEADS = Golden(mo.Role("matrix", mo.HEADS_OUT))
EXPERTS_IN = Golden(
    mo.Role("matrix", mo.STACKED),
    "experts",
    mo.Role("matrix", optax.contrib.MuonDimensionNumbers(-2, (-3, -1))),
)
"""`[experts, in, hidden]`, whose hidden units a later product sums over all experts.

By use alone that is one wide layer; whoever wrote it means a stack of experts.
"""

EXPERTS_OUT = Golden(
    mo.Role("matrix", mo.STACKED), "experts", mo.Role("matrix", mo.HEADS_OUT)
)
"""`[experts, hidden, out]`, the product that sums over experts and hidden units."""

ROUTER = Golden(mo.Role("matrix", mo.STACKED), "router", mo.Role("router"))
"""The linear map whose results weigh the experts.

One rule would tell it from other matrices by use: its outputs pair with a batch axis
of other parameters.
"""

EMBEDDING = Golden(mo.Role("embedding"), "looked up")
TIED = Golden(mo.Role("embedding"), "tied")
"""Looked up, and contracted: the user must decide between embedding and readout."""

BIAS = Golden(mo.Role("vector"), "bias")
GAIN = Golden(mo.Role("vector"), "gain")
TOKEN = Golden(mo.Role("vector"), "token")
"""A constant row of the sequence, put beside the others."""


def fused(sizes: Sequence[int], axes: Any = mo.STACKED, use: str = "fused") -> Golden:
    """Several matrices side by side along the last axis."""
    return Golden(mo.Role("matrix", mo.Split(tuple(sizes), -1, axes)), use)


def heads_of(size: int, count: int) -> Golden:
    """`[in, heads * size]`, reshaped to heads after the product."""
    return fused((size,) * count, use="heads")


def below(prefix: str, table: Mapping[str, Golden]) -> dict[str, Golden]:
    """The same table with a prefix before each path."""
    return {f"{prefix}/{path}": golden for path, golden in table.items()}


def in_layers(
    prefix: str, count: int, table: Mapping[str, Golden]
) -> dict[str, Golden]:
    """One copy of the table per layer: `prefix/0/…`, `prefix/1/…`."""
    return {
        path: golden
        for layer in range(count)
        for path, golden in below(f"{prefix}/{layer}", table).items()
    }


def described(
    forward: Callable[..., Any],
    params: Any,
    inputs: tuple[Any, ...],
    golden: Mapping[str, Golden],
    *,
    name: str,
    refuses: str | None = None,
) -> Model:
    """The model of these parts."""
    return Model(
        name,
        forward,
        params,
        inputs,
        {path: one.role for path, one in golden.items()},
        {path: one.use for path, one in golden.items() if one.use},
        {p: one.alternative for p, one in golden.items() if one.alternative},
        refuses,
    )


def as_users_trace(forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward` where `x + bias` may add arrays of different rank.

    The test session forbids that to the library; users' models do it everywhere.
    """

    @functools.wraps(forward)
    def allowed(*arguments: Any) -> Any:
        with jax.numpy_rank_promotion("allow"):
            return forward(*arguments)

    return allowed


def split_nnx(make: Callable[[nnx.Rngs], nnx.Module]) -> tuple[Any, Any]:
    """`forward(params, *inputs)` of an nnx module, and the shapes of its parameters."""
    model = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    graph = nnx.graphdef(model)

    def forward(params: Any, *inputs: Any) -> Any:
        module: Any = nnx.merge(graph, params)
        return module(*inputs)

    return as_users_trace(forward), nnx.to_pure_dict(nnx.state(model))


def shapes(tree: Any) -> Any:
    """A tree of tuples as the tree of the `float32` arrays of these shapes."""
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, np.float32),
        tree,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard Gaussian input."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def tokens(vocabulary: int, *shape: int, seed: int = 0) -> np.ndarray:
    """Random tokens."""
    return np.random.default_rng(seed).integers(0, vocabulary, shape, dtype=np.int32)


def drawn(model: Model, seed: int = 0) -> Any:
    """Parameters of a model as an initializer might draw them.

    Gains are 1 and biases 0. All else is Gaussian: matrices with entries of
    1/√fan_in, and rows of embeddings with a length of about 1.
    """
    rng = np.random.default_rng(seed)

    def draw(keys: Any, leaf: Any) -> np.ndarray:
        path = mo.trees.leaf_path(keys)
        if model.uses.get(path) in ("gain", "bias"):
            return np.full(leaf.shape, float(model.uses[path] == "gain"), np.float32)
        role, size = model.roles[path], leaf.shape[-1]
        if role.label in ("matrix", "readout"):
            size = views_of(leaf, path, role.axes)[0].fan_in
        return (rng.standard_normal(leaf.shape) * size**-0.5).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, model.params)
