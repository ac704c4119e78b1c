"""Fused weights are optimized as if each block were a parameter of its own."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manifold_optax as mo
from matrices.views import Dims


class Layout(NamedTuple):
    """A leaf, its axes as the library takes them, and its matrices by plain slices."""

    shape: tuple[int, ...]
    axes: Any
    matrices: Callable[[np.ndarray], list[np.ndarray]]
    """leaf → its matrices, each `[fan_in, fan_out]`, in any order."""


def columns(leaf, sizes):
    return np.split(leaf, np.cumsum(sizes)[:-1], axis=-1)


def per_head(leaf, *sizes):
    """Of `[fan_in, heads, columns]`, the columns of each head in blocks."""
    heads = [leaf[:, head] for head in range(leaf.shape[1])]
    return [block for head in heads for block in columns(head, sizes)]


# Every matrix has 8 inputs and 8, 4 or 2 outputs: three programs for all of the
# separate parameters.
LAYOUTS = {
    "heads": Layout((8, 3, 4), Dims(0, 2), lambda x: per_head(x, 4)),
    "fused heads": Layout((8, 12), mo.Split((4,) * 3), lambda x: columns(x, [4] * 3)),
    "experts": Layout((3, 8, 2), mo.STACKED, list),
    "experts in the middle": Layout((8, 3, 2), Dims(0, 2), lambda x: per_head(x, 2)),
    "QKV": Layout((8, 24), mo.Split((8, 8, 8)), lambda x: columns(x, [8, 8, 8])),
    "QKV of grouped queries": Layout(
        (8, 14), mo.Split((8, 4, 2)), lambda x: columns(x, [8, 4, 2])
    ),
    # Megatron: query, query, key, value of one group, then of the next; PyTorch's axes.
    "QKV by groups": Layout(
        (16, 8),
        mo.Split((4, 2, 2) * 2, axis=0, axes=Dims(1, 0)),
        lambda x: columns(x.T, [4, 2, 2, 4, 2, 2]),
    ),
    "QKV by groups, per head": Layout(
        (16, 8),
        mo.Split((2,) * 8, axis=0, axes=Dims(1, 0)),
        lambda x: columns(x.T, [2] * 8),
    ),
    "gate and up": Layout((8, 16), mo.Split((8, 8)), lambda x: columns(x, [8, 8])),
    "latent and rope": Layout((8, 6), mo.Split((4, 2)), lambda x: columns(x, [4, 2])),
    "nope and value per head": Layout(
        (8, 3, 6), mo.Split((4, 2), axes=Dims(0, 2)), lambda x: per_head(x, 4, 2)
    ),
    "nope and value of fused heads": Layout(
        (8, 18), mo.Split((4, 2) * 3), lambda x: columns(x, [4, 2] * 3)
    ),
    "nope and rope, PyTorch": Layout(
        (18, 8),
        mo.Split((4, 2) * 3, axis=0, axes=Dims(1, 0)),
        lambda x: columns(x.T, [4, 2] * 3),
    ),
    "fused heads that feed in": Layout(
        (16, 4), mo.Split((8, 8), axis=0), lambda x: [x[:8], x[8:]]
    ),
    "latent and rope, PyTorch": Layout(
        (6, 8), mo.Split((4, 2), 0, Dims(1, 0)), lambda x: columns(x.T, [4, 2])
    ),
    "convolution": Layout(
        (2, 2, 2, 4), Dims((0, 1, 2), 3), lambda x: [x.reshape(8, 4)]
    ),
    "layers of fused heads": Layout(
        (2, 8, 12),
        mo.Split((4,) * 3),
        lambda x: [block for layer in x for block in columns(layer, [4] * 3)],
    ),
    "layers of nope and value": Layout(
        (2, 8, 3, 6),
        mo.Split((4, 2), axes=Dims(1, 3)),
        lambda x: [block for layer in x for block in per_head(layer, 4, 2)],
    ),
    "layers in the middle": Layout(
        (8, 2, 12),
        mo.Split((4, 2) * 2, axes=Dims(0, -1)),
        lambda x: per_head(x, 4, 2, 4, 2),
    ),
}
REPEATED = ["fused heads", "fused heads that feed in", "layers in the middle"]
"""Splits with a period, along an output, along an input, and between batches."""

NIGHTLY = [
    "experts in the middle",
    "QKV",
    "QKV by groups, per head",
    "nope and rope, PyTorch",
    "latent and rope, PyTorch",
    "layers of fused heads",
]
"""Like another one but for the place of an axis."""

EACH = [
    pytest.param(name, marks=[pytest.mark.slow] if name in NIGHTLY else [])
    for name in LAYOUTS
]

SPLIT = [name for name, layout in LAYOUTS.items() if isinstance(layout.axes, mo.Split)]

OPTIONS = {"scale": "spectral", "weight_decay": 0.1}
"""The factor is √(fan_out/fan_in) of each block, so that the fan of the leaf shows."""


def gaussian(shape, seed):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape).astype(np.float32)


def two_updates(tx, params, gradients):
    """The updates of two steps; the second starts from the first one's momentum."""
    state, found = tx.init(params), []
    for gradient in gradients:
        updates, state = tx.update(gradient, state, params)
        found.append(updates)
        params = optax.apply_updates(params, updates)
    return found


@functools.cache
def separate():
    """Two steps of muon for a parameter of its own, compiled once per shape."""
    return jax.jit(functools.partial(two_updates, mo.muon(0.1, **OPTIONS)))


def by_matrix(layout, function, *leaves):
    """`function` of the matrices of some leaves, put where they lie in a leaf."""
    places = layout.matrices(np.arange(leaves[0].size).reshape(layout.shape))
    results = [function(*(leaf.ravel()[place] for leaf in leaves)) for place in places]
    assert sorted(np.concatenate([p.ravel() for p in places])) == [
        *range(leaves[0].size)
    ]
    joined = [np.empty(layout.shape, np.float32) for _ in results[0]]
    for place, result in zip(places, results, strict=True):
        for leaf, block in zip(joined, result, strict=True):
            leaf.ravel()[place] = block
    return joined


@pytest.mark.promise(
    "Layouts and devices",
    "A fused leaf is updated as its parts would be",
    on=(
        "`Split` and axes: QKV of equal and grouped heads, gate and up, latent "
        "and rope, heads, experts"
    ),
)
@pytest.mark.parametrize("name", EACH)
def test_muon_of_a_fused_leaf_is_that_of_its_matrices(name):
    layout = LAYOUTS[name]
    leaves = [gaussian(layout.shape, seed) for seed in range(3)]

    def alone(params, *gradients):
        return separate()(params, gradients)

    tx = mo.muon(0.1, axes=layout.axes, **OPTIONS)
    found = jax.jit(functools.partial(two_updates, tx))(leaves[0], tuple(leaves[1:]))
    expected = by_matrix(layout, alone, *leaves)
    for step, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        # Entries of 0.1. In PyTorch's layout the stack stands the other way, its
        # products add in another order, and steep polynomials amplify that (seen: 5e-7;
        # otherwise at most the last bit of the scaled update, 7e-9).
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6, err_msg=f"{step}")


@pytest.mark.slow
def test_newton_schulz_of_a_fused_leaf_is_that_of_its_matrices():
    def of_all(leaves):
        found = {}
        for name, leaf in leaves.items():
            tx = mo.orthogonalize_via_newton_schulz(axes=LAYOUTS[name].axes)
            found[name], _ = tx.update(leaf, tx.init(leaf))
        return found

    def alone(leaf):
        return [np.asarray(orthogonalized(leaf))]

    @jax.jit
    def orthogonalized(leaf):
        tx = mo.orthogonalize_via_newton_schulz()
        return tx.update(leaf, tx.init(leaf))[0]

    names = ("QKV by groups", "nope and value per head", "layers in the middle")
    leaves = {name: gaussian(LAYOUTS[name].shape, 0) for name in names}
    found = jax.jit(of_all)(leaves)
    for name, leaf in leaves.items():
        (expected,) = by_matrix(LAYOUTS[name], alone, leaf)
        # Entries of 1, otherwise as above.
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-5)


def lines_of(axes, columns):
    """Lines of the compiled update of muon, and of its trace."""
    params = {"w": jnp.ones((8, columns))}
    tx = mo.muon(0.1, axes=axes)
    traced = jax.jit(tx.update).trace(params, tx.init(params), params)
    compiled: Any = traced.lower().compile()
    return [text.count("\n") for text in (compiled.as_text(), str(traced.jaxpr))]


@pytest.mark.slow
def test_a_split_that_repeats_costs_one_period():
    few, many = (lines_of(mo.Split((4, 2) * n), 6 * n) for n in (2, 32))
    # 58 slices more would be at least as many lines. (Seen: none, and 8.)
    assert many[0] - few[0] < 10
    assert many[1] - few[1] < 20


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_factor_of_each_block_is_that_of_its_own_fans(name):
    layout = LAYOUTS[name]
    tx: Any = mo.scale_by_shape("spectral", axes=layout.axes)
    found, _ = tx.update(jnp.ones(layout.shape), optax.EmptyState())
    (expected,) = by_matrix(
        layout,
        lambda block: [np.full(block.shape, (block.shape[1] / block.shape[0]) ** 0.5)],
        np.ones(layout.shape),
    )
    # One rounding of the factor.
    np.testing.assert_allclose(found, expected, rtol=1e-7)


@functools.partial(jax.jit, static_argnums=(0, 1))
def numbered(make, axes, params, *gradients):
    """Updates of a link that keeps, or takes, numbers per row or per matrix."""
    required = [mo.Sphere("kept")] if make == "scale_by_size" else []
    return two_updates(getattr(mo, make)(*required, axes=axes), params, gradients)


@pytest.mark.parametrize("name", REPEATED)
@pytest.mark.parametrize("make", ["scale_by_row_rms", "scale_by_size"])
def test_numbers_per_row_and_per_block_are_those_of_the_matrices(name, make):
    """The state along a split axis, and factors that depend on the values."""
    layout = LAYOUTS[name]
    leaves = [gaussian(layout.shape, seed) for seed in range(3)]
    found = numbered(make, layout.axes, *leaves)
    alone = functools.partial(numbered, make, mo.STACKED)
    expected = by_matrix(layout, alone, *leaves)
    for ours, theirs in zip(found, expected, strict=True):
        # Sums of 16 squares and a root, of numbers of order 1 to 10.
        np.testing.assert_allclose(ours, theirs, rtol=2e-6)


@pytest.mark.parametrize("name", SPLIT)
def test_a_split_that_does_not_add_up_names_the_leaf(name, unhooked):
    layout = LAYOUTS[name]
    wrong = layout.axes._replace(sizes=(*layout.axes.sizes, 1))
    params = {"attention": {"qkv": jnp.ones(layout.shape)}}
    tx = mo.muon(0.1, axes=wrong)
    size = layout.shape[wrong.axis]
    message = rf"sums to {size + 1}, but the leaf 'attention/qkv' .* has {size} there"
    with pytest.raises(ValueError, match=message):
        tx.update(params, tx.init(params), params)
