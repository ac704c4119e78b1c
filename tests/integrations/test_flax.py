"""Attention of Flax nnx whose layers tell their largest logits."""

import inspect
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

import manifold_optax as mo
from manifold_optax.integrations.flax import attention_fn, gather, module_list
from manifold_optax.trees import leaf_path

captures = pytest.mark.skipif(
    not hasattr(nnx, "capture"), reason="this Flax has no nnx.capture"
)
grouped = pytest.mark.skipif(
    "num_kv_heads" not in inspect.signature(nnx.MultiHeadAttention.__init__).parameters,
    reason="this Flax has no grouped-query attention",
)

# Float32 in another order, twice; observed 1e-6.
CLOSE = 1e-5

# A logit of float32 projections, whose terms cancel in part, against float64.
LOGIT = 1e-4

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 4)), jnp.float32)


def layer(**options: Any) -> nnx.MultiHeadAttention:
    return nnx.MultiHeadAttention(4, 4, 8, decode=False, rngs=nnx.Rngs(0), **options)


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.attention = nnx.MultiHeadAttention(
            2, 4, decode=False, attention_fn=attention_fn(chunk=3), rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.attention(x, sow_weights=True)


class Listed(nnx.Module):
    """Two blocks in a list."""

    def __init__(self, remat: bool = False) -> None:
        rngs = nnx.Rngs(0)
        self.blocks = module_list([Block(rngs), Block(rngs)])
        self.call = nnx.remat(Block.__call__) if remat else Block.__call__

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = self.call(block, x)
        return x


class Scanned(nnx.Module):
    """Three blocks, their parameters stacked."""

    def __init__(self) -> None:
        make = nnx.vmap(Block)
        self.blocks = nnx.split_rngs(splits=3)(make)(nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        over = nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        return over(lambda block, x: block(x))(self.blocks, x)


def logits_of(attention: Any, x: jax.Array) -> np.ndarray:
    """Largest logits of one unstacked layer in float64."""

    def project(linear: Any) -> np.ndarray:
        kernel, bias = (np.asarray(p[...], float) for p in (linear.kernel, linear.bias))
        return np.einsum("bte,ehd->bthd", np.asarray(x, float), kernel) + bias

    query, key = project(attention.query), project(attention.key)
    logits = np.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
    return logits.max((0, 2, 3))


def loss(model: Any, x: jax.Array) -> jax.Array:
    return jnp.sum(model(x) ** 2)


def statistics(model: Any, x: jax.Array) -> dict[str, jax.Array]:
    """Of one training step, as both old and new Flax can do it."""
    if hasattr(nnx, "capture"):

        @nnx.jit
        def step(model: Any, x: jax.Array) -> Any:
            captured = nnx.capture(loss, nnx.Intermediate)
            (_, sown), _ = nnx.value_and_grad(captured, has_aux=True)(model, x)
            return gather(sown)
    else:

        @nnx.jit
        def step(model: Any, x: jax.Array) -> Any:
            nnx.value_and_grad(loss)(model, x)
            return gather(model)

    return step(model, x)


def test_the_signature_is_that_of_flax() -> None:
    ours = inspect.signature(attention_fn()).parameters
    flax = inspect.signature(nnx.dot_product_attention).parameters
    # The oldest Flax has no is_causal.
    assert list(ours)[: len(flax)] == list(flax)
    for name, parameter in flax.items():
        assert ours[name].default == parameter.default
        assert ours[name].kind == parameter.kind


@pytest.mark.promise(
    "Wrappers and frameworks",
    "`attention_fn` gives what Flax's own attention gives",
    on="`nnx.MultiHeadAttention`; float32, bfloat16",
)
@pytest.mark.parametrize(
    "kind",
    ["mask", *(pytest.param(k, marks=pytest.mark.slow) for k in ("plain", "bfloat16"))],
)
@pytest.mark.slow
def test_a_layer_gives_what_it_gives_with_flax(kind: str) -> None:
    options = {"dtype": jnp.bfloat16} if kind == "bfloat16" else {}
    # Flax makes masks of floating numbers.
    mask = nnx.make_causal_mask(X[..., 0]) if kind == "mask" else None
    outputs = [
        layer(attention_fn=function, **options)(X, mask=mask)
        for function in (attention_fn(chunk=3), nnx.dot_product_attention)
    ]
    assert outputs[0].dtype == outputs[1].dtype
    # Outputs near 1 of 8 bits, and of 24.
    tolerance = 2**-6 if kind == "bfloat16" else CLOSE
    ours, theirs = (np.asarray(x, float) for x in outputs)
    np.testing.assert_allclose(ours, theirs, atol=tolerance)


@grouped
@pytest.mark.slow
def test_grouped_queries_and_causality() -> None:
    outputs = [
        layer(attention_fn=function, num_kv_heads=2)(X, is_causal=True)
        for function in (attention_fn(chunk=3), nnx.dot_product_attention)
    ]
    np.testing.assert_allclose(outputs[0], outputs[1], atol=CLOSE)


@pytest.mark.slow
def test_dropout_is_on_only_in_training() -> None:
    module = layer(attention_fn=attention_fn(), dropout_rate=0.5)
    still = [module(X, deterministic=True) for _ in range(2)]
    np.testing.assert_array_equal(still[0], still[1])
    moving = [module(X, deterministic=False, rngs=nnx.Rngs(i)) for i in range(2)]
    assert jnp.any(moving[0] != moving[1])
    with pytest.raises(ValueError, match="needs dropout_rng"):
        attention_fn()(
            X[..., None, :], X[..., None, :], X[..., None, :], dropout_rate=0.5
        )


@pytest.mark.parametrize("remat", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.slow
def test_a_step_tells_each_head_of_each_block(remat: bool) -> None:
    model = Listed(remat)
    found = statistics(model, X)
    assert list(found) == ["blocks/0/attention", "blocks/1/attention"]
    first, second = model.blocks
    inside = X + nnx.clone(first.attention)(X)
    for path, block, x in zip(found, (first, second), (X, inside), strict=True):
        np.testing.assert_allclose(
            found[path], logits_of(block.attention, x), rtol=LOGIT
        )
    paths = [leaf_path(p) for p, _ in nnx_leaves(nnx.state(model, nnx.Param))]
    assert {p.rsplit("/", 2)[0] for p in paths} == set(found)
    # The model is as it was: nothing lingers.
    assert not jax.tree.leaves(nnx.state(model, nnx.Intermediate))


def nnx_leaves(state: Any) -> list[Any]:
    return jax.tree_util.tree_leaves_with_path(state)


def test_scanned_layers_have_one_row_each() -> None:
    model = Scanned()
    found = statistics(model, X)
    assert list(found) == ["blocks/attention"]
    assert found["blocks/attention"].shape == (3, 2)
    first = jax.tree.map(lambda x: x[0], nnx.state(model.blocks, nnx.Param))
    block = Block(nnx.Rngs(0))
    nnx.update(block, first)
    np.testing.assert_allclose(
        found["blocks/attention"][0], logits_of(block.attention, X), rtol=LOGIT
    )


@captures
@pytest.mark.slow
def test_pure_functions_micro_batches_and_repeated_calls() -> None:
    graph, params = nnx.split(Listed())
    batches = jnp.stack([X, 2 * X, X / 2])

    def one(params: Any, x: jax.Array) -> Any:
        def pure(params: Any) -> Any:
            return nnx.capture(loss, nnx.Intermediate)(nnx.merge(graph, params), x)

        (_, sown), gradient = jax.value_and_grad(pure, has_aux=True)(params)
        return gradient, gather(sown)

    @jax.jit
    def accumulated(params: Any) -> Any:
        def micro(largest: Any, x: jax.Array) -> Any:
            _, own = one(params, x)
            return jax.tree.map(jnp.maximum, largest, own), own

        empty = jax.eval_shape(lambda p: one(p, X)[1], params)
        start = jax.tree.map(lambda s: jnp.full(s.shape, -jnp.inf, s.dtype), empty)
        return jax.lax.scan(micro, start, batches)

    largest, each = accumulated(params)
    for path, numbers in each.items():
        np.testing.assert_array_equal(largest[path], numbers.max(0))

    def thrice(model: Any) -> None:
        for x in batches:
            model(x)

    _, sown = nnx.capture(thrice, nnx.Intermediate)(nnx.merge(graph, params))
    for path, numbers in gather(sown).items():
        np.testing.assert_allclose(numbers, largest[path], rtol=CLOSE)


def test_a_module_that_was_sown_into_is_emptied() -> None:
    model = Block(nnx.Rngs(0))
    with warnings.catch_warnings():
        # The newest Flax deprecates it.
        warnings.simplefilter("ignore", DeprecationWarning)
        model(2 * X)
        model(X)
    (found,) = gather(model).values()
    expected = np.maximum(*(logits_of(model.attention, x) for x in (X, 2 * X)))
    np.testing.assert_allclose(found, expected, rtol=LOGIT)
    with pytest.raises(ValueError, match="sow_weights=True"):
        gather(model)


def test_trees_tuples_and_other_names() -> None:
    two = (jnp.array([1.0, 4.0]), jnp.array([3.0, 2.0]))
    sown = nnx.State(
        {
            "blocks": {0: {"max_logits": nnx.Intermediate(two)}},
            "other": {"entropy": nnx.Intermediate(jnp.zeros(3))},
        }
    )
    assert {k: v.tolist() for k, v in gather(sown).items()} == {"blocks/0": [3, 4]}
    assert list(gather(sown, "entropy")) == ["other"]
    assert list(gather({"max_logits": two[0]})) == [""]
    summed = gather(sown, reduce="sum")
    assert {k: v.tolist() for k, v in summed.items()} == {"blocks/0": [4, 6]}
    with pytest.raises(ValueError, match="'top' was sown"):
        gather(sown, "top")


def test_one_message_for_all_layers() -> None:
    mesh = jax.make_mesh((1,), ("data",), (jax.sharding.AxisType.Auto,))
    sown = {
        "first": {"max_logits": jnp.array([[1.0, -jnp.inf]])},
        "second": {"max_logits": jnp.arange(6.0).reshape(1, 3, 2)},
    }

    def largest(sown: Any) -> Any:
        own = jax.tree.map(lambda x: x[0], sown)
        return gather(own, axis_name="data")

    mapped = jax.shard_map(largest, mesh=mesh, in_specs=P("data"), out_specs=P())
    found = mapped(sown)
    np.testing.assert_array_equal(found["first"], [1, -jnp.inf])
    np.testing.assert_array_equal(found["second"], np.arange(6).reshape(3, 2))
    assert str(jax.make_jaxpr(mapped)(sown)).count("pmax") == 1


@captures
def test_a_whole_step_with_qk_clip() -> None:
    model = Listed()
    threshold = 0.5
    spec = mo.Attention(
        2, query=("query/kernel", "query/bias"), key=("key/kernel", "key/bias")
    )
    clip = mo.qk_clip({r"blocks/\d+/attention": spec}, threshold=threshold)
    optimizer = nnx.Optimizer(model, clip, wrt=nnx.Param)
    before = statistics(model, X)
    zero = jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param))
    optimizer.update(model, zero, max_logits=before)
    # The first layer sees the same activations as before.
    path = "blocks/0/attention"
    np.testing.assert_allclose(
        logits_of(model.blocks[0].attention, X),
        np.minimum(before[path], threshold),
        rtol=CLOSE,
    )
    assert jnp.any(before[path] > threshold)
