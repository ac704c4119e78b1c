import re

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen, nnx

import manifold_optax as mo
from manifold_optax.integrations.flax import module_list
from manifold_optax.matrices import leaf_path


def ones(tree):
    """A tree of arrays, from one of shapes."""
    return jax.tree.map(jnp.ones, tree, is_leaf=lambda node: isinstance(node, tuple))


class Mlp(nnx.Module):
    def __init__(self, rngs):
        self.layers = module_list([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(4, rngs=rngs)
        self.embed = nnx.Embed(5, 4, rngs=rngs)


class LinenMlp(linen.Module):
    @linen.compact
    def __call__(self, tokens):
        x = linen.LayerNorm()(linen.Embed(5, 4)(tokens))
        return linen.Dense(7, name="lm_head")(linen.Dense(6)(x))


def paths_of(tree):
    return [leaf_path(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(tree)]


# --- paths ---------------------------------------------------------------------------


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


# --- label_by_path -------------------------------------------------------------------

TREE = {
    "embed": {"kernel": (5, 4)},
    "layers": [{"kernel": (4, 4), "bias": (4,)}, {"kernel": (4, 4), "bias": (4,)}],
}


def test_the_first_rule_that_is_found_wins():
    labels = mo.label_by_path(
        {r"^embed": "table", r"kernel$": "matrix", r"^layers/1": "second"}, "rest"
    )
    assert labels(ones(TREE)) == {
        "embed": {"kernel": "table"},
        "layers": [
            {"kernel": "matrix", "bias": "rest"},
            {"kernel": "matrix", "bias": "second"},
        ],
    }


def test_a_rule_that_matches_nothing_is_an_error_that_lists_the_paths():
    labels = mo.label_by_path({"kernel": "matrix", "kernle$": "typo"}, "rest")
    with pytest.raises(
        ValueError, match=r"\['kernle\$'\] match no parameter"
    ) as caught:
        labels(ones(TREE))
    for path in paths_of(ones(TREE)):
        assert path in str(caught.value)


def test_a_rule_that_always_comes_second_is_not_an_error():
    labels = mo.label_by_path({"kernel": "matrix", r"embed/kernel": "never"}, "rest")
    assert labels(ones(TREE))["embed"]["kernel"] == "matrix"


def test_without_a_default_every_path_needs_a_rule():
    labels = mo.label_by_path({"kernel$": "matrix"})
    message = r"No rule labels the parameter 'layers/0/bias'; .*\['kernel\$'\]"
    with pytest.raises(ValueError, match=message):
        labels(ones(TREE))


def test_a_function_labels_what_no_rule_does():
    tree = ones(
        {
            "heads": {"kernel": (4, 2, 3)},
            "dense": {"kernel": (4, 6), "bias": (6,)},
            "experts": {"kernel": (8, 4, 6)},
        }
    )
    rules = {"^heads": "heads", "^experts": "experts"}
    assert mo.label_by_path(rules, mo.label_matrices)(tree) == {
        "heads": {"kernel": "heads"},
        "dense": {"kernel": "matrix", "bias": "other"},
        "experts": {"kernel": "experts"},
    }


def test_the_function_is_strict_about_the_rest():
    tree = ones({"heads": {"kernel": (4, 2, 3)}, "conv": {"kernel": (3, 3, 2, 8)}})
    labels = mo.label_by_path({"^heads": "heads"}, mo.label_matrices)
    with pytest.raises(ValueError, match="what the parameter 'conv/kernel' of shape"):
        labels(tree)
    labels = mo.label_by_path({"kernle": "typo"}, mo.label_matrices)
    with pytest.raises(ValueError, match=r"\['kernle'\] match no parameter"):
        labels(ones({"w": (4, 4)}))


def test_a_function_that_leaves_one_out_is_an_error_that_names_it():
    nothing = mo.label_by_path({"^a": "matrix"}, lambda _: {"a": None, "b": None})
    with pytest.raises(ValueError, match="Neither a rule nor the default labels 'b'"):
        nothing(ones({"a": (4, 4), "b": (4,)}))


def test_rules_before_a_function_see_absent_leaves_and_boxes():
    labels = mo.label_by_path({"^a": "first"}, mo.label_matrices)
    tree = {"a": jnp.ones(2), "b": None, "c": optax.MaskedNode(), "w": jnp.ones((2, 3))}
    expected = {"a": "first", "b": None, "c": optax.MaskedNode(), "w": "matrix"}
    assert labels(tree) == expected
    assert labels({"b": None}) == {"b": None}
    state = nnx.state(Mlp(nnx.Rngs(0)), nnx.Param)
    found = mo.label_by_path({"layers/0/kernel": "first"}, mo.label_matrices)(state)
    by_path = dict(zip(paths_of(state), jax.tree.leaves(found), strict=True))
    assert by_path["layers/0/kernel"] == "first"
    assert by_path["layers/1/kernel"] == "matrix"
    assert by_path["embed/embedding"] == "other"


def test_absent_leaves_have_no_label_and_are_missed_by_no_rule():
    labels = mo.label_by_path({"^a": "matrix"})
    tree = {"a": jnp.ones((2, 2)), "b": None, "c": optax.MaskedNode()}
    found = labels(tree)
    assert found == {"a": "matrix", "b": None, "c": optax.MaskedNode()}
    assert labels({"b": None}) == {"b": None}


def test_a_rule_that_is_no_regular_expression_is_an_error_at_once():
    with pytest.raises(re.error):
        mo.label_by_path({"(": "matrix"})


def test_labels_of_nnx_are_the_same_at_init_and_at_update():
    model = Mlp(nnx.Rngs(0))
    labels = mo.label_by_path({r"layers/\d+/kernel$": "matrix"}, "rest")
    gradient = nnx.grad(lambda m: jnp.sum(m.layers[0](jnp.ones((1, 4)))))(model)
    at_init = labels(nnx.state(model, nnx.Param))
    assert jax.tree.leaves(at_init) == jax.tree.leaves(labels(gradient))
    assert jax.tree.leaves(at_init).count("matrix") == 2


def test_labels_do_not_depend_on_dtype_or_value():
    tree = ones(TREE)
    halves = jax.tree.map(lambda leaf: 0 * leaf.astype(jnp.bfloat16), tree)
    shapes = jax.eval_shape(lambda: tree)
    labels = mo.label_by_path({"kernel$": "matrix"}, "rest")
    for function in (labels, mo.label_matrices):
        assert function(halves) == function(shapes) == function(tree)


# --- label_matrices ------------------------------------------------------------------

GOLDEN = {
    # Hidden linear maps, as Flax, Haiku, Equinox and plain dictionaries name them.
    "Dense_0/kernel": ((4, 6), "matrix"),
    "layers/0/kernel": ((4, 6), "matrix"),
    "mlp/~/linear_0/w": ((4, 6), "matrix"),
    "layers/0/weight": ((6, 4), "matrix"),
    "weights": ((6, 4), "matrix"),
    "w1": ((4, 6), "matrix"),
    "w_gate": ((4, 6), "matrix"),
    "attention/wq": ((4, 6), "matrix"),
    "attention/wkv": ((4, 6), "matrix"),
    "attention/wo": ((4, 6), "matrix"),
    "attention/out_proj/kernel": ((4, 6), "matrix"),
    "multihead/kernel": ((4, 6), "matrix"),
    "header/kernel": ((4, 6), "matrix"),
    # Vectors and scalars, whatever their name.
    "kernel": ((4,), "other"),
    "temperature": ((), "other"),
    "anything": ((7,), "other"),
    # Vectors of stacked layers.
    "layers/bias": ((12, 4), "other"),
    "layers/norm/scale": ((12, 4), "other"),
    "layers/norm/offset": ((12, 4), "other"),
    "layers/norm/gamma": ((12, 4), "other"),
    "layers/b1": ((12, 4), "other"),
    "layers/stack/bias": ((2, 12, 4), "other"),
    # Embeddings and readouts, whatever their rank.
    "Embed_0/embedding": ((50, 4), "other"),
    "embed/embeddings": ((50, 4), "other"),
    "token_embedder/kernel": ((50, 4), "other"),
    "wte": ((50, 4), "other"),
    "wpe/weight": ((50, 4), "other"),
    "pos_embed": ((1, 50, 4), "other"),
    "patch_embed/kernel": ((4, 4, 3, 8), "other"),
    "lm_head/kernel": ((4, 50), "other"),
    "head/weight": ((50, 4), "other"),
    "logits_dense/kernel": ((4, 50), "other"),
    "unembed/w": ((4, 50), "other"),
    "LM_Head/kernel": ((4, 50), "other"),
    # Single rows and columns.
    "last/kernel": ((4, 1), "other"),
    "first/kernel": ((1, 4), "other"),
}


@pytest.mark.parametrize("path", GOLDEN)
def test_matrices_are_labelled_by_name_and_shape(path):
    shape, expected = GOLDEN[path]
    tree = jnp.ones(shape)
    for key in reversed(path.split("/")):
        tree = {key: tree}
    assert jax.tree.leaves(mo.label_matrices(tree)) == [expected]


@pytest.mark.parametrize("name", ["norm", "layer_norm", "ln_1", "RMSNorm_0"])
def test_stacked_norm_scales_named_weight_are_no_matrices(name):
    """PyTorch and Equinox name the scale of a norm `weight`."""
    tree = {"layers": {name: {"weight": jnp.ones((12, 4))}}}
    assert jax.tree.leaves(mo.label_matrices(tree)) == ["other"]


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("dictionary", (4, 6)),
        ("lora_a", (4, 6)),
        ("weight_ih", (4, 6)),
        ("conv/kernel", (3, 3, 2, 8)),
        ("experts/kernel", (8, 4, 6)),
        ("layers/w1", (12, 4, 6)),
    ],
)
def test_what_cannot_be_told_is_an_error_that_names_the_leaf(path, shape):
    tree = jnp.ones(shape)
    for key in reversed(path.split("/")):
        tree = {key: tree}
    message = f"what the parameter '{path}' of shape {re.escape(str(shape))} is"
    with pytest.raises(ValueError, match=message) as caught:
        mo.label_matrices({"fine": {"kernel": jnp.ones((4, 6))}} | tree)
    assert "label_by_path" in str(caught.value)


def test_the_labels_of_a_linen_model():
    tokens = jnp.zeros((1, 3), jnp.int32)
    shapes = jax.eval_shape(LinenMlp().init, jax.random.key(0), tokens)["params"]
    assert mo.label_matrices(shapes) == {
        "Dense_0": {"kernel": "matrix", "bias": "other"},
        "Embed_0": {"embedding": "other"},
        "LayerNorm_0": {"scale": "other", "bias": "other"},
        "lm_head": {"kernel": "other", "bias": "other"},
    }


def test_the_labels_of_an_nnx_model():
    state = nnx.state(Mlp(nnx.Rngs(0)), nnx.Param)
    labels = mo.label_matrices(state)
    found = dict(zip(paths_of(state), jax.tree.leaves(labels), strict=True))
    assert {path for path, label in found.items() if label == "matrix"} == {
        "layers/0/kernel",
        "layers/1/kernel",
    }


def test_label_matrices_passes_absent_leaves():
    tree = {"w": jnp.ones((2, 2)), "unknown": None, "masked": optax.MaskedNode()}
    expected = {"w": "matrix", "unknown": None, "masked": optax.MaskedNode()}
    assert mo.label_matrices(tree) == expected
