"""The transformation: what it makes of updates, and where it can stand."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import manifold_optax as mo
from manifold_optax.integrations.flax import module_list

PATH = "blocks/0/attention"
SPEC = {
    r"blocks/\d+/attention": mo.Attention(
        4, 2, query=("query/kernel", "query/bias"), key=("key/kernel", "key/bias")
    )
}
LARGEST = {PATH: jnp.array([40.0, 5.0, 10.0, 2.0])}
SHAPES = {
    "blocks": [
        {
            "attention": {
                "query": {"kernel": (6, 4, 3), "bias": (4, 3)},
                "key": {"kernel": (6, 2, 3), "bias": (2, 3)},
                "value": {"kernel": (6, 2, 3), "bias": (2, 3)},
            }
        }
    ],
    "head": {"kernel": (6, 5)},
}


def draw(seed: int, dtype: Any = jnp.float32) -> Any:
    rng = np.random.default_rng(seed)
    is_shape = lambda node: isinstance(node, tuple)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape), dtype),
        SHAPES,
        is_leaf=is_shape,
    )


def attention_of(tree: Any) -> Any:
    return tree["blocks"][0]["attention"]


@pytest.fixture
def params() -> Any:
    return draw(0)


@pytest.fixture
def grads() -> Any:
    return draw(1)


def heads_label(tree: Any) -> Any:
    """Queries, keys and values to Muon, everything else to the rest."""
    rules = {r"attention/\w+/kernel$": "heads"}
    return mo.roles(rules, default="other")(tree)


def model_part() -> optax.GradientTransformation:
    per_head = optax.contrib.MuonDimensionNumbers(0, 2)
    heads = mo.muon(0.02, axes=per_head)
    return mo.hybrid({"heads": heads}, others=optax.adamw(1e-3), labels=heads_label)


def test_the_step_lands_on_the_clipped_weights(params: Any, grads: Any) -> None:
    """Around `partition`: the model's own step first, then the clip of its result."""
    model = model_part()
    tx = optax.chain(model, mo.qk_clip(SPEC, threshold=10.0))
    update = jax.jit(chex.assert_max_traces(tx.update, 1))
    state = tx.init(params)
    updates, _ = update(grads, state, params, max_logits=LARGEST)
    again, _ = update(grads, state, params, max_logits={PATH: LARGEST[PATH] + 1})
    assert jax.tree.structure(updates) == jax.tree.structure(again)
    plain, _ = jax.jit(model.update)(grads, model.init(params), params)
    stepped = optax.apply_updates(params, plain)
    wanted = mo.apply_qk_clip(stepped, LARGEST, SPEC, threshold=10.0)
    # (w + u) - p + p: three roundings of float32 numbers of order 1.
    chex.assert_trees_all_close(optax.apply_updates(params, updates), wanted, atol=5e-7)
    # Keys and queries of the second group, values, everything else: bit by bit.
    ours, theirs = attention_of(updates), attention_of(plain)
    np.testing.assert_array_equal(
        ours["query"]["kernel"][:, 2:], theirs["query"]["kernel"][:, 2:]
    )
    np.testing.assert_array_equal(ours["key"]["bias"][1], theirs["key"]["bias"][1])
    chex.assert_trees_all_equal(ours["value"], theirs["value"])
    chex.assert_trees_all_equal(updates["head"], plain["head"])
    assert not np.array_equal(ours["key"]["bias"][0], theirs["key"]["bias"][0])


def test_leaves_that_no_spec_names_are_the_same_objects(
    params: Any, grads: Any
) -> None:
    tx: Any = mo.qk_clip(SPEC)
    updates, _ = tx.update(grads, tx.init(params), params, max_logits=LARGEST)
    assert updates["head"]["kernel"] is grads["head"]["kernel"]


@pytest.mark.parametrize(
    ("of_param", "of_update", "of_result"),
    [
        (jnp.bfloat16, jnp.bfloat16, jnp.bfloat16),
        (jnp.bfloat16, jnp.float32, jnp.float32),
        (jnp.float32, jnp.bfloat16, jnp.float32),
    ],
)
def test_dtypes(of_param: Any, of_update: Any, of_result: Any) -> None:
    """Master weights and their 16-bit copies; half of the clip is in each side."""
    params, grads = draw(0, of_param), jax.tree.map(jnp.zeros_like, draw(1, of_update))
    tx = mo.qk_clip(SPEC, threshold=10.0)
    updates, _ = tx.update(grads, tx.init(params), params, max_logits=LARGEST)
    key = attention_of(params)["key"]["kernel"]
    update = attention_of(updates)["key"]["kernel"]
    assert update.dtype == of_result
    clipped = optax.apply_updates(params, updates)
    # 2^-8: two roundings to bfloat16 (2^-9 each).
    np.testing.assert_allclose(
        np.float32(attention_of(clipped)["key"]["kernel"][:, 0]),
        0.5 * np.float32(key[:, 0]),
        rtol=2**-8 if jnp.bfloat16 in (of_param, of_result) else 1e-6,
    )
    np.testing.assert_array_equal(
        attention_of(clipped)["key"]["kernel"][:, 1], key[:, 1]
    )


@pytest.mark.slow
def test_traced_numbers_and_vmap(params: Any, grads: Any) -> None:
    """Thresholds under `vmap`, balances by `inject_hyperparams`."""
    inject = optax.inject_hyperparams(mo.qk_clip, static_args=("attention",))
    tx = inject(SPEC, threshold=10.0, balance=1.0)
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params, max_logits=LARGEST)
    np.testing.assert_array_equal(
        attention_of(updates)["key"]["kernel"], attention_of(grads)["key"]["kernel"]
    )

    def clipped(threshold: jax.Array, largest: Any) -> Any:
        return mo.apply_qk_clip(params, largest, SPEC, threshold=threshold)

    thresholds = jnp.array([10.0, 20.0])
    many = {PATH: jnp.stack([LARGEST[PATH], 2 * LARGEST[PATH]])}
    batched = jax.vmap(clipped)(thresholds, many)
    for i in range(2):
        alone = clipped(thresholds[i], {PATH: many[PATH][i]})
        query, wanted = attention_of(batched)["query"], attention_of(alone)["query"]
        np.testing.assert_allclose(query["kernel"][i], wanted["kernel"], rtol=1e-6)


def test_multi_steps_with_the_accumulated_maximum(params: Any, grads: Any) -> None:
    """Only the last call's statistic counts, so the maximum is carried along."""
    chain = optax.chain(optax.sgd(0.1), mo.qk_clip(SPEC, threshold=10.0))
    tx = optax.MultiSteps(chain, every_k_schedule=2)
    small = {PATH: jnp.full(4, 1.0)}
    state, running = tx.init(params), {PATH: jnp.full(4, -jnp.inf)}
    update = jax.jit(tx.update)
    for statistic in (LARGEST, small):
        running = jax.tree.map(jnp.maximum, running, statistic)
        updates, state = update(grads, state, params, max_logits=running)
    assert tx.has_updated(state)
    wanted, _ = chain.update(grads, chain.init(params), params, max_logits=LARGEST)
    # The mean of two equal gradients may round.
    chex.assert_trees_all_close(updates, wanted, atol=1e-6)


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.attention = nnx.MultiHeadAttention(4, 12, decode=False, rngs=rngs)


class Model(nnx.Module):
    """Attention as Flax has it, for the paths of its parameters."""

    def __init__(self, rngs: nnx.Rngs):
        self.blocks = module_list([Block(rngs)])


FLAX = {
    r"blocks/\d+/attention": mo.Attention(
        4, query=("query/kernel", "query/bias"), key=("key/kernel", "key/bias")
    )
}


PASSES_STATISTICS = pytest.mark.promise(
    "Wrappers and frameworks",
    "`nnx.Optimizer` and `TrainState` pass the statistics of attention on",
    on="qk_clip",
)


@PASSES_STATISTICS
def test_nnx_optimizer() -> None:
    model = Model(nnx.Rngs(0))
    before: Any = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))
    tx = optax.chain(optax.sgd(0.0), mo.qk_clip(FLAX, threshold=10.0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    grads = jax.tree.map(jnp.zeros_like, before)
    nnx.jit(lambda m, o: o.update(m, grads, max_logits=LARGEST))(model, optimizer)
    after: Any = nnx.state(model)
    old, new = (tree["blocks"][0]["attention"] for tree in (before, after))
    scale = jnp.array([0.5, 1.0, 1.0, 1.0])[None, :, None]
    np.testing.assert_allclose(
        new["key"]["kernel"][...], scale * old["key"]["kernel"][...], rtol=1e-6
    )
    np.testing.assert_array_equal(
        new["value"]["kernel"][...], old["value"]["kernel"][...]
    )


@PASSES_STATISTICS
def test_train_state_by_four_lines(params: Any, grads: Any) -> None:
    """`apply_gradients` has no way for extra arguments; this is it by hand."""
    tx = optax.chain(optax.sgd(0.1), mo.qk_clip(SPEC, threshold=10.0))
    state = TrainState.create(apply_fn=None, params=params, tx=tx)

    @jax.jit
    def step(state: Any, grads: Any, max_logits: Any) -> TrainState:
        updates, opt_state = state.tx.update(
            grads, state.opt_state, state.params, max_logits=max_logits
        )
        new = optax.apply_updates(state.params, updates)
        return state.replace(step=state.step + 1, params=new, opt_state=opt_state)

    after = step(state, grads, LARGEST)
    stepped = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    wanted = mo.apply_qk_clip(stepped, LARGEST, SPEC, threshold=10.0)
    chex.assert_trees_all_close(after.params, wanted, atol=5e-7)
    assert int(after.step) == 1
