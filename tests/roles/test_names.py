"""The strict reading of names, and the message about what it cannot tell."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx

import manifold_optax as mo
from manifold_optax.roles import role_by_name

# Label and shape, and the paths whose names mean that label at that shape.
NAMES = {
    # Hidden linear maps, as Flax, Haiku, Equinox, PyTorch and dictionaries name them.
    ("matrix", (4, 6)): """
        Dense_0/kernel layers/0/kernel mlp/~/linear_0/w w w1 w_gate attention/wq
        attention/out_proj/kernel multihead/kernel multi_head/kernel per_head/kernel
        header/kernel router/kernel
    """,
    ("matrix", (6, 4)): """
        mlp/fc1/weight attention/q_proj/weight attention/query/weight
        h/0/attn/c_attn/weight weight
    """,
    # Vectors and scalars, whatever their name.
    ("vector", (4,)): "kernel",
    ("vector", ()): "temperature",
    ("vector", (7,)): "anything",
    # Vectors of stacked layers.
    ("vector", (12, 4)): """
        layers/bias layers/up_bias layers/norm/scale layers/norm/gamma layers/b1
        layers/attn_ln/weight layers/mlp_ln/kernel layers/pre_ln/w layers/rms/weight
        layers/bn1/weight layers/ls1/weight layers/RMSNorm_0/weight
    """,
    ("vector", (2, 12, 4)): "layers/stack/bias",
    # Embeddings and readouts, whatever their rank.
    ("embedding", (50, 4)): """
        Embed_0/embedding token_embedder/kernel wte wpe/weight shared/weight
        codebook/weight
    """,
    ("embedding", (1, 50, 4)): "pos_embed",
    ("embedding", (4, 4, 3, 8)): "patch_embed/kernel",
    ("embedding", (32, 4)): "position_bias/weight relative_attention_bias/weight",
    ("readout", (4, 50)): """
        lm_head/kernel mlm_head/kernel to_vocab/kernel vocab_proj/kernel
        logits_dense/kernel unembed/w LM_Head/kernel
    """,
    ("readout", (50, 4)): "vocab_head/weight head/weight",
    ("readout", (4, 5)): "action_head/kernel",
    ("readout", (5, 4)): "score/weight",
    # Single rows and columns.
    ("other", (4, 1)): "last/kernel",
    ("other", (1, 4)): "first/kernel",
}
KNOWN = {
    path: (shape, label)
    for (label, shape), paths in NAMES.items()
    for path in paths.split()
}

UNKNOWN = {
    "dictionary": (4, 6),
    "lora_a": (4, 6),
    "weight_ih": (4, 6),
    "layers/0/weight": (6, 4),
    "scaling/weight": (12, 4),
    "gate_scores/w": (12, 4),
    "conv/kernel": (3, 3, 2, 8),
    "depthwise/kernel": (3, 3, 1, 8),
    "experts/kernel": (8, 4, 6),
    "layers/w1": (12, 4, 6),
}


@pytest.mark.promise(
    "Faults",
    "Embeddings, readouts, norm scales of stacked layers and single rows "
    "are no matrices",
    on="roles by name",
)
@pytest.mark.parametrize("path", KNOWN)
def test_what_a_name_and_a_rank_tell(path):
    shape, label = KNOWN[path]
    role = role_by_name(path, shape)
    assert role is not None
    assert role.label == label
    # Fan-in and fan-out are swapped where PyTorch and Equinox name it.
    wanted = mo.OUT_IN if path.endswith("weight") else mo.STACKED
    assert role.axes == (wanted if label == "matrix" else None)


@pytest.mark.promise(
    "Faults",
    "What a name does not say, such as of a convolution, depthwise or not, "
    "of experts or of a stack, is no matrix in silence",
    on="roles by name",
)
@pytest.mark.parametrize("path", UNKNOWN)
def test_what_they_do_not_tell(path):
    assert role_by_name(path, UNKNOWN[path]) is None


def nested(shapes):
    tree = {}
    for path, shape in shapes.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = jnp.ones(shape)
    return tree


@pytest.mark.promise(
    "Faults",
    "All leaves whose names do not say what they are stand in one error, as "
    "rules to paste",
    on="roles by name",
)
def test_one_error_lists_all_that_is_unknown_as_rules_to_paste():
    tree = nested({**UNKNOWN, "fine/kernel": (4, 6)})
    with pytest.raises(ValueError, match="of 10 parameters do not tell") as caught:
        mo.roles()(tree)
    message = str(caught.value)
    pasted = eval(message[message.index("mo.roles(") :], {"mo": mo})
    assert len(pasted.rules) == len(UNKNOWN)
    # As they stand, the rules make no matrix of anything.
    labels = dict.fromkeys(UNKNOWN, "other") | {"fine/kernel": "matrix"}
    assert jax.tree.leaves(pasted(tree)) == [
        labels[path] for path in sorted(labels, key=lambda path: path.split("/"))
    ]


def test_the_axes_that_fit_each_rank_are_named():
    tree = nested({"conv/kernel": (3, 3, 16, 32), "q": (8, 2, 4), "table": (7, 3)})
    with pytest.raises(ValueError, match="3 parameters") as caught:
        mo.roles()(tree)
    conv, heads, table = str(caught.value).splitlines()[2:5]
    assert "mo.CONV [height, width, in, out]" in conv
    # Nine matrices of 32 x 16 are not what a convolution is.
    assert "STACKED" not in conv
    assert "mo.HEADS [in, heads, head_dim]" in heads
    assert "mo.HEADS_OUT [heads, head_dim, out]" in heads
    assert "mo.STACKED [in, out], mo.OUT_IN [out, in]" in table


def test_numbered_layers_share_a_rule():
    tree = nested({f"blocks/{k}/table": (4, 3) for k in range(12)})
    with pytest.raises(ValueError, match="12 parameters") as caught:
        mo.roles()(tree)
    assert str(caught.value).count("'other',") == 1
    assert r"r'^blocks/\d+/table$'" in str(caught.value)


def test_the_labels_of_a_linen_model():
    class Mlp(linen.Module):
        @linen.compact
        def __call__(self, tokens):
            x = linen.LayerNorm()(linen.Embed(5, 4)(tokens))
            return linen.Dense(7, name="lm_head")(linen.Dense(6)(x))

    tokens = jnp.zeros((1, 3), jnp.int32)
    shapes = jax.eval_shape(Mlp().init, jax.random.key(0), tokens)["params"]
    assert mo.roles()(shapes) == {
        "Dense_0": {"kernel": "matrix", "bias": "vector"},
        "Embed_0": {"embedding": "embedding"},
        "LayerNorm_0": {"scale": "vector", "bias": "vector"},
        "lm_head": {"kernel": "readout", "bias": "vector"},
    }


def test_the_labels_of_an_nnx_model():
    model = nnx.Sequential(
        nnx.Linear(4, 4, rngs=nnx.Rngs(0)), nnx.LayerNorm(4, rngs=nnx.Rngs(0))
    )
    labels = mo.roles()(nnx.state(model, nnx.Param))
    assert sorted(jax.tree.leaves(labels)) == ["matrix", "vector", "vector", "vector"]
