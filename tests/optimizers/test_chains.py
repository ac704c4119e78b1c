"""What the presets promise as chains: names, states, schedules, errors."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manifold_optax as mo
from manifold_optax.geometry import SpectralSphere

PRESETS = {
    "muon": mo.muon,
    "manifold_muon": mo.manifold_muon,
    "hyperspherical_descent": mo.hyperspherical_descent,
    "sign_descent": mo.sign_descent,
    "spel": mo.spel,
    # Its default radius depends on the shape; `point` has radius 1.
    "spectral_sphere": functools.partial(mo.spectral_sphere, manifold=SpectralSphere()),
    "hyperball": mo.hyperball,
    "scion": mo.scion,
    "normuon": mo.normuon,
}
# The published methods have none.
WITHOUT_MOMENTUM = ("manifold_muon", "hyperspherical_descent")
ON_MANIFOLDS = (*WITHOUT_MOMENTUM, "spel", "spectral_sphere", "hyperball")
WITH_MOMENTUM = tuple(name for name in PRESETS)
# Checkpoints are restored by these names: a change here breaks old ones.
GOLDEN = {
    "muon": [
        "orthogonalize",
        "scale_by_shape",
        "weight_decay",
        "scale_by_learning_rate",
    ],
    "manifold_muon": ["direction", "scale_by_learning_rate", "retraction"],
    "hyperspherical_descent": ["direction", "scale_by_learning_rate", "retraction"],
    "sign_descent": ["direction", "weight_decay", "scale_by_learning_rate"],
    "spectral_sphere": ["direction", "scale_by_learning_rate", "retraction"],
    "spel": ["tangent", "direction", "size", "scale_by_learning_rate", "retraction"],
    "hyperball": ["inner", "direction", "size", "scale_by_learning_rate", "retraction"],
    "scion": ["direction", "weight_decay", "scale_by_learning_rate"],
    "normuon": [
        "orthogonalize",
        "scale_by_row_rms",
        "scale_by_shape",
        "weight_decay",
        "scale_by_learning_rate",
    ],
}
GOLDEN_LEAVES = {
    "muon": [],
    "manifold_muon": ["['direction'].tangency['w']"],
    "hyperspherical_descent": [],
    "sign_descent": [],
    "spel": [],
    "spectral_sphere": [],
    "hyperball": [],
    "scion": [],
    "normuon": ["['scale_by_row_rms'].mean_square['w']"],
}
MOMENTUM_LEAVES = ["['momentum'].count", "['momentum'].average['w']"]

presets = pytest.mark.parametrize("name", PRESETS)
# All presets take their rate by one link, with and without a manifold.
FOR_ALL = ("muon", "hyperspherical_descent")


def point():
    # A unit column is on the Stiefel manifold and on the sphere.
    return {"w": jnp.eye(6, 1)}


def gradient():
    rng = np.random.default_rng(0)
    return {"w": jnp.asarray(rng.standard_normal((6, 1)), jnp.float32)}


def leaf_paths(state):
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return [jax.tree_util.keystr(path) for path, _ in leaves]


@pytest.mark.promise(
    "State and checkpoints",
    "Names of the links of a chain are pinned",
    on="every preset",
)
@presets
def test_golden_names(name):
    without = PRESETS[name](0.1, momentum=None).init(point())
    assert list(without) == GOLDEN[name]
    assert leaf_paths(without) == GOLDEN_LEAVES[name]
    with_momentum = PRESETS[name](0.1, momentum=0.9).init(point())
    assert list(with_momentum) == ["momentum", *GOLDEN[name]]
    assert sorted(leaf_paths(with_momentum)) == sorted(
        [*MOMENTUM_LEAVES, *GOLDEN_LEAVES[name]]
    )


@presets
def test_a_schedule_adds_only_its_count(name):
    state = PRESETS[name](optax.constant_schedule(0.1), momentum=None).init(point())
    assert list(state) == GOLDEN[name]
    assert leaf_paths(state) == [
        *GOLDEN_LEAVES[name],
        "['scale_by_learning_rate'].count",
    ]


@presets
def test_states_keep_structure_shape_and_dtype(name):
    tx = PRESETS[name](0.1, momentum=0.9)
    before = tx.init(point())
    _, after = jax.eval_shape(tx.update, gradient(), before, point())
    assert jax.tree.structure(after) == jax.tree.structure(before)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert (old.shape, old.dtype) == (new.shape, new.dtype)
        assert not new.weak_type


@presets
def test_defaults_of_momentum(name):
    has_momentum = "momentum" in PRESETS[name](0.1).init(point())
    assert has_momentum == (name not in WITHOUT_MOMENTUM)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in FOR_ALL else pytest.mark.slow)
        for name in PRESETS
    ],
)
def test_learning_rate_schedules(name):
    preset, params = PRESETS[name], point()
    tx = preset(optax.linear_schedule(0.2, 0.0, 4), momentum=None)
    state, update = tx.init(params), jax.jit(tx.update)

    @jax.jit
    def update_at(rate):
        fixed = preset(rate, momentum=None)
        return fixed.update(gradient(), fixed.init(params), params)[0]

    for step in range(5):
        found, state = update(gradient(), state, params)
        expected = update_at(0.2 - 0.05 * step)
        # The schedule computes the same number in float32: an eps of entries below 1
        # (seen: 3e-8).
        np.testing.assert_allclose(found["w"], expected["w"], rtol=0, atol=1e-6)
        # The first rate is felt, the last one is zero.
        assert (float(jnp.abs(found["w"]).max()) > 1e-2) == (step < 4)


def test_a_step_on_the_sphere_turns_by_the_angle():
    params = point()
    tx: Any = mo.hyperspherical_descent(optax.linear_schedule(0.4, 0.0, 4))
    state, update = tx.init(params), jax.jit(tx.update)
    for step in range(4):
        updates, state = update(gradient(), state, params)
        moved: Any = optax.apply_updates(params, updates)
        cosine = float(jnp.sum(moved["w"] * params["w"]))
        expected = np.arctan(0.4 - 0.1 * step)
        # arccos magnifies the rounding of the cosine by 1/sin(0.1) (seen: 4e-7).
        assert np.arccos(cosine) == pytest.approx(expected, abs=5e-6)
        params = moved


@pytest.mark.parametrize("name", ON_MANIFOLDS)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_weight_decay_on_a_manifold_says_why_not(unhooked, name, weight_decay):
    with pytest.raises(ValueError, match=f"{name}.*undone by the retraction"):
        PRESETS[name](0.1, weight_decay=weight_decay)


@presets
@pytest.mark.parametrize("momentum", [1.0, -0.1, float("nan")])
def test_momentum_must_be_a_decay(name, momentum):
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\)"):
        PRESETS[name](0.1, momentum=momentum)


@presets
@pytest.mark.parametrize("rate", [-0.1, float("nan")])
def test_learning_rate_must_not_be_negative(name, rate):
    with pytest.raises(ValueError, match="learning_rate"):
        PRESETS[name](rate)


@pytest.mark.parametrize("name", ["muon", "sign_descent", "scion", "normuon"])
@pytest.mark.parametrize("weight_decay", [-0.1, float("nan")])
def test_weight_decay_must_not_be_negative(name, weight_decay):
    with pytest.raises(ValueError, match="weight_decay"):
        PRESETS[name](0.1, weight_decay=weight_decay)


@pytest.mark.parametrize("name", WITH_MOMENTUM)
def test_a_transformation_may_take_the_place_of_the_momentum(unhooked, name):
    average = optax.trace(0.5)
    state = PRESETS[name](0.1, momentum=average).init(point())
    assert isinstance(state["momentum"], type(average.init(point())))


def test_unknown_scale_names_the_choices(unhooked):
    message = r"scale must be one of 'none', 'width', 'spectral', 'rms'; got 'muP'"
    with pytest.raises(ValueError, match=message):
        mo.muon(0.1, scale="muP")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("steps", "error"), [(-1, ValueError), (1.5, TypeError), (True, TypeError)]
)
def test_steps_are_a_static_count(unhooked, steps, error):
    with pytest.raises(error, match="steps must be"):
        mo.manifold_muon(0.1, steps=steps)


@presets
@pytest.mark.parametrize("momentum", [None, 0.9])
def test_a_vector_names_its_path_and_hybrid(name, momentum):
    params = {"dense": {"bias": jnp.ones(4)}}
    tx = PRESETS[name](0.1, momentum=momentum)
    with pytest.raises(ValueError, match=r"'dense/bias' of shape \(4,\).*mo\.hybrid"):
        tx.update(params, tx.init(params), params)


@presets
@pytest.mark.parametrize("momentum", [None, 0.9])
def test_an_integer_leaf_names_its_path(name, momentum):
    params = {"table": {"ids": jnp.ones((4, 2), jnp.int32)}}
    tx = PRESETS[name](0.1, momentum=momentum)
    with pytest.raises(TypeError, match="'table/ids' has dtype int32"):
        tx.update(params, tx.init(params), params)


@presets
def test_params_are_needed(name):
    tx = PRESETS[name](0.1)
    state = tx.init(point())
    with pytest.raises(ValueError, match=r"params"):
        jax.eval_shape(lambda: tx.update(gradient(), state))


@pytest.mark.parametrize("name", ON_MANIFOLDS)
def test_a_differing_shape_names_the_leaf(name):
    tx = PRESETS[name](0.1)
    with pytest.raises(ValueError, match="update and the parameter at 'w' differ"):
        tx.update({"w": jnp.ones((6, 5))}, tx.init(point()), point())
