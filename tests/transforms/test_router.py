"""Biases of routers move against the load of their experts, and nothing else does."""

from collections.abc import Hashable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import manifold_optax as mo

ROUTERS = {r"blocks/\d+/moe": "router_bias"}


def model(experts=4):
    """Two blocks with a mixture each; everything is 1 but the biases."""
    block = {
        "moe": {
            "router_bias": jnp.zeros(experts),
            "router": {"kernel": jnp.ones((3, experts))},
        },
        "dense": {"router_bias": jnp.ones(2)},
    }
    return {"blocks": [block, block]}


def loads(*values):
    return {f"blocks/{i}/moe": jnp.asarray(v) for i, v in enumerate(values)}


BALANCED = loads(*[np.ones(4, np.float32)] * 2)


def biases_of(updates):
    return [block["moe"]["router_bias"] for block in updates["blocks"]]


def oracle(load, rule):
    """Wang et al. 2024, Algorithm 1, and kexue.fm 10757, in float64."""
    load = np.asarray(load, np.float64)
    excess = load - load.mean(-1, keepdims=True)
    if rule == "sign":
        return -np.sign(excess)
    rms = np.sqrt(np.mean(excess**2, -1, keepdims=True))
    return -excess / np.where(rms == 0, 1, rms)


def alone(load, **options):
    """The update of the bias of a model that is one router."""
    tx: Any = mo.balance_router_bias({"": "bias"}, rate=1.0, **options)
    params = {"bias": jnp.zeros(np.shape(load))}
    update = tx.update(params, tx.init(params), params, expert_load={"": load})
    return np.asarray(update[0]["bias"])


@pytest.mark.parametrize("rule", ["sign", "rms"])
@pytest.mark.parametrize("shape", [(7,), (3, 8), (2, 3, 4)])
def test_the_update_is_that_of_the_papers(rule, shape, rng):
    load = rng.gamma(1.0, 100.0, shape).astype(np.float32)
    # A dozen roundings of float32 (6e-8) in numbers of order 1; signs are exact.
    atol = 0 if rule == "sign" else 2e-6
    np.testing.assert_allclose(
        alone(load, rule=rule), oracle(load, rule), rtol=0, atol=atol
    )


@pytest.mark.parametrize("rule", ["sign", "rms"])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_unit_of_the_load_does_not_matter(rule, scale):
    load = np.asarray([1.0, 5.0, 2.0, 8.0], np.float32)
    # The unit is rounded once; then as above.
    np.testing.assert_allclose(
        alone(np.float32(scale) * load, rule=rule), oracle(load, rule), atol=2e-6
    )


@pytest.mark.parametrize("rule", ["sign", "rms"])
@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 1e30])
def test_equal_loads_move_nothing(rule, value):
    """0.1 + 0.1 + 0.1 is not three times 0.1 in float32: the mean must not be used."""
    np.testing.assert_array_equal(alone(np.full(3, value, np.float32), rule=rule), 0)


def test_an_expert_with_the_mean_load_stays():
    np.testing.assert_array_equal(alone(np.asarray([3, 5, 7])), [1, 0, -1])


@pytest.mark.promise(
    "Faults",
    "A load of experts that is not finite leaves its own layer alone",
    on="router bias",
)
@pytest.mark.parametrize("rule", ["sign", "rms"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_load_that_is_not_finite_leaves_its_own_layer_alone(rule, bad):
    load = np.asarray([[1.0, bad, 3.0], [1.0, 2.0, 9.0]], np.float32)
    found = alone(load, rule=rule)
    np.testing.assert_array_equal(found[0], 0)
    # As in the test of the papers.
    np.testing.assert_allclose(found[1], oracle(load[1], rule), rtol=0, atol=2e-6)


def test_whatever_came_is_replaced_and_all_else_is_the_same_object():
    params = jax.tree.map(lambda leaf: leaf + 1.0, model())
    tx: Any = mo.balance_router_bias(ROUTERS, rate=0.5)
    load = loads([1, 2, 3, 6], [9, 1, 1, 1])
    updates, state = tx.update(params, tx.init(params), params, expert_load=load)
    first, second = biases_of(updates)
    np.testing.assert_array_equal(first, [0.5, 0.5, 0.0, -0.5])
    np.testing.assert_array_equal(second, [-0.5, 0.5, 0.5, 0.5])
    assert isinstance(state, optax.EmptyState)
    for before, after in zip(params["blocks"], updates["blocks"], strict=True):
        assert before["dense"]["router_bias"] is after["dense"]["router_bias"]
        assert before["moe"]["router"]["kernel"] is after["moe"]["router"]["kernel"]


def test_it_balances_a_skewed_router():
    """Scores that favour expert 0 for all tokens: its bias falls until it is even."""
    scores = np.random.default_rng(0).random((512, 4))
    scores[:, 0] += 0.5
    params = {"bias": jnp.zeros(4)}
    tx = mo.balance_router_bias({"": "bias"}, rate=0.01)

    @jax.jit
    def step(params):
        chosen = jnp.argmax(scores + params["bias"][None], axis=-1)
        load = jnp.bincount(chosen, length=4)
        updates, _ = tx.update(params, tx.init(params), params, expert_load={"": load})
        return optax.apply_updates(params, updates), load

    params, first = step(params)
    load = first
    for _ in range(60):
        params, load = step(params)
    assert int(first[0]) > 256
    # A quarter of the tokens each, within what steps of 0.01 in the scores move.
    np.testing.assert_allclose(load, 128, atol=16)


def test_the_last_link_after_hybrid_and_with_an_injected_rate():
    params = model()
    labels = mo.roles({r"router/kernel$": "matrix"}, default="other")

    whole = mo.hybrid(optax.sgd(1.0), others=optax.adamw(1.0), labels=labels)

    def chain(rate):
        return optax.named_chain(
            ("model", whole),
            ("router", mo.balance_router_bias(ROUTERS, rate=rate)),
        )

    tx = optax.inject_hyperparams(chain)(rate=0.25)
    state = tx.init(params)
    gradient = jax.tree.map(jnp.ones_like, params)
    load = loads([1, 2, 3, 6], [4, 4, 4, 4])
    updates, _ = jax.jit(tx.update)(gradient, state, params, expert_load=load)
    np.testing.assert_array_equal(biases_of(updates)[0], [0.25, 0.25, 0.0, -0.25])
    np.testing.assert_array_equal(biases_of(updates)[1], 0)
    kernel = updates["blocks"][0]["moe"]["router"]["kernel"]
    np.testing.assert_array_equal(kernel, -1)


def test_vmap_and_dtypes():
    params = {"bias": jnp.zeros((3,), jnp.bfloat16)}
    tx: Any = mo.balance_router_bias({"": "bias"}, rate=1.0)
    load = jnp.asarray([[1, 2, 6], [7, 7, 1]])

    def update(load, gradient):
        return tx.update(
            {"bias": gradient}, tx.init(params), params, expert_load={"": load}
        )[0]["bias"]

    for dtype in (jnp.bfloat16, jnp.float32):
        found = jax.vmap(lambda load, dtype=dtype: update(load, jnp.zeros(3, dtype)))
        assert found(load).dtype == dtype
        np.testing.assert_array_equal(found(load), [[1, 1, -1], [-1, -1, 1]])
    # Without params the update says what dtype it has.
    alone = tx.update(params, tx.init(params), expert_load={"": load[0]})
    assert alone[0]["bias"].dtype == jnp.bfloat16


def test_boxes_of_nnx_keep_working():
    class Router(nnx.Module):
        def __init__(self):
            self.bias = nnx.Param(jnp.zeros(3))
            self.kernel = nnx.Param(jnp.ones((2, 3)))

    class Model(nnx.Module):
        def __init__(self):
            self.moe = Router()

    model = Model()
    tx = optax.chain(optax.sgd(0.1), mo.balance_router_bias({"moe": "bias"}, rate=1.0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    gradient = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    optimizer.update(model, gradient, expert_load={"moe": jnp.asarray([9, 1, 2])})
    np.testing.assert_array_equal(model.moe.bias[...], [-1, 1, 1])
    # One product and one sum of float32.
    np.testing.assert_allclose(model.moe.kernel[...], 0.9, rtol=2e-7)


# --- errors --------------------------------------------------------------------------


def update_with(load, params=None, **options):
    params = model() if params is None else params
    tx = mo.balance_router_bias(ROUTERS, **options)
    return tx.update(params, tx.init(params), params, expert_load=load)


WRONG = {
    "missing": ({"blocks/0/moe": jnp.ones(4)}, ValueError, r"missing: \['blocks/1/moe"),
    "unknown": (BALANCED | {"moe": jnp.ones(4)}, ValueError, r"unknown: \['moe'\]"),
    "shape": (loads([1, 2], [1, 2, 3, 4]), ValueError, r"blocks/0/moe.*shape \(4,\)"),
    "array": (jnp.ones(4), TypeError, "expert_load must be a dict"),
    "list": ({k: [1, 2, 3, 4] for k in BALANCED}, TypeError, "must be an array"),
    "complex": (loads([1j] * 4, [1j] * 4), TypeError, "real and floating"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_load_is_an_error_that_names_the_router(name, unhooked):
    load, kind, message = WRONG[name]
    with pytest.raises(kind, match=message):
        update_with(load)


def test_a_missing_load_is_an_error():
    tx, params = mo.balance_router_bias(ROUTERS), model()
    with pytest.raises(TypeError, match="expert_load"):
        tx.update(params, tx.init(params), params)


def test_a_pattern_without_a_router_is_an_error_at_init():
    with pytest.raises(ValueError, match=r"'layers'.*matches nothing.*blocks/0/moe"):
        mo.balance_router_bias({"layers": "router_bias"}).init(model())


@pytest.mark.parametrize("absent", [None, optax.MaskedNode()])
def test_an_absent_bias_is_an_error_that_says_where_to_chain(absent):
    params = model()
    params["blocks"] = [params["blocks"][0], jax.tree.map(jnp.ones_like, model())]
    params["blocks"][1] = {"moe": {"router_bias": absent}}
    with pytest.raises(ValueError, match=r"blocks/1/moe/router_bias.*not inside"):
        update_with(BALANCED, params)


def test_inside_partition_it_says_that_it_belongs_after():
    labels = mo.roles({"kernel": "rest"}, default="router")
    swapped = mo.roles({"kernel": "router"}, default="rest")
    parts: dict[Hashable, optax.GradientTransformation] = {
        "router": mo.balance_router_bias(ROUTERS),
        "rest": optax.sgd(1.0),
    }
    with pytest.raises(ValueError, match=r"chain it after optax\.partition"):
        optax.partition(parts, swapped).init(model())
    # Where the group happens to hold the biases it works.
    optax.partition(parts, labels).init(model())


def test_wrong_arguments_are_errors_at_once(unhooked):
    with pytest.raises(ValueError, match="at least one router"):
        mo.balance_router_bias({})
    with pytest.raises(ValueError, match="rule must be one of 'sign', 'rms'"):
        mo.balance_router_bias(ROUTERS, rule="linear")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="rate must be in"):
        mo.balance_router_bias(ROUTERS, rate=-1.0)
    with pytest.raises(TypeError, match="inject_hyperparams"):
        mo.balance_router_bias(ROUTERS, rate=optax.constant_schedule(0.1))  # pyright: ignore[reportArgumentType]


def test_a_bias_of_integers_is_refused_by_name(unhooked):
    params = {"blocks": [{"moe": {"router_bias": jnp.zeros(4, jnp.int32)}}]}
    with pytest.raises(TypeError, match="'blocks/0/moe/router_bias' has dtype int32"):
        update_with({"blocks/0/moe": jnp.ones(4)}, params)


@pytest.mark.parametrize("rule", ["sign", "rms"])
def test_loads_near_the_largest_number(rule: Literal["sign", "rms"]) -> None:
    tx: Any = mo.balance_router_bias({"": "bias"}, rate=1.0, rule=rule)
    params = {"bias": jnp.zeros(4)}
    load = {"": jnp.array([3e38, 0.0, 0.0, 0.0])}
    updates, _ = tx.update(params, tx.init(params), params, expert_load=load)
    assert jnp.sign(updates["bias"]).tolist() == [-1, 1, 1, 1]
    assert jnp.isfinite(updates["bias"]).all()


@pytest.mark.parametrize("routers", [["bias"], {"moe": 3}, {"moe": ("bias",)}])
def test_routers_that_are_no_mapping_of_names(unhooked: None, routers: Any) -> None:
    with pytest.raises(TypeError, match="routers must name"):
        mo.balance_router_bias(routers)
