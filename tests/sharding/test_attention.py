"""What the statistic of attention sends when the batch is split over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from manifold_optax import attention
from manifold_optax.integrations.flax import gather
from manifold_optax.programs import collectives

devices = pytest.mark.devices


def data_mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))


@devices
def test_the_statistic_is_one_message_after_the_loop(rng: np.random.Generator) -> None:
    shards = NamedSharding(data_mesh(), P("data"))
    x = jnp.asarray(rng.normal(size=(8, 12, 2, 4)), jnp.float32)

    def attend(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return attention.dot_product_attention(x, x, x, is_causal=True, chunk=4)

    compiled = jax.jit(attend).lower(jax.device_put(x, shards)).compile()
    found = collectives(compiled)
    assert found.inside_loops == 0
    assert found.count() == found.count("all-reduce") == 1
    output, largest = compiled(jax.device_put(x, shards))
    wanted, alone = jax.jit(attend)(x)
    # The same products on another number of elements: a few eps of 4 terms.
    np.testing.assert_allclose(output, wanted, atol=1e-6)
    np.testing.assert_allclose(largest, alone, rtol=1e-6)
    broken = x.at[5, 3, 1].set(jnp.nan)
    _, largest = compiled(jax.device_put(broken, shards))
    assert jnp.isnan(largest).tolist() == [False, True]


@devices
def test_gather_sends_all_layers_at_once() -> None:
    first = jnp.zeros((8, 2)).at[5, 1].set(jnp.nan).at[2, 0].set(7.0)
    second = jnp.full((8, 3, 2), -jnp.inf).at[7, 2, 1].set(-1.0)
    sown = {"first": {"max_logits": first}, "second": {"max_logits": second}}

    def largest(sown: dict[str, dict[str, jax.Array]]) -> dict[str, jax.Array]:
        own = jax.tree.map(lambda x: x[0], sown)
        return gather(own, axis_name="data")

    mapped = jax.jit(
        jax.shard_map(largest, mesh=data_mesh(), in_specs=P("data"), out_specs=P())
    )
    found = collectives(mapped.lower(sown).compile())
    assert found.count() == found.count("all-reduce") == 1
    result = mapped(sown)
    # A NaN on one device is one on all.
    np.testing.assert_array_equal(result["first"], [7, jnp.nan])
    np.testing.assert_array_equal(result["second"], second.max(0))


@devices
def test_loads_of_experts_add_up_over_devices() -> None:
    load = jnp.arange(24.0).reshape(8, 3)

    def total(load: jax.Array) -> dict[str, jax.Array]:
        sown = {"moe": {"expert_load": load[0]}}
        return gather(sown, "expert_load", reduce="sum", axis_name="data")

    mapped = jax.shard_map(total, mesh=data_mesh(), in_specs=P("data"), out_specs=P())
    np.testing.assert_array_equal(jax.jit(mapped)(load)["moe"], load.sum(0))
