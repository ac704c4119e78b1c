import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manifold_optax as mo
import oracles
from manifold_optax.geometry import Ball, RmsToRms, RowRms
from transforms.draws import apply, blocks_of, draw, draw_pair

# Distance from the manifold of entries of order 1 after one float32 retraction, one
# subtraction and one sum, each rounded to 6e-8.
FLOOR = 1e-6

QKV = mo.Split((4, 2, 2))
FIRST_AND_LAST = optax.contrib.MuonDimensionNumbers(reduction_axis=0, output_axis=-1)


def retracted(manifold, point, update, **options):
    return apply(mo.retract, manifold, point=point, update=update, **options)


def singular_values(leaf):
    return np.linalg.svd(np.asarray(leaf, np.float64), compute_uv=False)


@pytest.mark.parametrize("shape", [(6, 3), (2, 3, 6)])
@pytest.mark.parametrize(
    "scale", [pytest.param(1.0, marks=pytest.mark.slow), 3.0, "rms"]
)
def test_the_update_is_the_polar_factor_minus_the_point(rng, shape, scale):
    point, update = draw(rng, *shape), draw(rng, *shape)
    found = retracted(mo.Stiefel(scale), point, update)
    size = np.sqrt(shape[-1] / shape[-2]) if scale == "rms" else scale
    landing = np.vectorize(oracles.polar, signature="(m,n)->(m,n)")(point + update)
    expected = size * landing - np.asarray(point, np.float64)
    # Float32 rounding, amplified by the condition of `point + update`, below 10.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * size)


@pytest.mark.parametrize("shape", [(6, 3), (2, 3, 6)])
@pytest.mark.parametrize(
    "radius", [pytest.param(1.0, marks=pytest.mark.slow), 3.0, "rms"]
)
def test_the_update_is_the_normalised_sum_minus_the_point(rng, shape, radius):
    point, update = draw(rng, *shape), draw(rng, *shape)
    found = retracted(mo.Sphere(radius), point, update)
    size = np.sqrt(shape[-1] / shape[-2]) if radius == "rms" else radius
    moved = np.asarray(point, np.float64) + np.asarray(update, np.float64)
    length = np.linalg.norm(moved, axis=(-2, -1), keepdims=True)
    expected = size * moved / length - np.asarray(point, np.float64)
    # A few roundings of entries below 4.
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("manifold", [mo.Stiefel(), mo.Stiefel(0.5), mo.Sphere(2.0)])
@pytest.mark.parametrize("shape", [(6, 3), (2, 3, 6)])
def test_a_zero_update_brings_a_point_back(rng, manifold, shape):
    point = draw(rng, *shape)
    assert np.max(manifold.residual(point)) > 0.1
    moved = point + retracted(manifold, point, jnp.zeros_like(point))
    assert np.max(manifold.residual(moved)) < FLOOR


def test_a_zero_update_does_nothing_where_the_norm_is_kept(rng):
    point = draw(rng, 2, 6, 3)
    found = retracted(mo.Sphere("kept"), point, jnp.zeros_like(point))
    # The norm is taken and multiplied back: a few roundings of entries below 4.
    np.testing.assert_allclose(found, 0, atol=2e-6)


@pytest.mark.parametrize("axes", [mo.STACKED, QKV], ids=["whole", "blocks"])
def test_kept_keeps_the_norm_of_each_matrix(rng, axes):
    point = draw(rng, 2, 6, 8) * jnp.asarray([1.0, 10.0]).reshape(2, 1, 1)
    update = 10 * draw(rng, 2, 6, 8)
    moved = point + retracted(mo.Sphere("kept"), point, update, axes=axes)
    leaves = [point, moved]
    parts = [blocks_of(x, axes) if axes is QKV else [x] for x in leaves]
    for before, after in zip(*parts, strict=True):
        norm = functools.partial(np.linalg.norm, axis=(-2, -1))
        # Cancellation in `p + (R − p)`, where the update is ten times the point.
        np.testing.assert_allclose(norm(after), norm(before), rtol=1e-5)


@pytest.mark.promise(
    "Faults",
    "A zero matrix stays zero where its own norm is kept",
    on='`Sphere("kept")`',
)
def test_kept_leaves_a_zero_matrix_at_zero(rng):
    point = jnp.zeros((4, 2))
    found = retracted(mo.Sphere("kept"), point, draw(rng, 4, 2))
    np.testing.assert_array_equal(found, 0)


@pytest.mark.parametrize("manifold", [mo.Stiefel("rms"), mo.Sphere("rms")])
def test_each_block_of_a_split_lands_on_a_manifold_of_its_own_size(rng, manifold):
    point, update = draw(rng, 2, 6, 8), draw(rng, 2, 6, 8)
    moved = point + retracted(manifold, point, update, axes=QKV)
    for block, size in zip(blocks_of(moved, QKV), QKV.sizes, strict=True):
        # The factor of the block, fan_out/fan_in; entries of order 1.
        unit = block / np.sqrt(size / 6)
        assert np.max(manifold.unit().residual(jnp.asarray(unit))) < 2 * FLOOR


def test_axes_say_which_part_is_a_matrix(rng):
    point, update = draw(rng, 6, 2, 3), draw(rng, 6, 2, 3)
    found = retracted(mo.Stiefel(), point, update, axes=FIRST_AND_LAST)
    moved = np.asarray(point + found)
    for head in range(2):
        np.testing.assert_allclose(singular_values(moved[:, head]), 1, atol=FLOOR)


@pytest.mark.parametrize("manifold", [mo.Stiefel(), mo.Sphere(2.0)])
def test_low_precision_gradients_do_not_cost_precision(rng, manifold):
    point, update = draw_pair(rng, manifold, (6, 3))
    found = retracted(manifold, point, update.astype(jnp.bfloat16))
    assert found.dtype == jnp.float32
    assert np.max(manifold.residual(point + found)) < FLOOR


def test_bfloat16_parameters_stay_as_near_as_bfloat16_allows(rng):
    point, update = draw_pair(rng, mo.Stiefel(), (6, 3))
    point, update = point.astype(jnp.bfloat16), (0.1 * update).astype(jnp.bfloat16)
    found = retracted(mo.Stiefel(), point, update)
    assert found.dtype == jnp.bfloat16
    # The entries are rounded to 2⁻⁹ of themselves, twice.
    assert mo.Stiefel().residual(point + found) < 4 * 2.0**-9


@pytest.mark.parametrize("updates_dtype", ["float64", "float32"])
def test_double_precision_parameters_stay_to_double_precision(rng, x64, updates_dtype):
    point = jnp.asarray(oracles.stiefel_point(rng, 6, 3))
    update = jnp.asarray(rng.standard_normal((6, 3)), updates_dtype)
    found = retracted(mo.Stiefel(), point, update)
    assert found.dtype == jnp.float64
    # A few float64 units.
    assert mo.Stiefel().residual(point + found) < 1e-14


@pytest.mark.promise(
    "Manifolds",
    "Parameters stay on their manifold while they train",
    on="retractions; float32, 1,000 steps",
)
def test_a_thousand_steps_do_not_drift(rng, measured):
    tx: Any = mo.retract_polar()
    point, _ = draw_pair(rng, mo.Stiefel(), (6, 3))
    taken = 0.1 * draw(rng, 1000, 6, 3)

    def step(point, update):
        updates, _ = tx.update({"w": update}, optax.EmptyState(), {"w": point})
        return point + updates["w"], None

    last, _ = jax.jit(functools.partial(jax.lax.scan, step))(point, taken)
    # The floor of one step: every step starts from the stored point.
    measured(mo.Stiefel().residual(last), at_most=FLOOR)


@pytest.mark.promise(
    "Manifolds",
    "The retraction has the last word on where a parameter lands",
    on="retract",
)
@pytest.mark.parametrize(
    "later",
    [optax.scale(0.5), optax.clip_by_global_norm(0.1), optax.add_decayed_weights(0.1)],
    ids=["scale", "clip", "decay"],
)
def test_only_what_comes_before_the_retraction_is_on_the_manifold(rng, later):
    point, update = draw_pair(rng, mo.Stiefel(), (6, 3))
    right = apply(optax.chain, later, mo.retract_polar(), point=point, update=update)
    wrong = apply(optax.chain, mo.retract_polar(), later, point=point, update=update)
    assert mo.Stiefel().residual(point + right) < FLOOR
    assert mo.Stiefel().residual(point + wrong) > 1e-2


def test_euclidean_space_retracts_by_the_sum(rng):
    point, update = draw(rng, 6, 3), draw(rng, 6, 3)
    found = retracted(mo.Euclidean(), point, update)
    # `(p + u) − p` in float32.
    np.testing.assert_allclose(found, update, rtol=0, atol=1e-6)


def test_retract_polar_is_retract_of_stiefel(rng):
    point, update = draw(rng, 6, 3), draw(rng, 6, 3)
    found = apply(mo.retract_polar, mo.Stiefel(2.0), point=point, update=update)
    expected = retracted(mo.Stiefel(2.0), point, update)
    np.testing.assert_array_equal(found, expected)


def test_retract_polar_of_another_manifold_is_an_error(unhooked):
    with pytest.raises(TypeError, match=r"retract_polar must be a Stiefel, got Sphere"):
        mo.retract_polar(mo.Sphere())  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "manifold", [mo.Stiefel("rms"), mo.Sphere(2.0), mo.Sphere("rms")]
)
def test_project_puts_every_matrix_on_the_manifold(rng, manifold):
    params = {"a": draw(rng, 6, 3), "b": draw(rng, 2, 3, 6), "c": None}
    project = jax.jit(lambda tree: mo.project(tree, manifold, axes=mo.STACKED))
    found = project(params)
    assert found["c"] is None
    # Rows mean fan-out for a manifold; these leaves are [fan_in, fan_out].
    for name in ("a", "b"):
        assert np.max(manifold.residual(found[name].mT)) < FLOOR
    # Once there, a projection corrects rounding only.
    chex.assert_trees_all_close(project(found), found, atol=FLOOR)


def test_every_other_update_passes(rng):
    tx: Any = mo.retract(mo.Sphere(2.0), every=2)
    point, gradients = draw(rng, 6, 3), draw(rng, 4, 6, 3)
    params: Any = mo.project({"w": point}, mo.Sphere(2.0))
    state, update = tx.init(params), jax.jit(tx.update)
    assert jax.tree.map(jnp.shape, state) == mo.RetractState(())  # pyright: ignore[reportArgumentType]
    for number, gradient in enumerate(gradients, start=1):
        updates, state = update({"w": gradient.astype(jnp.bfloat16)}, state, params)
        assert updates["w"].dtype == jnp.float32
        if number % 2:
            expected = gradient.astype(jnp.bfloat16).astype(jnp.float32)
            np.testing.assert_array_equal(updates["w"], expected)
        params = optax.apply_updates(params, updates)
        on_the_sphere = float(mo.Sphere(2.0).residual(params["w"])) < FLOOR
        assert on_the_sphere == (number % 2 == 0)
    assert int(state.count) == 4


def test_between_two_retractions_nothing_is_computed(rng):
    params = mo.project({"w": draw(rng, 6, 3)}, mo.Stiefel())
    tx = mo.retract(mo.Stiefel(), every=8)
    program = jax.make_jaxpr(tx.update)(params, tx.init(params), params)
    # All products stand inside the branch.
    names = {equation.primitive.name for equation in program.eqns}
    assert "cond" in names
    assert "dot_general" not in names


def test_a_schedule_moves_the_bound(rng):
    factor = optax.linear_schedule(1.0, 3.0, 2)
    tx: Any = mo.retract(Ball(mo.Spectral(), 0.5), factor=factor)
    params: Any = {"w": draw(rng, 6, 3)}
    state, update = tx.init(params), jax.jit(tx.update)
    for count in range(3):
        updates, state = update({"w": 9 * draw(rng, 6, 3)}, state, params)
        params = optax.apply_updates(params, updates)
        largest = singular_values(params["w"])[0]
        # Float32 rounding of an update of norm 20 before it is added.
        np.testing.assert_allclose(largest, 0.5 * (1 + count), rtol=1e-5)
    assert int(state.count) == 3


def test_without_a_schedule_the_update_is_the_same(rng):
    params, update = {"w": draw(rng, 6, 3)}, {"w": draw(rng, 6, 3)}
    ball = Ball(mo.Frobenius(), 2.0)
    tx = mo.retract(ball, factor=optax.constant_schedule(1.0))
    assert mo.retract(ball).init(params) == optax.EmptyState()
    found, _ = jax.jit(tx.update)(update, tx.init(params), params)
    expected = retracted(ball, params["w"], update["w"])
    # Under a schedule the compiler fuses differently.
    np.testing.assert_allclose(found["w"], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("manifold", "options", "reason"),
    [
        (mo.Stiefel(), {"factor": optax.constant_schedule(1.0)}, r"mo\.Ball"),
        (mo.Sphere("kept"), {"factor": optax.constant_schedule(1.0)}, r"mo\.Ball"),
        (mo.Sphere("kept"), {"every": 2}, "reads its radius"),
        (mo.Stiefel(retraction="isometry"), {"every": 2}, "polar"),
    ],
)
def test_what_would_go_wrong_silently_is_refused(manifold, options, reason):
    with pytest.raises(ValueError, match=reason):
        mo.retract(manifold, **options)


@pytest.mark.parametrize(
    "norm", [RmsToRms(), RowRms(), mo.Max()], ids=lambda norm: type(norm).__name__
)
def test_a_ball_clips_after_the_step(rng, norm):
    point, update = draw(rng, 2, 6, 3), draw(rng, 2, 6, 3)
    ball = Ball(norm, 0.7)
    moved = point + retracted(ball, point, update)
    # A kernel is [fan_in, fan_out].
    assert np.max(norm.value(moved.mT)) <= 0.7 * (1 + 5e-6)
    # What is inside stays inside, and moves freely.
    free = retracted(ball, 1e-3 * point, 1e-3 * update)
    np.testing.assert_allclose(free, 1e-3 * update, rtol=0, atol=2e-7)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"every": 0}, ValueError, "every must be an int of at least 1, got 0"),
        ({"every": -2}, ValueError, "every must be at least 0"),
        ({"every": 2.0}, TypeError, r"static_args=\('every',\)"),
        ({"factor": 2.0}, TypeError, "factor must be a schedule"),
    ],
)
def test_wrong_times_are_errors(unhooked, options, error, message):
    with pytest.raises(error, match=message):
        mo.retract(**{"manifold": mo.Sphere(), **options})


def test_an_update_without_a_parameter_is_an_error_that_names_it(unhooked):
    tx: Any = mo.retract(mo.Sphere())
    with pytest.raises(ValueError, match=r"an update for 'layer/w', but the parameter"):
        tx.update({"layer": {"w": jnp.eye(3)}}, tx.init({}), {"layer": {"w": None}})
