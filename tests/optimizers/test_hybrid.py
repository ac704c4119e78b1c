"""hybrid is the drop-in for optax.contrib.muon, without guessing by rank."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manifold_optax as mo

Axes = optax.contrib.MuonDimensionNumbers
SHAPES = {
    "embed": {"embedding": (10, 8)},
    "layers": {
        "0": {"kernel": (8, 16), "bias": (16,)},
        "1": {"kernel": (16, 8), "bias": (8,)},
    },
    "norm": {"scale": (8,)},
    "head": {"kernel": (8, 10)},
}


def is_shape(node):
    return isinstance(node, tuple)


def gaussian(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape), jnp.float32),
        SHAPES,
        is_leaf=is_shape,
    )


def dimension_numbers():
    """Optax's tree: numbers for the hidden kernels, None for all others."""
    tree = jax.tree.map(lambda _: None, SHAPES, is_leaf=is_shape)
    for layer in tree["layers"].values():
        layer["kernel"] = Axes()
    return tree


def run(tx, steps=5, start=None):
    params: Any = gaussian(0) if start is None else start
    updates: Any = None
    state, update = tx.init(params), jax.jit(tx.update)
    for seed in range(1, steps + 1):
        updates, state = update(gaussian(seed), state, params)
        params = optax.apply_updates(params, updates)
    return updates, params


def test_drop_in_for_optax():
    adamw = optax.adamw(1e-3, weight_decay=0.01, nesterov=True)
    ours = mo.hybrid(mo.muon(0.02, weight_decay=0.1), others=adamw)
    theirs = optax.contrib.muon(
        0.02,
        weight_decay=0.1,
        adam_learning_rate=1e-3,
        adam_weight_decay=0.01,
        muon_weight_dimension_numbers=dimension_numbers(),
    )
    found, wanted = run(ours), run(theirs)
    for ours_leaf, theirs_leaf in zip(
        jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True
    ):
        # Updates of 0.02 and parameters below 4: rounding (seen: 2.4e-7).
        np.testing.assert_allclose(ours_leaf, theirs_leaf, rtol=0, atol=1e-6)


def test_others_are_left_to_adamw():
    found, _ = run(mo.hybrid(mo.muon(0.02)))
    wanted, _ = run(optax.adamw(3e-4))
    for name in ("embed", "norm", "head"):
        for mine, other in zip(
            jax.tree.leaves(found[name]), jax.tree.leaves(wanted[name]), strict=True
        ):
            # The same operations, compiled with other neighbours (seen: none).
            np.testing.assert_allclose(mine, other, rtol=1e-6)
    mine, other = found["layers"]["0"], wanted["layers"]["0"]
    np.testing.assert_allclose(mine["bias"], other["bias"], rtol=1e-6)
    assert float(jnp.abs(mine["kernel"] - other["kernel"]).max()) > 1e-3


@pytest.mark.slow
def test_a_manifold_for_the_matrices():
    labels = mo.roles({r"^layers/\d/kernel$": "matrix"}, default="other")
    tx: Any = mo.hybrid(
        mo.manifold_muon(0.1, manifold=mo.Stiefel("rms")), labels=labels
    )
    start = gaussian(0)
    roles = mo.roles({r"^layers/\d/kernel$": mo.STACKED}, default="other")
    start = mo.project(start, mo.Stiefel("rms"), axes=roles)
    _, params = run(tx, start=start)
    for layer in params["layers"].values():
        # Flax kernels are [fan_in, fan_out]; the manifold's rows are fan-out.
        residual = mo.Stiefel("rms").residual(layer["kernel"].T)
        # Rounding of the retraction (seen: 5e-7).
        assert float(residual) <= 1e-5
    assert float(mo.Stiefel("rms").residual(params["head"]["kernel"].T)) > 0.1


def test_an_unknown_leaf_is_an_error_that_names_it():
    params = {"mixer": {"table": jnp.ones((4, 4))}}
    with pytest.raises(ValueError, match=r"'mixer/table'.*\nmo.roles"):
        mo.hybrid(mo.muon(0.02)).init(params)


LABELS_ARE_KNOWN = pytest.mark.promise(
    "What is applied",
    "A label that nobody knows, or that nothing has, is an error",
    on="hybrid",
)


@LABELS_ARE_KNOWN
def test_an_unknown_label_is_an_error_that_names_the_leaves():
    labels = mo.roles({"0/kernel": "matrices", "kernel": "matrix"}, default="other")
    message = r"no transformation .*'layers/0/kernel': 'matrices'.*\['matrix'\]"
    with pytest.raises(ValueError, match=message):
        mo.hybrid(mo.muon(0.02), labels=labels).init(gaussian(0))


@LABELS_ARE_KNOWN
def test_a_transformation_whose_label_nothing_has_is_an_error():
    tx = mo.hybrid({"matrix": mo.muon(0.02), "heads": mo.muon(0.02)})
    with pytest.raises(ValueError, match=r"No parameter has the label 'heads'"):
        tx.init(gaussian(0))
    # A tree without leaves, as Optax's tools give, has no labels to ask for.
    assert tx.init({}) is not None


def test_a_function_may_give_the_labels(unhooked):
    names = {"embed": "other", "layers": "matrix", "norm": "other", "head": "other"}
    labels = lambda tree: {
        name: jax.tree.map(lambda x, n=n: n if x.ndim == 2 else "vector", tree[name])
        for name, n in names.items()
    }
    found, _ = run(mo.hybrid(mo.muon(0.02), labels=labels), steps=1)
    wanted, _ = run(mo.hybrid(mo.muon(0.02)), steps=1)
    chex.assert_trees_all_equal(found, wanted)
    with pytest.raises(TypeError, match="labels must be "):
        mo.hybrid(mo.muon(0.02), labels="matrix")  # pyright: ignore[reportArgumentType]


def test_a_mapping_gives_each_label_its_own_optimizer():
    """Per head, and as one matrix: blocks of 8 × 2 are alone what they are together."""
    rng = np.random.default_rng(0)
    kernels = {name: rng.standard_normal((8, 4, 2)) for name in ("query", "out")}
    gradient = {name: jnp.asarray(leaf, jnp.float32) for name, leaf in kernels.items()}
    gradient["out"] = gradient["out"].reshape(8, 8)
    gradient["bias"] = jnp.ones(3)
    per_head = mo.muon(0.02, axes=Axes(0, 2))
    tx: Any = mo.hybrid(
        {"heads": per_head, "matrix": mo.muon(0.02)},
        others=optax.sgd(1.0),
        labels=mo.roles({"query": "heads", "out": "matrix"}, default="other"),
    )
    state = tx.init(gradient)
    assert set(state.inner_states) == {"heads", "matrix", "other"}
    found, _ = jax.jit(tx.update)(gradient, state, gradient)
    for name, alone in (("query", per_head), ("out", mo.muon(0.02))):
        tree = {name: gradient[name]}
        wanted, _ = jax.jit(alone.update)(tree, alone.init(tree), tree)
        # The same operations, compiled with other neighbours: rounding of 0.02.
        np.testing.assert_allclose(found[name], wanted[name], rtol=0, atol=1e-7)
    np.testing.assert_array_equal(found["bias"], -gradient["bias"])


@pytest.mark.parametrize("matrices", [{}, {"other": optax.sgd(0.1)}])
def test_a_mapping_must_have_labels_and_not_that_of_the_others(matrices):
    with pytest.raises(ValueError, match="argument others"):
        mo.hybrid(matrices)


def test_what_is_no_transformation_is_an_error_that_names_its_label(unhooked):
    with pytest.raises(TypeError, match="the label 'heads' must be an optax"):
        mo.hybrid({"heads": mo.muon})  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="the label 'other' must be an optax"):
        mo.hybrid(mo.muon(0.02), others=3e-4)  # pyright: ignore[reportArgumentType]
