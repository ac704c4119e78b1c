"""Radii, scales and dtypes: what is refused, what is static, what is stored."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from manifold_optax import Euclidean, Frobenius, Max, Spectral, Sphere, Stiefel

STATIC = (
    Euclidean(),
    Sphere(2.5),
    Sphere("rms"),
    Sphere("kept"),
    Stiefel(0.5),
    Stiefel("rms"),
    Frobenius(),
    Max(),
    Spectral(),
)


def gaussian(shape, dtype=jnp.float32):
    x = np.random.default_rng(0).standard_normal(shape)
    return jnp.asarray(x, dtype)


@pytest.mark.parametrize("manifold", [Sphere, Stiefel])
@pytest.mark.parametrize("size", [0.0, -1.0, float("nan"), float("inf")])
def test_size_must_be_positive_and_finite(manifold, size):
    name = "radius" if manifold is Sphere else "scale"
    with pytest.raises(ValueError, match=f"{name} must be > 0 and finite, got {size}"):
        manifold(size)


def test_unknown_rules_are_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"radius.*'rms'.*'kept'.*got 'RMS'"):
        Sphere("RMS")
    with pytest.raises(ValueError, match=r"scale.*'rms'.*got 'kept'") as caught:
        Stiefel("kept")
    assert "'kept':" not in str(caught.value)


@pytest.mark.parametrize("thing", STATIC, ids=str)
def test_static_objects(thing):
    # Optax takes any callable hyperparameter for a schedule.
    assert not callable(thing)
    assert {thing: 1}[copy.deepcopy(thing)] == 1
    assert sum(thing == other for other in STATIC) == 1
    with pytest.raises(AttributeError):
        thing.size = 3.0


@pytest.mark.parametrize(
    ("manifold", "unit"),
    [
        (Euclidean(), Euclidean()),
        (Sphere("kept"), Sphere(1.0)),
        (Sphere(2.5), Sphere(1.0)),
        (Stiefel("rms"), Stiefel(1.0)),
    ],
    ids=str,
)
def test_unit(manifold, unit):
    assert manifold.unit() == unit
    assert unit.size == 1.0


def test_rms_makes_the_rms_norm_one():
    # fan_out x fan_in: the RMS->RMS norm is sqrt(fan_in / fan_out) ||w||_2.
    for fan_out, fan_in in ((6, 4), (4, 6)):
        w = jax.jit(Stiefel("rms").project)(gaussian((fan_out, fan_in)))
        rms_norm = np.sqrt(fan_in / fan_out) * np.linalg.norm(np.asarray(w), 2)
        # Rounding of the projection.
        assert rms_norm == pytest.approx(1, abs=1e-6)


def test_scale_of_other_axes():
    # A leaf [in, heads, batch, out] whose matrices lie along the axes 0, 1 and 3.
    leaf = gaussian((4, 2, 3, 5))
    scale = Sphere("kept").scale_of(leaf, 5, 8, axes=(0, 1, 3))
    expected = np.linalg.norm(
        np.asarray(leaf).transpose(2, 0, 1, 3).reshape(3, -1), 2, 1
    )
    # A sum of 40 squares.
    np.testing.assert_allclose(scale, expected.reshape(1, 1, 3, 1), rtol=1e-6)
    assert Sphere("rms").scale_of(leaf, 5, 8) == np.sqrt(5 / 8)
    assert Sphere("rms").scale_of(leaf, 5, 0) == 1.0
    assert Sphere(2.5).scale_of(leaf, 5, 8) == 2.5


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_kept_norms_of_any_magnitude(scale):
    sphere = Sphere("kept")
    x = gaussian((3, 6, 4)) * np.float32(scale)
    moved = sphere.retract(x, x[:, ::-1])
    norms = np.linalg.norm(np.asarray(x, np.float64), axis=(-2, -1))
    found = np.linalg.norm(np.asarray(moved, np.float64), axis=(-2, -1))
    # Two norms of 24 entries and a division.
    np.testing.assert_allclose(found, norms, rtol=1e-6)


def test_a_kept_norm_is_read_again_as_it_was():
    sphere = Sphere("kept")
    x = gaussian((10_000, 3, 2))
    sizes = np.asarray(sphere.scale_of(x, 3, 2))
    exact = np.linalg.norm(np.asarray(x, np.float64), axis=(-2, -1), keepdims=True)
    # Half the distance of two numbers of 21 bits, after one rounding to 24.
    np.testing.assert_allclose(sizes, exact, rtol=2**-21 + 2**-24)
    # As training does it: the step to the landing point is an update, and is added.
    update = sphere.retract(x, x[::-1]) - x
    np.testing.assert_array_equal(sphere.scale_of(x + update, 3, 2), sizes)


@pytest.mark.promise(
    "Faults",
    "A zero matrix stays zero where its own norm is kept",
    on='`Sphere("kept")`',
)
def test_a_zero_matrix_stays_zero_on_its_own_sphere():
    sphere = Sphere("kept")
    points = gaussian((2, 6, 4)).at[1].set(0)
    vectors = gaussian((2, 6, 4))[::-1]
    for found in (sphere.project(points), sphere.retract(points, vectors)):
        assert not np.any(found[1])
        assert np.all(np.isfinite(found[0]))
        assert np.any(found[0])
    assert np.all(np.isfinite(sphere.to_tangent(points, vectors)))
    # The zero matrix is off every unit sphere, and says so.
    np.testing.assert_allclose(sphere.residual(points), [0, 1], atol=1e-6)


@pytest.mark.parametrize(
    "manifold", [Euclidean(), Sphere(2.5), Sphere("kept"), Stiefel(0.5)], ids=str
)
def test_bfloat16_storage(manifold):
    x, y = gaussian((6, 4), jnp.bfloat16), gaussian((6, 4), jnp.bfloat16)[::-1]
    project = jax.jit(manifold.project)
    point = project(x)
    # Computed in float32 from the stored numbers, and rounded once at the end.
    wide = project(x.astype(jnp.float32))
    np.testing.assert_array_equal(point, wide.astype(jnp.bfloat16))
    assert jax.eval_shape(manifold.to_tangent, point, y).dtype == jnp.bfloat16
    assert jax.eval_shape(manifold.retract, point, y).dtype == jnp.bfloat16
    assert jax.eval_shape(manifold.residual, point).dtype == jnp.float32
    # Entries are rounded by 4e-3 of themselves, columns and norms by less (seen: 2e-3),
    # and the residual of a Stiefel manifold counts twice.
    assert float(manifold.residual(point)) <= 8e-3


def test_dtype_follows_the_first_argument():
    point, vector = gaussian((6, 4)), gaussian((6, 4), jnp.bfloat16)
    sphere = Sphere()
    assert jax.eval_shape(sphere.retract, point, vector).dtype == jnp.float32
    assert jax.eval_shape(sphere.to_tangent, point, vector).dtype == jnp.bfloat16


def test_split_rows_need_a_number():
    def retract(x):
        return Sphere("rms").project(x, axis_name="data")

    with pytest.raises(ValueError, match=r"depends on the whole matrix.*'data'"):
        jax.vmap(retract, axis_name="data")(gaussian((2, 3, 4)))


def test_residual_of_nothing():
    assert float(Stiefel().residual(jnp.zeros((0, 4)))) == 0
    assert Stiefel().project(jnp.zeros((3, 0))).shape == (3, 0)
