"""What `mo.roles` says of each parameter, as labels and as axes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import manifold_optax as mo
from manifold_optax.integrations.flax import module_list

Axes = optax.contrib.MuonDimensionNumbers
SPLIT = mo.Split((4, 2, 2))


def ones(tree):
    """A tree of arrays, from one of shapes."""
    return jax.tree.map(jnp.ones, tree, is_leaf=lambda node: isinstance(node, tuple))


TREE = {
    "embed": {"kernel": (5, 4)},
    "layers": [{"kernel": (4, 4), "bias": (4,)}, {"kernel": (4, 4), "bias": (4,)}],
}


def test_the_first_rule_that_matches_wins():
    rules = {"^embed": "table", "kernel": "matrix", "layers/1": "second"}
    assert mo.roles(rules, default="rest")(ones(TREE)) == {
        "embed": {"kernel": "table"},
        "layers": [
            {"kernel": "matrix", "bias": "rest"},
            {"kernel": "matrix", "bias": "second"},
        ],
    }


def test_values_are_axes_labels_or_roles():
    known = mo.roles(
        {
            "heads": mo.HEADS,
            "qkv": SPLIT,
            "position": "embedding",
            "experts": mo.Role("expert", mo.STACKED),
            "lists": Axes([0, 1], [2]),
        },
        default=mo.Role("rest", mo.OUT_IN),
    )
    shapes = {
        "heads": (8, 2, 4),
        "qkv": (8, 8),
        "position": (5, 8),
        "experts": (3, 8, 8),
        "lists": (2, 4, 8),
        "more": (8, 4),
    }
    assert known(ones(shapes)) == {
        "heads": "matrix",
        "qkv": "matrix",
        "position": "embedding",
        "experts": "expert",
        "lists": "matrix",
        "more": "rest",
    }
    found = {name: known.axes_of(name, shape) for name, shape in shapes.items()}
    assert found == {
        "heads": mo.HEADS,
        "qkv": SPLIT,
        "position": None,
        "experts": mo.STACKED,
        "lists": Axes((0, 1), (2,)),
        "more": mo.OUT_IN,
    }
    assert {known: 1}[known] == 1


def test_a_label_of_ones_own_without_axes_has_those_of_a_matrix():
    known = mo.roles({"value": "value"})
    assert known.axes_of("value/kernel", (4, 8)) == mo.STACKED
    assert known.axes_of("linear/weight", (4, 8)) == mo.OUT_IN
    with pytest.raises(ValueError, match=r"'value/kernel' of shape .* mo.Role"):
        known.axes_of("value/kernel", (2, 4, 8))


def test_only_some_labels_are_matrices():
    known = mo.roles({"value": mo.Role("value", mo.STACKED)})
    only = known.only("value")
    assert only.axes_of("value/kernel", (4, 8)) == mo.STACKED
    assert only.axes_of("up/kernel", (4, 8)) is None
    assert known.axes_of("up/kernel", (4, 8)) == mo.STACKED


def test_other_roles_are_asked_for_what_no_rule_matches():
    first = mo.roles({"heads": mo.HEADS})
    second = mo.roles({"conv": mo.CONV}, default=first)
    assert second.axes_of("conv", (3, 3, 4, 8)) == mo.CONV
    assert second.axes_of("heads", (4, 2, 8)) == mo.HEADS
    assert second.axes_of("up/kernel", (4, 8)) == mo.STACKED


@pytest.mark.promise(
    "What is applied",
    "A rule that matches nothing is an error that lists the paths",
    on="roles",
)
def test_a_rule_that_matches_nothing_is_an_error_that_lists_the_paths():
    known = mo.roles({"kernel": "matrix", "kernle$": "typo"}, default="rest")
    message = r"\['kernle\$'\] of mo.roles match no parameter"
    with pytest.raises(ValueError, match=message) as caught:
        known(ones(TREE))
    for path in ("embed/kernel", "layers/0/bias", "layers/1/kernel"):
        assert path in str(caught.value)


def test_a_rule_that_always_comes_second_is_not_an_error():
    known = mo.roles({"kernel": "matrix", "embed/kernel": "never"}, default="rest")
    assert known(ones(TREE))["embed"]["kernel"] == "matrix"


def test_absent_leaves_have_no_label_and_count_for_rules():
    known = mo.roles({"^a": "matrix", "b": "vector"})
    tree = {"a": jnp.ones((2, 2)), "b": None, "c": optax.MaskedNode()}
    assert known(tree) == {"a": "matrix", "b": None, "c": optax.MaskedNode()}
    assert known({"b": None}) == {"b": None}


def test_labels_of_nnx_are_the_same_at_init_and_at_update():
    class Mlp(nnx.Module):
        def __init__(self, rngs):
            self.layers = module_list([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])
            self.embed = nnx.Embed(5, 4, rngs=rngs)

    model = Mlp(nnx.Rngs(0))
    known = mo.roles({r"layers/\d+/kernel": "hidden"})
    gradient = nnx.grad(lambda m: jnp.sum(m.layers[0](jnp.ones((1, 4)))))(model)
    at_init = known(nnx.state(model, nnx.Param))
    assert jax.tree.leaves(at_init) == jax.tree.leaves(known(gradient))
    assert jax.tree.leaves(at_init).count("hidden") == 2


def test_labels_do_not_depend_on_dtype_or_value():
    tree = ones(TREE)
    halves = jax.tree.map(lambda leaf: 0 * leaf.astype(jnp.bfloat16), tree)
    shapes = jax.eval_shape(lambda: tree)
    for known in (mo.roles({"kernel": "matrix"}, default="rest"), mo.roles()):
        assert known(halves) == known(shapes) == known(tree)


@pytest.mark.parametrize(
    ("rules", "error", "message"),
    [
        ({"(": "matrix"}, ValueError, "rule of mo.roles is invalid"),
        ({3: "matrix"}, TypeError, "must be a string, got 3"),
        ({"a": 3}, TypeError, "the rule 'a' must be axes, a label"),
        ({"a": mo.Split}, TypeError, "the rule 'a' must be axes, a label"),
        ({"a": mo.Role("b", 3)}, TypeError, "the rule 'a' must be axes"),  # pyright: ignore[reportArgumentType]
        ({"a": mo.Role(3)}, TypeError, "label of the rule 'a' must be a string"),  # pyright: ignore[reportArgumentType]
        ("matrix", TypeError, "rules must be a dict"),
    ],
)
def test_rules_of_another_kind(unhooked, rules, error, message):
    with pytest.raises(error, match=message):
        mo.roles(rules)


@pytest.mark.slow
def test_an_initializer_knows_its_parameter_by_its_path():
    known = mo.roles({"query": mo.HEADS, "position": "embedding"})
    make = functools.partial(mo.initializers.on_manifold, mo.Stiefel(), axes=known)
    query = make(path="attention/query/kernel")(jax.random.key(0), (12, 2, 3))
    matrix = query.reshape(12, 6)
    # Rounding of a polar factor in float32.
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(6), atol=1e-6)
    with pytest.raises(ValueError, match="By its role the leaf 'position' of shape"):
        make(path="position")(jax.random.key(0), (12, 6))
