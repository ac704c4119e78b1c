import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manifold_optax as mo
from manifold_optax.geometry import ColumnRms, Max, RmsToRms, RowRms
from manifold_optax.modular import (
    Atom,
    Bond,
    compose,
    modular_norm,
    Repeat,
    repeats,
    shares,
    tare,
)
from modular.expressions import gpt

RATE = 0.03
# Norms are found by LAPACK in float32 from directions with unit norm in float64:
# 2e-7 seen.
SINGLE = 2e-6


def network():
    """Atoms of all kinds that a leaf can be, and the shapes of their leaves."""
    embedding = Atom("embedding", "embedding", mo.OUT_IN, norm=RowRms())
    fused = Atom("fused", axes=mo.Split((4, 4, 2)), mass=2.0)
    block = compose(fused, Atom("heads", axes=mo.HEADS), Bond("gelu", (1.129,)))
    experts = Atom("experts", axes=mo.STACKED, norm=ColumnRms(), mass=3.0)
    stack = Repeat(
        Repeat(2 * Atom("layers/inner", mass=0.5), 2) @ Atom("layers/bias", norm=Max()),
        3,
    )
    bias = Atom("bias", "vector")
    module = compose(embedding, tare(block, 5.0), experts, stack, bias)
    shapes = {"embedding": (7, 4), "fused": (6, 10), "heads": (5, 2, 3)}
    shapes |= {"experts": (2, 3, 4), "bias": (6,)}
    return module, shapes | {"layers/inner": (3, 2, 4, 5), "layers/bias": (3, 4)}


def matrices_of(path, leaf):
    """Matrices `fan_out × fan_in` of a leaf that is not fused, `[*, m, n]`."""
    if path == "embedding":
        return leaf[None]
    if path == "heads":
        return leaf.reshape(5, 6).T[None]
    if path == "bias":
        return leaf[None, :, None]
    if path == "layers/bias":
        return leaf[..., None]
    return leaf.reshape(-1, *leaf.shape[-2:]).mT


def lengths(path, x):
    """Norm of each matrix of a stack, by the definition."""
    if path == "layers/bias":
        return np.abs(x).max(axis=(-2, -1))
    if path == "embedding":
        return np.sqrt((x**2).mean(-1)).max(-1)
    if path == "experts":
        return np.sqrt((x**2).mean(-2)).max(-1)
    return np.linalg.norm(x, 2, axis=(-2, -1)) * np.sqrt(x.shape[-1] / x.shape[-2])


def norms_of(path, leaf):
    """Norm of each slice, by NumPy."""
    if path == "fused":
        blocks = np.split(leaf, (4, 8), axis=1)
        return np.max([lengths(path, block.T[None]) for block in blocks], axis=0)
    each = lengths(path, matrices_of(path, leaf))
    return each.max(keepdims=True) if path == "experts" else each


@pytest.fixture
def updates(rng):
    _, shapes = network()
    return {path: rng.normal(size=shape) for path, shape in shapes.items()}


def to_tree(updates):
    tree = {path: jnp.asarray(x, jnp.float32) for path, x in updates.items()}
    # A leaf that no atom names does not count, whatever it is.
    return tree | {"counter": jnp.ones((), jnp.int32)}


def test_it_is_the_largest_norm_over_its_share(updates):
    module, _ = network()
    each = shares(module)
    expected = max(
        np.max(norms_of(path, x) / each[path]) for path, x in updates.items()
    )
    found = jax.jit(lambda u: modular_norm(module, u))(to_tree(updates))
    np.testing.assert_allclose(found, expected, rtol=SINGLE)
    assert found.dtype == jnp.float32


@pytest.mark.promise(
    "Certificates",
    "A step of the modular optimizer has the length of the learning rate",
    on="modular norm",
)
def test_after_a_step_by_the_shares_it_is_the_learning_rate(updates, measured):
    module, _ = network()
    counts, each = repeats(module), shares(module)
    steps = {}
    for path, x in updates.items():
        lead = counts[path]
        factors = RATE * np.reshape(each[path], lead) / norms_of(path, x).reshape(lead)
        steps[path] = x * factors.reshape(*lead, *[1] * (x.ndim - len(lead)))
    tree = to_tree(steps)
    norm = jax.jit(lambda u: modular_norm(module, u))
    measured(abs(float(norm(tree)) / RATE - 1), at_most=SINGLE)
    # And so for every atom alone: no share is larger than it may be.
    for path in steps:
        alone = {p: x if p == path else None for p, x in tree.items()}
        np.testing.assert_allclose(norm(alone), RATE, rtol=SINGLE)


def test_a_step_changes_a_linear_network_by_the_learning_rate(rng):
    module = compose(Atom("a"), Atom("b"), 2 * Atom("c"))
    each = {path: share for path, (share,) in shares(module).items()}
    a, b, c = (np.linalg.qr(rng.normal(size=(8, 8)))[0] for _ in range(3))
    x = rng.normal(size=8)
    x /= np.sqrt(np.mean(x**2))
    # The worst steps: each atom moves along its own output, all in phase.
    change = 2 * RATE * (each["a"] + each["b"] + each["c"]) * (x @ a @ b @ c)
    np.testing.assert_allclose(np.sqrt(np.mean(change**2)), RATE, rtol=1e-12)
    steps = {"a": each["a"] * a, "b": each["b"] * b, "c": each["c"] * c}
    norm = modular_norm(module, jax.tree.map(lambda w: jnp.asarray(RATE * w), steps))
    np.testing.assert_allclose(norm, RATE, rtol=SINGLE)


def test_absent_leaves_do_not_move_and_frozen_ones_must_not():
    module = Atom("a") @ Atom("frozen", mass=0.0)
    one = jnp.eye(2)
    assert modular_norm(module, {"a": one, "frozen": 0 * one}) == 1
    assert modular_norm(module, {"a": one, "frozen": None}) == 1
    masked = {"a": optax.MaskedNode(), "frozen": 0 * one, "other": one}
    assert modular_norm(module, masked) == 0
    assert modular_norm(module, {"a": one, "frozen": 1e-3 * one}) == jnp.inf
    assert modular_norm(Bond("relu"), {}) == 0


def test_depth_shares_one_stack():
    module = gpt(4, scanned=False)
    tree = {path: jnp.ones((4, 4)) for path in shares(module)}
    program = str(jax.make_jaxpr(lambda u: modular_norm(module, u))(tree))
    # One decomposition, in the loop over the stack.
    assert program.count("svd[") == 1


@pytest.mark.parametrize(
    ("module", "shape", "message"),
    [
        (Atom("b"), (2, 2), "has an atom 'b', but the updates have no such leaf"),
        (Atom("a"), (2, 2, 2), r"'a' of shape \(2, 2, 2\) has 3 axes that no Repeat"),
        (Repeat(Atom("a"), 3), (2, 2, 2), r"'a' is repeated \(3,\) times"),
        (Repeat(Atom("a", norm=RmsToRms()), 2), (), r"shape is \(\)"),
    ],
)
def test_errors_name_the_leaf(unhooked, module, shape, message):
    with pytest.raises(ValueError, match=message):
        modular_norm(module, {"a": jnp.ones(shape)})
