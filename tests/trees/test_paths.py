"""Normalised paths of leaves."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from manifold_optax.integrations.flax import module_list
from manifold_optax.trees import leaf_path, leaves_by_path


class Mlp(nnx.Module):
    def __init__(self, rngs):
        self.layers = module_list([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(4, rngs=rngs)
        self.embed = nnx.Embed(5, 4, rngs=rngs)


def paths_of(tree):
    return [leaf_path(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(tree)]


def test_paths_are_keys_joined_by_slashes():
    tree = {"a": [{"b": 1.0}, (2.0, 3.0)]}
    assert paths_of(tree) == ["a/0/b", "a/1/0", "a/1/1"]


def test_the_value_that_nnx_appends_is_removed():
    model = Mlp(nnx.Rngs(0))
    expected = {
        "embed/embedding",
        "layers/0/bias",
        "layers/0/kernel",
        "layers/1/bias",
        "layers/1/kernel",
        "norm/bias",
        "norm/scale",
    }
    state = nnx.state(model, nnx.Param)
    assert set(paths_of(state)) == expected
    gradient = nnx.grad(lambda m: jnp.sum(m.layers[0](jnp.ones((1, 4)))))(model)
    assert set(paths_of(gradient)) == expected


def test_a_dictionary_key_named_value_stays():
    tree = {"attention": {"query": jnp.ones((2, 2)), "value": jnp.ones((2, 2))}}
    assert paths_of(tree) == ["attention/query", "attention/value"]


def test_absent_leaves_have_a_path():
    tree = {"a": None, "b": [optax.MaskedNode(), jnp.ones(2)]}
    assert list(leaves_by_path(tree)) == ["a", "b/0", "b/1"]


def test_two_leaves_of_one_path_are_an_error():
    with pytest.raises(ValueError, match="Two leaves have one path, 'a/b'"):
        leaves_by_path({"a/b": jnp.ones(2), "a": {"b": jnp.ones(2)}})
