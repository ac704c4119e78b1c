"""The table (manifold, norm) -> direction, each row against its oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from manifold_optax.geometry import (
    Ball,
    certified_direction,
    ColumnRms,
    Euclidean,
    Frobenius,
    Max,
    Oblique,
    pair_table,
    RmsToRms,
    Spectral,
    Sphere,
    steepest_direction,
    Stiefel,
)

EPS = float(np.finfo(np.float32).eps)
SHAPES = ((24, 16), (16, 16))
PAIRS = (
    (Euclidean(), Frobenius()),
    (Sphere(), Frobenius()),
    (Stiefel(), Frobenius()),
    (Euclidean(), Max()),
    (Euclidean(), Spectral()),
    (Sphere(), Spectral()),
    (Ball(Spectral()), Spectral()),
    (Stiefel(), Spectral()),
)
ORACLES = {
    (Euclidean(), Frobenius()): lambda _, g: g / np.linalg.norm(g),
    (Sphere(), Frobenius()): oracles.sphere_direction,
    (Stiefel(), Frobenius()): oracles.column_direction,
    (Euclidean(), Max()): lambda _, g: np.sign(g),
    (Euclidean(), Spectral()): lambda _, g: oracles.polar(g),
}
SEARCHED = ((Sphere(), Spectral()), (Ball(Spectral()), Spectral()))
pairs = pytest.mark.parametrize(("manifold", "norm"), PAIRS, ids=str)

compiled = {
    pair: jax.jit(steepest_direction(*pair), static_argnames="axis_name")
    for pair in PAIRS
}


def point_on(manifold, shape):
    rng = np.random.default_rng(1)
    if isinstance(manifold, Stiefel):
        return oracles.stiefel_point(rng, *shape)
    x = rng.standard_normal(shape)
    if isinstance(manifold, Ball):
        return oracles.polar(x) * np.linspace(1.1, 0.5, shape[1]).clip(max=1)
    return x / np.linalg.norm(x) if isinstance(manifold, Sphere) else x


def run(manifold, norm, point, gradient):
    found = compiled[manifold, norm](
        jnp.asarray(point, jnp.float32), jnp.asarray(gradient, jnp.float32)
    )
    return np.asarray(found, np.float64)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("manifold", "norm"), [pair for pair in PAIRS if pair in ORACLES], ids=str
)
def test_rows_with_a_closed_form(manifold, norm, shape):
    point = point_on(manifold, shape)
    gradient = np.random.default_rng(0).standard_normal(shape)
    expected = ORACLES[manifold, norm]
    found = run(manifold, norm, point, gradient)
    # Rounding of float32, for the polar factor times the condition of the gradient,
    # which is 45 at 16 x 16 (seen: 3e-7).
    np.testing.assert_allclose(found, expected(point, gradient), atol=64 * EPS)


@pytest.mark.parametrize("shape", SHAPES)
def test_stiefel_with_the_spectral_norm(shape):
    point = point_on(Stiefel(), shape)
    gradient = np.random.default_rng(0).standard_normal(shape)
    found = run(Stiefel(), Spectral(), point, gradient)
    optimum = oracles.stiefel_spectral_optimum(point, gradient)
    # The solver's own accuracy at m = 1.5 n (seen: 1 - 2e-4); closed forms elsewhere.
    assert np.sum(found * gradient) >= 0.999 * optimum.upper


@pytest.mark.promise(
    "Numbers",
    "A steepest direction is tangent, of unit norm, and ascends",
    on="every pair of the table",
)
@pytest.mark.parametrize(
    ("manifold", "norm", "shape"),
    # Searches for a direction know no square case of their own.
    [
        (*pair, s)
        for pair in PAIRS
        for s in SHAPES
        if s == SHAPES[0] or pair not in SEARCHED
    ],
    ids=str,
)
def test_ascends_with_unit_length_in_the_tangent_space(manifold, norm, shape):
    point = point_on(manifold, shape)
    gradient = np.random.default_rng(2).standard_normal(shape)
    found = run(manifold, norm, point, gradient)
    assert np.sum(found * gradient) > 0
    length = float(norm.value(jnp.asarray(found, jnp.float32)))
    # Rounding; the solver aims 1e-5 inside the ball (seen: 2.4e-7).
    assert length == pytest.approx(1, abs=2e-5)
    # Against the direction, which a tangent cone tells from along it.
    tangent = -manifold.to_tangent(jnp.asarray(point), -jnp.asarray(found))
    np.testing.assert_allclose(tangent, found, atol=8 * EPS)


@pairs
def test_a_zero_gradient_has_no_direction(manifold, norm):
    point = point_on(manifold, (24, 16))
    assert not run(manifold, norm, point, np.zeros((24, 16))).any()


@pytest.mark.parametrize(
    ("manifold", "norm"),
    [(Sphere(), Frobenius()), (Stiefel(), Frobenius()), (Stiefel(), Spectral())],
    ids=str,
)
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e15])
@pytest.mark.parametrize("shape", [(24, 16), (16, 16)])
def test_a_normal_gradient_has_no_direction(manifold, norm, scale, shape):
    point = point_on(manifold, shape)
    multiplier = np.random.default_rng(3).standard_normal((16, 16))
    normal = point @ oracles.sym(multiplier) if manifold == Stiefel() else 3 * point
    # Rounding leaves a tangent part of 1e-7, which must not be taken for a direction.
    assert not run(manifold, norm, point, scale * normal).any()


@pairs
@pytest.mark.parametrize("exponent", [-66, 50])
def test_powers_of_two_change_no_bit(manifold, norm, exponent):
    point = point_on(manifold, (24, 16))
    gradient = np.random.default_rng(0).standard_normal((24, 16)).astype(np.float32)
    plain = run(manifold, norm, point, gradient)
    scaled = run(manifold, norm, point, gradient * np.float32(2.0**exponent))
    np.testing.assert_array_equal(scaled, plain)


@pairs
def test_nan_stays_visible(manifold, norm):
    gradient = np.random.default_rng(0).standard_normal((24, 16))
    gradient[3, 2] = np.nan
    assert np.isnan(run(manifold, norm, point_on(manifold, (24, 16)), gradient)).any()


@pytest.mark.parametrize("manifold", [Sphere(2.5), Sphere("kept"), Stiefel(0.5)])
def test_the_size_is_left_to_the_caller(manifold):
    point = point_on(manifold.unit(), (24, 16))
    gradient = np.random.default_rng(0).standard_normal((24, 16))
    arguments = jnp.asarray(point, jnp.float32), jnp.asarray(gradient, jnp.float32)
    found = jax.jit(steepest_direction(manifold, Frobenius()))(*arguments)
    unit = run(manifold.unit(), Frobenius(), point, gradient)
    np.testing.assert_array_equal(found, unit)


@pytest.mark.parametrize(
    ("manifold", "norm"),
    [
        (Sphere(2.5), Max()),
        (Oblique(), ColumnRms()),
        (Ball(Frobenius()), Spectral()),
        (Stiefel("rms"), Max()),
    ],
    ids=str,
)
def test_unknown_pairs_print_the_table(manifold, norm):
    with pytest.raises(ValueError, match="No direction is known for") as caught:
        steepest_direction(manifold, norm)
    message = str(caught.value)
    assert str(manifold) in message
    assert str(norm) in message
    assert pair_table() in message


@pytest.mark.parametrize("norm", [Spectral(), RmsToRms()], ids=str)
def test_tolerances_on_stiefel(norm):
    rng = np.random.default_rng(0)
    point = jnp.asarray(oracles.stiefel_point(rng, 16, 8), jnp.float32)
    gradient = jnp.asarray(rng.standard_normal((16, 8)), jnp.float32)
    solve = jax.jit(certified_direction(Stiefel(), norm, tolerance=1e-2))
    assert 0 <= solve(point, gradient).gap <= 1e-2
