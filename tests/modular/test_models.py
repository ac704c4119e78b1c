"""The golden models run, and their golden answers are complete and fit."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manifold_optax as mo
from manifold_optax.matrices._view import View, views_of
from manifold_optax.roles._names import role_by_name
from manifold_optax.roles._role import NOT_MATRICES, READOUT
from manifold_optax.trees import is_absent, leaves_by_path
from modular.models import (
    drawn,
    each_model,
    gpt2,
    Model,
    MODELS,
    REFUSED,
    same_matrices,
    same_role,
)

# Whose names say something else than their use, and what: the reader must settle it.
NAMED_OTHERWISE = {
    # `kernel` is any linear layer; that it is the last one is seen by use alone.
    ("mlp", "layers/2/kernel"): "matrix",
    ("linen_dropout", "Dense_2/kernel"): "matrix",
    # The second of a low-rank pair has the name of biases.
    ("lora", "adapters/0/b"): "vector",
    ("lora", "adapters/1/b"): "vector",
    ("lora_merged", "adapters/0/b"): "vector",
    ("lora_merged", "adapters/1/b"): "vector",
    # `output_proj` is the readout of some libraries, and attention's own here.
    ("equinox_transformer", "attention/output_proj/weight"): "readout",
    # Positions that are added whole, as a bias is.
    ("vision_transformer", "pos_embed"): "embedding",
}


def leaves_of(model: Model) -> dict[str, Any]:
    """The leaves of the parameters by path, without the empty places of Equinox."""
    leaves = leaves_by_path(model.params)
    return {path: leaf for path, leaf in leaves.items() if not is_absent(leaf)}


def logits_of(model: Model, params: Any) -> np.ndarray:
    outputs = jax.jit(model.forward)(params, *model.inputs)
    logits = outputs[0] if isinstance(outputs, tuple) else outputs
    return np.asarray(logits)


@pytest.mark.slow
@each_model()
def test_a_model_runs(name: str) -> None:
    model = MODELS[name]()
    logits = logits_of(model, drawn(model))
    assert logits.shape[0] == model.inputs[0].shape[0]
    assert np.isfinite(logits).all()
    # It depends on its parameters and inputs: no two examples have the same logits.
    assert np.ptp(logits, axis=0).min() > 0


@each_model()
def test_every_leaf_has_a_golden_role(name: str) -> None:
    model = MODELS[name]()
    assert model.name == name
    leaves = leaves_of(model)
    assert set(leaves) == set(model.roles)
    assert set(model.uses) | set(model.alternatives) <= set(leaves)
    for path, leaf in leaves.items():
        role = model.roles[path]
        if role.label in NOT_MATRICES and role.label != READOUT:
            assert role.axes is None
        else:
            assert views_of(leaf, path, role.axes)


@each_model()
def test_some_parameter_gives_the_logits(name: str) -> None:
    model = MODELS[name]()
    readouts = [path for path, role in model.roles.items() if role.label == READOUT]
    tied = [path for path, use in model.uses.items() if use == "tied"]
    assert len(readouts) + len(tied) == 1


@each_model()
def test_names_and_uses_differ_where_it_is_known(name: str) -> None:
    model = MODELS[name]()
    differ = {}
    for path, leaf in leaves_of(model).items():
        named = role_by_name(path, leaf.shape)
        if named is not None and named.label != model.roles[path].label:
            differ[name, path] = named.label
    assert differ == {
        place: label for place, label in NAMED_OTHERWISE.items() if place[0] == name
    }


@each_model()
def test_a_refused_primitive_is_there(name: str) -> None:
    model = MODELS[name]()
    assert (model.refuses is not None) == (name in REFUSED)
    if model.refuses is None:
        return
    traced = jax.make_jaxpr(model.forward)(model.params, *model.inputs)
    assert f" {model.refuses}[" in str(traced)


# Their kernels meet more than three vectors of an example, or are normalised first.
MANY_USES = (
    "weight_normalised",
    "conv_net",
    "conv_line",
    "resnet_training",
    "resnet_inference",
    "patch_mixer",
    "denoiser",
    "vision_transformer",
)


@pytest.mark.slow
@each_model(lambda name: name not in MANY_USES)
def test_golden_inputs_are_those_of_the_products(name: str) -> None:
    """A product `x W` has a gradient `Σ xᵢ gᵢᵀ`, one term per vector that `W` meets.

    So the columns of the gradients of all losses together span the vectors `xᵢ` alone:
    at most three for an example of three tokens, if the golden inputs are right. Rows
    span more: different losses have different `gᵢ`.
    """
    model = MODELS[name]()
    for path, gradients in gradients_of_losses(model, count=6).items():
        role, ranks = model.roles[path], (0, 0)
        if role.label in NOT_MATRICES and role.label != READOUT:
            continue
        for view in views_of(gradients[0], path, role.axes):
            ranks = tuple(map(max, ranks, ranks_of(view, gradients)))
        assert ranks[0] <= 3
        # A readout has five outputs or more, and as many losses are independent.
        assert role.label != READOUT or ranks[1] >= 5


def gradients_of_losses(model: Model, count: int) -> dict[str, np.ndarray]:
    """`[count, …]` by path: gradients of linear losses, of one example of 3 tokens."""
    first, *others = model.inputs
    short = first[:1, :3] if first.ndim > 2 or first.dtype == np.int32 else first[:1]
    if model.name == "encoder_decoder":
        others = [others[0][:1, :3]]

    def logits(params: Any) -> jax.Array:
        outputs = model.forward(params, short, *others)
        return outputs[0] if isinstance(outputs, tuple) else outputs

    @jax.jit
    def gradients(params: Any, losses: jax.Array) -> Any:
        return jax.vmap(jax.vjp(logits, params)[1])(losses)[0]

    params = drawn(model)
    shape = (count, *jax.eval_shape(logits, params).shape)
    losses = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    leaves = leaves_by_path(gradients(params, losses))
    return {path: np.asarray(leaves[path]) for path in model.roles}


def ranks_of(view: View, gradients: np.ndarray) -> tuple[int, int]:
    """Largest ranks of `[in, losses · out]` and of `[losses · in, out]`."""
    order = (*view.batch_axes, *view.in_axes, *view.out_axes)
    blocks = [
        np.asarray(view.block(g)).transpose(order) for g in jnp.asarray(gradients)
    ]
    count = len(gradients)
    stacked = np.stack([b.reshape(-1, view.fan_in, view.fan_out) for b in blocks], 1)
    wide = stacked.swapaxes(1, 2).reshape(-1, view.fan_in, count * view.fan_out)
    tall = stacked.reshape(-1, count * view.fan_in, view.fan_out)
    # float32 gradients are exact to about 1e-6 of their largest singular value.
    rank = lambda matrices: int(np.linalg.matrix_rank(matrices, rtol=1e-5).max())
    return rank(wide), rank(tall)


@pytest.mark.parametrize(
    ("first", "second"),
    [("weighed_experts", "summed_experts"), ("lora", "lora_merged")],
)
def test_two_forms_of_one_function(first: str, second: str) -> None:
    one, other = MODELS[first](), MODELS[second]()
    params = drawn(one)
    expected = logits_of(one, params)
    # Sums of a few dozen float32 products of order 1 in another order (seen: 4e-7).
    np.testing.assert_allclose(logits_of(other, params), expected, atol=5e-6)


@pytest.mark.slow
def test_gpt2_unrolled_and_scanned_are_one_function() -> None:
    scanned = gpt2(2, heads=1, length=4, scanned=True)
    unrolled = gpt2(2, heads=1, length=4)
    tokens = np.asarray([[3, 1, 4, 1]], np.int32)
    params = drawn(scanned)
    layer = lambda k: jax.tree.map(lambda leaf: leaf[k], params["h"])
    layers = [layer(0), layer(1)]
    one = logits_of(scanned._replace(inputs=(tokens,)), params)
    other = logits_of(unrolled._replace(inputs=(tokens,)), {**params, "h": layers})
    # Two layers of sums of 256 products; rounding differs where XLA fuses otherwise.
    np.testing.assert_allclose(other, one, atol=1e-4 * np.abs(one).max())


@pytest.mark.parametrize("scanned", [False, True])
def test_gpt2_has_the_size_of_gpt2(scanned: bool) -> None:
    model = gpt2(scanned=scanned)
    leaves = leaves_of(model)
    assert set(leaves) == set(model.roles)
    # The count that its authors' checkpoint has (124M, embedding counted once).
    assert sum(leaf.size for leaf in leaves.values()) == 124_439_808
    logits = jax.eval_shape(model.forward, model.params, *model.inputs)
    assert logits.shape == (1, 1024, 50_257)


NAMED = optax.contrib.MuonDimensionNumbers


@pytest.mark.parametrize(
    ("first", "second", "shape"),
    [
        (None, mo.STACKED, (4, 6)),
        (mo.STACKED, NAMED(0, 1), (4, 6)),
        (mo.Split((6,)), mo.STACKED, (4, 6)),
        (mo.CONV, NAMED((2, 0, 1), 3), (3, 3, 2, 4)),
        # Depthwise: one matrix of nine taps and one output per channel.
        (mo.Split((1,) * 4, -1, mo.CONV), NAMED((0, 1), 2), (3, 3, 1, 4)),
        (NAMED(-3, -1), mo.Split((1, 1, 1), 1, mo.HEADS), (4, 3, 2)),
        (None, None, (4,)),
    ],
)
def test_two_spellings_of_the_same_matrices(
    first: Any, second: Any, shape: tuple[int, ...]
) -> None:
    assert same_matrices(first, second, shape)
    assert same_matrices(second, first, shape)


@pytest.mark.parametrize(
    ("first", "second", "shape"),
    [
        (mo.STACKED, mo.OUT_IN, (4, 4)),
        (mo.STACKED, mo.Split((2, 2)), (4, 4)),
        (mo.Split((1, 3)), mo.Split((3, 1)), (4, 4)),
        (mo.HEADS, NAMED(-3, -1), (4, 3, 2)),
        (mo.HEADS, mo.STACKED, (4, 3, 2)),
    ],
)
def test_other_matrices(first: Any, second: Any, shape: tuple[int, ...]) -> None:
    assert not same_matrices(first, second, shape)
    assert not same_matrices(second, first, shape)


def test_roles_are_equal_by_label_and_matrices() -> None:
    shape = (4, 6)
    matrix, spelled = mo.Role("matrix"), mo.Role("matrix", mo.STACKED)
    assert same_role(matrix, spelled, shape)
    assert not same_role(matrix, mo.Role("readout"), shape)
    assert not same_role(matrix, mo.Role("matrix", mo.OUT_IN), shape)
    # What is no linear map has no axes to compare.
    assert same_role(mo.Role("embedding"), mo.Role("embedding", mo.OUT_IN), shape)


def test_a_leaf_too_large_to_compare_is_refused() -> None:
    with pytest.raises(ValueError, match="too large"):
        same_matrices(None, None, (2**12, 2**12))
