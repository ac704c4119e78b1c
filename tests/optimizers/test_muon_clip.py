"""MuonClip: the parts that it is, and what it refuses."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manifold_optax as mo

SPEC = {"attention": mo.Attention(4, 2, query="query/kernel", key="key/kernel")}
LARGEST = {"attention": jnp.array([40.0, 5.0, 10.0, 2.0])}
ROLES = mo.roles({r"attention/\w+/kernel": mo.HEADS})


@pytest.fixture
def params(rng: np.random.Generator) -> Any:
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    attention = {"query": draw(6, 4, 3), "key": draw(6, 2, 3), "value": draw(6, 2, 3)}
    return {
        "attention": {name: {"kernel": leaf} for name, leaf in attention.items()},
        "mlp": {"kernel": draw(6, 9), "bias": draw(9)},
        "embed": {"embedding": draw(11, 6)},
    }


def test_it_is_muon_with_adamw_beside_it_and_the_clip_at_the_end(params: Any) -> None:
    grads = jax.tree.map(jnp.cos, params)
    options: dict[str, Any] = {"momentum": 0.9, "weight_decay": 0.2}
    tx: Any = mo.muon_clip(
        0.01, SPEC, threshold=10.0, balance=0.3, roles=ROLES, **options
    )
    state = tx.init(params)
    assert list(state) == ["model", "qk_clip"]
    assert set(state["model"].inner_states) == {"matrix", "other"}
    links = state["model"].inner_states["matrix"].inner_state
    assert list(links) == [
        "momentum",
        "orthogonalize",
        "scale_by_shape",
        "weight_decay",
        "scale_by_learning_rate",
    ]

    model = optax.partition(
        {
            "matrix": mo.muon(0.01, nesterov=False, scale="rms", axes=ROLES, **options),
            "other": optax.adamw(0.01, b2=0.95, weight_decay=0.2),
        },
        {
            "attention": "matrix",
            "mlp": {"kernel": "matrix", "bias": "other"},
            "embed": "other",
        },
    )

    @jax.jit
    def both(params: Any) -> Any:
        ours, _ = tx.update(grads, state, params, max_logits=LARGEST)
        plain, _ = model.update(grads, model.init(params), params)
        stepped = optax.apply_updates(params, plain)
        wanted = mo.apply_qk_clip(stepped, LARGEST, SPEC, threshold=10.0, balance=0.3)
        return optax.apply_updates(params, ours), wanted, plain

    ours, wanted, plain = both(params)
    # Three roundings of numbers of order 1 in float32.
    chex.assert_trees_all_close(ours, wanted, atol=5e-7)
    # 0.2·√max of a matrix whose singular values are about 1, without the decay: the
    # root mean square of AdamW's steps (arXiv 2502.16982); 20 % for the polynomial.
    step = plain["mlp"]["kernel"] / 0.01 + 0.2 * params["mlp"]["kernel"]
    assert float(jnp.sqrt(jnp.mean(step**2))) == pytest.approx(0.2, rel=0.2)


@pytest.mark.slow
@pytest.mark.slow
def test_a_manifold_beside_clipped_heads_is_chained_by_hand(params: Any) -> None:
    stiefel = mo.Stiefel()
    known = mo.roles(
        {"attention": mo.HEADS, "mlp/kernel": mo.Role("mlp", mo.STACKED)},
    )
    params = mo.project(params, stiefel, axes=known.only("mlp"))
    model = mo.hybrid(
        {"matrix": mo.muon(0.1, axes=known), "mlp": mo.manifold_muon(0.1, axes=known)},
        labels=known,
    )
    tx: Any = optax.named_chain(("model", model), ("qk_clip", mo.qk_clip(SPEC)))
    updates, _ = jax.jit(tx.update)(
        jax.tree.map(jnp.cos, params), tx.init(params), params, max_logits=LARGEST
    )
    stepped: Any = optax.apply_updates(params, updates)
    assert stiefel.residual(stepped["mlp"]["kernel"]) < 1e-6
    assert not np.allclose(stepped["mlp"]["kernel"], params["mlp"]["kernel"])
    assert np.isfinite(stepped["attention"]["key"]["kernel"]).all()


def test_what_is_labelled_other_goes_to_adamw(params: Any) -> None:
    known = mo.roles({"attention": mo.HEADS, "mlp/kernel": "router"})
    state: Any = mo.muon_clip(0.1, SPEC, roles=known).init(params)
    inner = state["model"].inner_states
    moments = optax.tree.get(inner["other"].inner_state, "mu")
    assert moments["mlp"]["kernel"].shape == (6, 9)


def test_no_decay_and_schedules(params: Any) -> None:
    rate = optax.linear_schedule(0.1, 0.0, 10)
    tx: Any = mo.muon_clip(rate, SPEC, weight_decay=None, roles=ROLES)
    links = tx.init(params)["model"].inner_states["matrix"].inner_state
    assert "weight_decay" not in links


def test_roles_of_another_kind_are_an_error(unhooked: None) -> None:
    with pytest.raises(TypeError, match="roles of muon_clip must be a Roles"):
        mo.muon_clip(0.1, SPEC, roles={"a": "matrix"})  # pyright: ignore[reportArgumentType]


def test_leaves_that_nobody_can_tell_are_named(params: Any) -> None:
    with pytest.raises(ValueError, match="'attention/key/kernel'"):
        mo.muon_clip(0.1, SPEC).init(params)


@pytest.mark.slow
def test_without_the_largest_logits_the_message_says_where_they_come_from(
    params: Any,
) -> None:
    tx = mo.muon_clip(0.1, SPEC, roles=ROLES)
    with pytest.raises(TypeError, match="dot_product_attention returns it"):
        tx.update(params, tx.init(params), params)
