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
HEADS = optax.contrib.MuonDimensionNumbers(0, (1, 2))
GROUPS = {"heads": mo.MatrixGroup(r"attention/\w+/kernel", axes=HEADS)}


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
    options = {"momentum": 0.9, "weight_decay": 0.2}
    tx = mo.muon_clip(0.01, SPEC, threshold=10.0, balance=0.3, groups=GROUPS, **options)
    state = tx.init(params)
    assert list(state) == ["model", "qk_clip"]
    assert set(state["model"].inner_states) == {"heads", "matrix", "other"}
    links = state["model"].inner_states["heads"].inner_state
    assert list(links) == [
        "momentum",
        "orthogonalize",
        "scale_by_shape",
        "weight_decay",
        "learning_rate",
    ]

    def muon(axes: Any) -> Any:
        return mo.muon(0.01, nesterov=False, scale="rms", axes=axes, **options)

    model = optax.partition(
        {
            "heads": muon(HEADS),
            "matrix": muon(mo.LAST_TWO),
            "other": optax.adamw(0.01, b2=0.95, weight_decay=0.2),
        },
        {
            "attention": "heads",
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
def test_weights_on_a_manifold_beside_clipped_ones(params: Any) -> None:
    stiefel = mo.Stiefel()
    groups = {
        "heads": mo.MatrixGroup(r"attention/", axes=HEADS),
        "mlp": mo.MatrixGroup(r"mlp/kernel", manifold=stiefel),
    }
    tx = mo.muon_clip(0.1, SPEC, threshold=10.0, groups=groups)
    params["mlp"]["kernel"] = mo.project(params["mlp"]["kernel"], stiefel)
    grads = jax.tree.map(jnp.cos, params)
    update = jax.jit(tx.update)
    state, start = tx.init(params), params["mlp"]["kernel"]
    for _ in range(2):
        updates, state = update(grads, state, params, max_logits=LARGEST)
        params = optax.apply_updates(params, updates)
    assert stiefel.residual(params["mlp"]["kernel"]) < 1e-6
    assert not np.allclose(params["mlp"]["kernel"], start)
    assert np.isfinite(params["attention"]["key"]["kernel"]).all()


@pytest.mark.parametrize("manifold", [mo.Stiefel(), mo.Sphere("kept")])
def test_a_clip_on_a_constrained_weight_is_refused(params: Any, manifold: Any) -> None:
    groups = {"heads": mo.MatrixGroup(r"attention/", HEADS, manifold)}
    tx = mo.muon_clip(0.1, SPEC, groups=groups)
    with pytest.raises(ValueError, match=r"rescales 'attention/query/kernel'.*'heads'"):
        tx.init(params)


def test_a_group_without_axes_goes_to_adamw(params: Any) -> None:
    groups = {**GROUPS, "router": mo.MatrixGroup(r"mlp/kernel", axes=None)}
    state = mo.muon_clip(0.1, SPEC, groups=groups).init(params)
    inner = state["model"].inner_states
    assert set(inner) == {"heads", "matrix", "other"}
    moments = optax.tree.get(inner["other"].inner_state, "mu")
    assert moments["mlp"]["kernel"].shape == (6, 9)


def test_no_decay_and_schedules(params: Any) -> None:
    rate = optax.linear_schedule(0.1, 0.0, 10)
    tx = mo.muon_clip(rate, SPEC, weight_decay=None, groups=GROUPS)
    links = tx.init(params)["model"].inner_states["matrix"].inner_state
    assert "weight_decay" not in links


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        ({"heads": HEADS}, TypeError, r"groups\['heads'\] must be a MatrixGroup"),
        (
            {"heads": mo.MatrixGroup("a", None, mo.Stiefel())},
            ValueError,
            "'heads' has no matrices",
        ),
        ({"matrix": mo.MatrixGroup("a")}, ValueError, "give yours another name"),
        ({"other": mo.MatrixGroup("a")}, ValueError, "'other'"),
        (
            {"one": mo.MatrixGroup("(")},
            ValueError,
            "group 'one', .*no regular expression",
        ),
        ([mo.MatrixGroup("a")], TypeError, "must be a dict"),
    ],
)
def test_groups_that_make_no_sense(
    unhooked: None, groups: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        mo.muon_clip(0.1, SPEC, groups=groups)


def test_leaves_that_nobody_can_tell_are_named(params: Any) -> None:
    with pytest.raises(ValueError, match="'attention/key/kernel'"):
        mo.muon_clip(0.1, SPEC).init(params)
    for idle in ("attenton", "attention/key"):
        groups = {**GROUPS, "idle": mo.MatrixGroup(idle)}
        with pytest.raises(ValueError, match=r"groups \['idle'\] match no parameter"):
            mo.muon_clip(0.1, SPEC, groups=groups).init(params)
