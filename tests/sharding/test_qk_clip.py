"""QK-clip on eight devices: replicas stay equal, shards give the same numbers."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import manifold_optax as mo

pytestmark = pytest.mark.devices

SPEC = {
    "attention": mo.Attention(
        8, 4, query=("query/kernel", "query/bias"), key=("key/kernel", "key/bias")
    )
}
SHAPES = {
    "query": {"kernel": (8, 8, 4), "bias": (8, 4)},
    "key": {"kernel": (8, 4, 4), "bias": (4, 4)},
    "value": {"kernel": (8, 4, 4)},
}
SPECS = {
    "query": {"kernel": P("fsdp", "tensor", None), "bias": P("tensor", None)},
    "key": {"kernel": P("fsdp", "tensor", None), "bias": P("tensor", None)},
    "value": {"kernel": P("fsdp", "tensor", None)},
}
THRESHOLD = 1.0


def draw() -> tuple[Any, jax.Array]:
    rng = np.random.default_rng(0)
    attention = jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape), jnp.float32),
        SHAPES,
        is_leaf=lambda node: isinstance(node, tuple),
    )
    batch = jnp.asarray(rng.standard_normal((16, 5, 8)), jnp.float32)
    return {"attention": attention}, batch


def forward(params: Any, x: jax.Array) -> tuple[jax.Array, Any]:
    """A loss, and the largest logit of each head on this batch."""
    p = params["attention"]
    project = lambda side: jnp.einsum("bte,ehd->bthd", x, side["kernel"])
    query = project(p["query"]) + p["query"]["bias"][None, None]
    key = project(p["key"]) + p["key"]["bias"][None, None]
    out, largest = mo.attention.dot_product_attention(
        query, key, project(p["value"]), is_causal=True
    )
    return jnp.mean(out**2), {"attention": largest}


TX = optax.chain(optax.sgd(1.0), mo.qk_clip(SPEC, threshold=THRESHOLD))


@pytest.mark.promise("Attention", "Replicas stay equal to the bit", on="8 devices")
def test_replicas_stay_equal_bit_by_bit_and_one_trace_serves_all_steps() -> None:
    """Each replica sees other data; one all-reduce makes their statistics equal."""
    params, batch = draw()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def step(params: Any, state: Any, x: jax.Array) -> Any:
        own = jax.tree.map(lambda leaf: leaf[0], params)
        grads, largest = jax.grad(forward, has_aux=True)(own, x)
        grads = jax.lax.pmean(grads, "data")
        largest = jax.lax.pmax(largest, "data")
        updates, state = TX.update(grads, state, own, max_logits=largest)
        new = optax.apply_updates(own, updates)
        return jax.tree.map(lambda leaf: leaf[None], new), state, largest["attention"]

    chex.clear_trace_counter()
    one_trace = chex.assert_max_traces(step, 1)
    mapped = jax.jit(
        jax.shard_map(
            one_trace,
            mesh=mesh,
            in_specs=(P("data"), P(), P("data")),
            out_specs=(P("data"), P(), P()),
            check_vma=False,
        )
    )
    data = NamedSharding(mesh, P("data"))
    copies = jax.device_put(jax.tree.map(lambda x: jnp.stack([x] * 8), params), data)
    batch = jax.device_put(batch, data)
    state, seen = TX.init(params), []
    for _ in range(3):
        copies, state, largest = mapped(copies, state, batch)
        seen.append(largest)
    assert (np.max(seen) > THRESHOLD).all()
    for leaf in jax.tree.leaves(jax.device_get(copies)):
        for replica in leaf[1:]:
            np.testing.assert_array_equal(replica, leaf[0])


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_weights_give_the_numbers_of_one_device(kind: AxisType) -> None:
    """Embedding over one axis, heads (of weights and statistic) over another."""
    params, batch = draw()
    _, largest = jax.jit(forward)(params, batch)
    still = jax.tree.map(jnp.zeros_like, params)
    wanted, _ = jax.jit(TX.update)(still, TX.init(params), params, max_logits=largest)
    mesh = jax.make_mesh((2, 4), ("fsdp", "tensor"), axis_types=(kind,) * 2)

    def put(tree: Any) -> Any:
        layout = {"attention": SPECS}
        return jax.tree.map(
            lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec)),
            tree,
            layout,
        )

    with jax.set_mesh(mesh):
        sharded, statistic = put(params), NamedSharding(mesh, P("tensor"))
        largest = jax.tree.map(lambda s: jax.device_put(s, statistic), largest)
        update = jax.jit(TX.update)
        updates, _ = update(put(still), TX.init(sharded), sharded, max_logits=largest)
    for ours, theirs, old in zip(
        *map(jax.tree.leaves, (updates, wanted, sharded)), strict=True
    ):
        assert ours.sharding.is_equivalent_to(old.sharding, old.ndim)
        # The same program of elementwise operations: 2 units of float32.
        np.testing.assert_allclose(ours, theirs, atol=3e-7)
