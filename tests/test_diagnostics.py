"""What `diagnostics` finds in the states of real chains, and in parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manifold_optax as mo

SHAPES = {"gap": (8, 4), "deep": {"w": (3, 4, 8)}}


def tree(seed):
    rng = np.random.default_rng(seed)
    is_shape = lambda node: isinstance(node, tuple)
    draw = lambda shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    return jax.tree.map(draw, SHAPES, is_leaf=is_shape)


def solver(learning_rate=0.1):
    return optax.named_chain(
        ("direction", mo.dual_ascent_spectral(steps=0, certify=True, axes=mo.STACKED)),
        ("learning_rate", optax.scale_by_learning_rate(learning_rate)),
    )


@pytest.fixture(scope="module")
def params():
    project = lambda tree: mo.project(tree, mo.Stiefel(), axes=mo.STACKED)
    return jax.jit(project)(tree(0))


def after_one_step(tx, params):
    return jax.jit(tx.update)(tree(1), tx.init(params), params)[1]


@pytest.mark.slow
def test_numbers_come_by_parameter(params):
    found = mo.diagnostics.collect(after_one_step(solver(), params))
    assert set(found) == {"gap", "tangency"}
    # A parameter that is called like a field is a parameter.
    assert {k: v.shape for k, v in found["gap"].items()} == {"gap": (), "deep/w": (3,)}
    assert all((v >= 0).all() and (v < 0.5).all() for v in found["gap"].values())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.MultiSteps(tx, 1),
        lambda tx: optax.apply_if_finite(tx, 3),
        lambda tx: optax.chain(optax.clip(1.0), tx),
        lambda tx: optax.masked(tx, {"gap": True, "deep": False}),
    ],
    ids=["multi_steps", "apply_if_finite", "chain", "masked"],
)
def test_at_any_depth(params, wrap):
    found = mo.diagnostics.collect(wrap(solver()).init(params))
    assert "gap" in found["gap"]
    assert found["gap"]["gap"] == 1


def test_through_a_partition_and_injected_numbers(params):
    tx = optax.partition(
        {"a": optax.inject_hyperparams(solver)(0.1), "b": solver()},
        {"gap": "a", "deep": {"w": "b"}},
    )
    found = mo.diagnostics.collect(tx.init(params))
    assert set(found["gap"]) == set(found["tangency"]) == {"gap", "deep/w"}


def test_two_reports_on_one_parameter_stay_apart(params):
    tx = optax.chain(solver(), solver())
    found = mo.diagnostics.collect(tx.init(params))
    assert len(found["gap"]) == 4
    assert {"gap", "deep/w"} < set(found["gap"])


def test_a_state_without_numbers_gives_none(params):
    assert mo.diagnostics.collect(optax.adamw(1e-3).init(params)) == {}


def expected_residual(manifold, x):
    """Of matrices `[..., fan_in, fan_out]`, in float64."""
    x = np.asarray(x, np.float64)
    fan_in, fan_out = x.shape[-2:]
    size = (fan_out / fan_in) ** 0.5 if manifold.size == "rms" else manifold.size
    if isinstance(manifold, mo.Stiefel):
        values = np.linalg.svd(x / size, compute_uv=False)
        return np.abs(values**2 - 1).max(-1)
    return np.abs(np.linalg.norm(x / size, axis=(-2, -1)) - 1)


@pytest.mark.promise(
    "Manifolds",
    "`diagnostics.residual` is the distance of each matrix from its manifold",
    on="Stiefel, Sphere",
)
@pytest.mark.parametrize(
    "manifold", [mo.Stiefel(2.0), mo.Stiefel("rms"), mo.Sphere(3.0)], ids=str
)
def test_the_residual_is_that_of_every_matrix(manifold):
    found = mo.diagnostics.residual(tree(0), manifold, axes=mo.STACKED)
    assert jax.tree.map(jnp.shape, found) == {"gap": (), "deep": {"w": (3,)}}
    for residual, leaf in zip(
        jax.tree.leaves(found), jax.tree.leaves(tree(0)), strict=True
    ):
        # Squares of singular values below 30 in float32.
        expected = expected_residual(manifold, leaf)
        np.testing.assert_allclose(residual, expected, rtol=1e-5)


def test_the_residual_of_a_split_has_one_number_per_block():
    leaf = tree(0)["deep"]["w"]
    manifold, axes = mo.Stiefel("rms"), mo.Split((5, 3))
    found = mo.diagnostics.residual({"w": leaf}, manifold, axes=axes)["w"]
    blocks = np.split(np.asarray(leaf), [5], axis=-1)
    expected = np.stack([expected_residual(manifold, x) for x in blocks], axis=-1)
    assert found.shape == (3, 2)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_residual_of_heads_is_that_of_the_merged_matrix():
    leaf = tree(0)["deep"]["w"]
    found = mo.diagnostics.residual({"w": leaf}, mo.Sphere(2.0), axes=mo.HEADS)["w"]
    expected = expected_residual(mo.Sphere(2.0), np.reshape(leaf, (3, 32)))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_what_is_no_matrix_has_no_residual():
    params = {"up": {"kernel": jnp.eye(4), "bias": jnp.ones(4)}, "no": None}
    found = mo.diagnostics.residual(params, mo.Stiefel(), axes=mo.roles())
    assert found["up"]["bias"] is found["no"] is None
    assert float(found["up"]["kernel"]) < 1e-6
    with pytest.raises(ValueError, match=r"'up/bias' of shape \(4,\)"):
        mo.diagnostics.residual(params, mo.Stiefel())


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_angle_is_exact_where_its_cosine_is_not(scale):
    wanted = np.array([0.0, 0.001, 0.01, 1.0, 45.0, 90.0, 179.0, 179.999, 180.0])
    turned = np.deg2rad(wanted)
    y = np.stack([np.cos(turned), np.sin(turned)], axis=-1)[:, None]
    x = np.broadcast_to([scale, 0.0], y.shape)
    found = mo.diagnostics.angle(
        jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    )
    # Some rounding units of float32, in degrees: 6e-8 is 3e-6 of a degree.
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5)


def test_without_a_length_the_angle_is_a_right_one():
    zero, one = jnp.zeros((2, 2)), jnp.eye(2)
    for pair in ((zero, one), (one, zero), (zero, zero)):
        assert mo.diagnostics.angle(*pair) == pytest.approx(90, abs=1e-5)
