"""Sets with a boundary: balls of norms, bands of singular values, their directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from manifold_optax.geometry import (
    Ball,
    Band,
    band_spectral_direction,
    ColumnRms,
    Frobenius,
    L1,
    Max,
    RmsToRms,
    RowRms,
    Spectral,
    steepest_direction,
)
from operations import EPS, operate, SHAPE
from oracles_steepest import optimum_in_band

NORMS = (Frobenius(), Spectral(), RmsToRms(), RowRms(), ColumnRms(), Max())
BALLS = tuple(Ball(norm, 0.5) for norm in NORMS)
SETS = (*BALLS, Band(0.2, 0.5))
everywhere = pytest.mark.parametrize("manifold", SETS, ids=str)


def clip_values(x, low, high):
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    return (u * np.clip(s, low, high)) @ vt


def nearest(manifold, x):
    """Nearest point of the set, by its definition."""
    m, n = x.shape
    if isinstance(manifold, Band):
        return clip_values(x, manifold.low, manifold.high)
    radius = manifold.radius
    match manifold.norm:
        case Frobenius():
            return x * min(1, radius / np.linalg.norm(x))
        case Spectral():
            return clip_values(x, 0, radius)
        case RmsToRms():
            return clip_values(x, 0, radius * np.sqrt(m / n))
        case RowRms():
            rms = np.sqrt(np.mean(x**2, axis=1, keepdims=True))
            return x * np.minimum(1, radius / rms)
        case ColumnRms():
            rms = np.sqrt(np.mean(x**2, axis=0, keepdims=True))
            return x * np.minimum(1, radius / rms)
        case _:
            return np.clip(x, -radius, radius)


@everywhere
def test_nearest_point(manifold):
    # Some rows, columns, entries and singular values are inside, others are not.
    x, v = np.random.default_rng(0).standard_normal((2, *SHAPE))
    x *= np.geomspace(0.05, 2, 5)
    point, outside, _, moved = operate(manifold, x, v)
    # Rounding; a clip of singular values is three iterations (seen: 4e-7).
    np.testing.assert_allclose(point, nearest(manifold, x), atol=16 * EPS)
    np.testing.assert_allclose(moved, nearest(manifold, point + v), atol=16 * EPS)
    assert outside > 0.1
    assert operate(manifold, point, v).residual <= 16 * EPS


@everywhere
def test_residual_is_the_relative_excess(manifold):
    x = 3 * nearest(manifold, 10 * np.random.default_rng(1).standard_normal(SHAPE))
    if isinstance(manifold, Band):
        x = np.linalg.qr(x)[0] * [0.4, 0.3, 0.25, 0.2, 0.05]
        # The least value is 0.15 below, in units of the upper bound 0.5.
        assert operate(manifold, x, x).residual == pytest.approx(0.3, abs=16 * EPS)
        return
    assert operate(manifold, x, x).residual == pytest.approx(2, abs=16 * EPS)


@everywhere
def test_the_tangent_cone_is_what_a_small_step_keeps(manifold):
    """P(w + t v) = w + t P_T(v) + O(t^2): the projection of the set has that slope."""
    rng = np.random.default_rng(2)
    w = nearest(manifold, rng.standard_normal(SHAPE) * np.geomspace(0.1, 2, 5))
    v = rng.standard_normal(SHAPE)
    t = 1e-6
    expected = (nearest(manifold, w + t * v) - w) / t
    tangent = operate(manifold, w, v).tangent
    # Second order in t over the least gap of singular values, and float32 in the point.
    np.testing.assert_allclose(tangent, expected, atol=1e-4)


@everywhere
def test_inside_everything_is_free(manifold):
    basis = np.linalg.qr(np.random.default_rng(3).standard_normal(SHAPE))[0]
    w, v = 0.21 * basis, np.random.default_rng(4).standard_normal(SHAPE)
    if manifold in BALLS[3:]:
        w = 0.1 * np.ones(SHAPE)
    point, residual, tangent, _ = operate(manifold, w, v)
    np.testing.assert_allclose(point, w, atol=4 * EPS)
    assert residual == 0
    np.testing.assert_array_equal(tangent, v.astype(np.float32))


@everywhere
def test_zero_and_nan(manifold):
    zero, nan = np.zeros(SHAPE), np.full(SHAPE, np.nan)
    if not isinstance(manifold, Band):
        assert not operate(manifold, zero, zero).point.any()
    found = operate(manifold, nan, zero)
    assert np.isnan(found.point).all()
    assert np.isnan(found.residual)


def test_units_and_transposes():
    assert Ball(Max(), 3.0).unit() == Ball(Max())
    assert Band(1.0, 4.0).unit() == Band(0.25, 1.0)
    expected = [True, True, False, False, False, True]
    assert [ball.transposable for ball in BALLS] == expected


@pytest.mark.slow
def test_random_points():
    for manifold in (BALLS[0], BALLS[3], SETS[-1]):
        draw = jax.jit(manifold.random_point, static_argnums=(1, 2))
        point = draw(jax.random.key(0), SHAPE, jnp.float32)
        # Rounding, of a clip from both sides for the band (seen: 2e-7).
        assert float(manifold.residual(point)) <= 16 * EPS
        assert (
            draw.eval_shape(jax.random.key(0), SHAPE, jnp.bfloat16).dtype
            == jnp.bfloat16
        )


def test_what_is_refused(unhooked):
    with pytest.raises(ValueError, match=r"norm must be one of .*Frobenius.*got L1"):
        Ball(L1())  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="radius must be a number > 0, got 'rms'"):
        Ball(Max(), "rms")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"low must be from 0 to 0\.99.*Stiefel"):
        Band(1.0, 1.0)


INTERVALS = ((0.0, 1.0), (0.5, 1.0))
solve = jax.jit(band_spectral_direction, static_argnums=2)


def on_band(rng):
    """A point with singular values at both ends and between."""
    u, _, vt = np.linalg.svd(rng.standard_normal(SHAPE), full_matrices=False)
    return (u * [1, 1, 1, 0.7, 0.5]) @ vt


def solve_for(points, gradients, interval):
    return solve(
        jnp.asarray(points, jnp.float32), jnp.asarray(gradients, jnp.float32), interval
    )


@pytest.mark.parametrize("interval", INTERVALS)
def test_direction_is_feasible_and_nearly_optimal(interval):
    rng = np.random.default_rng(5)
    points = np.stack([on_band(rng) for _ in oracles.GRADIENT_KINDS])
    gradients = np.stack(
        [oracles.gradient(kind, rng, *SHAPE) for kind in oracles.GRADIENT_KINDS]
    )
    found = solve_for(points, gradients, interval)
    directions = np.asarray(found.direction, np.float64)
    for w, g, a, gap in zip(points, gradients, directions, found.gap, strict=True):
        assert np.linalg.norm(a, 2) == pytest.approx(1, abs=16 * EPS)
        # A step against it leaves no bound at first order: eigenvalues on both faces.
        t = 1e-5
        values = np.linalg.svd(w - t * a, compute_uv=False)
        # Second order in t, over the gap 0.2 of the singular values, and rounding.
        assert values.max() <= 1 + 10 * t**2 + 4 * EPS * t
        assert values.min() >= interval[0] - 10 * t**2 - 4 * EPS * t
        best = optimum_in_band(w, g, *interval)
        value = np.sum(a * g)
        # Measured: 5e-3 at most, on low rank with noise.
        assert 0.99 * best <= value <= best * (1 + 16 * EPS)
        # The certificate never promises more than is there; the oracle errs by 1e-5.
        assert float(gap) >= max(0, 1 - value / best - 1e-5)
        assert float(gap) <= 1 - value / best + 1e-2


def test_scale_zero_outward_and_interior():
    rng = np.random.default_rng(6)
    w, g = on_band(rng), rng.standard_normal(SHAPE)
    u, _, vt = np.linalg.svd(w, full_matrices=False)
    # The gradient pulls the upper values up alone (a step goes against it).
    outward = -(u * [3, 2, 1, 0, 0]) @ vt
    points = np.stack([w, w, w, w, w, 0.9 * w])
    nan = np.full(SHAPE, np.nan)
    gradients = np.stack([g, 1e-20 * g, 0 * g, outward, nan, g])
    found = solve_for(points, gradients, INTERVALS[0])
    plain, small, zero, nothing, bad, free = np.asarray(found.direction, np.float64)
    # The rounded gradient, through an iteration with the gap above (seen: 1e-5).
    np.testing.assert_allclose(small, plain, atol=1e-3)
    assert not zero.any()
    assert not nothing.any()
    assert np.isnan(bad).all()
    # Inside the ball: Muon. ADMM clips by a Gram matrix in float32 (seen: 4e-6).
    np.testing.assert_allclose(free, oracles.polar(g), atol=1e-4)


@pytest.mark.parametrize(
    "manifold", [Ball(norm) for norm in (Frobenius(), RowRms(), ColumnRms(), Max())]
)
def test_closed_forms_against_sampling(manifold):
    """No allowed matrix of norm 1 has a larger inner product with the gradient."""
    rng = np.random.default_rng(7)
    w = nearest(manifold, rng.standard_normal(SHAPE) * np.geomspace(0.5, 4, 5))
    g = rng.standard_normal(SHAPE)
    arguments = jnp.asarray(w, jnp.float32), jnp.asarray(g, jnp.float32)
    found = np.asarray(steepest_direction(manifold, manifold.norm)(*arguments))
    assert float(manifold.norm.value(jnp.asarray(found))) == pytest.approx(
        1, abs=8 * EPS
    )
    # Allowed: a small step against it stays inside.
    step = nearest(manifold, w - 1e-6 * found) - (w - 1e-6 * found)
    assert np.abs(step).max() <= 1e-11
    value = np.sum(found * g)
    for _ in range(300):
        trial = found + 0.3 * rng.standard_normal(SHAPE)
        # The negative of the allowed part of the trial, by the projection of the set.
        trial = -(nearest(manifold, w - 1e-7 * trial) - w) / 1e-7
        length = float(manifold.norm.value(jnp.asarray(trial, jnp.float32)))
        assert np.sum(trial * g) / length <= value + 1e-5


@pytest.mark.parametrize("low", [0.1, 1e-2, 1e-3])
def test_the_lower_face_is_seen_however_low(low):
    rng = np.random.default_rng(0)
    left, _, right = np.linalg.svd(rng.standard_normal((12, 6)), full_matrices=False)
    point = (left * [1, 0.8, 0.6, 0.4, low, low]) @ right
    vector = rng.standard_normal((12, 6))
    allowed = operate(Band(low, 1.0), point, vector).tangent
    pushed = left[:, 4:].T @ allowed @ right[4:].T
    # What would lead out below has no negative part but for rounding (seen: 1e-4 at
    # the lowest end, from singular vectors of singular values of 1e-3).
    assert np.linalg.eigvalsh((pushed + pushed.T) / 2)[0] >= -1e-3


@pytest.mark.parametrize("ball", [BALLS[3], BALLS[5]], ids=str)
def test_random_points_are_spread_over_the_boundary(ball):
    # A Gaussian matrix over its norm. Clipped without that, all entries, rows or
    # singular values would be on the boundary.
    point = ball.random_point(jax.random.key(0), (24, 8))
    # Rounding of a norm, and of a clip where it is the spectral one (seen: 4 eps).
    np.testing.assert_allclose(ball.norm.value(point), ball.radius, rtol=16 * EPS)
    flat = jax.random.normal(jax.random.key(0), (24, 8)).ravel()
    cosine = flat @ point.ravel() / jnp.linalg.norm(flat) / jnp.linalg.norm(point)
    np.testing.assert_allclose(cosine, 1, rtol=16 * EPS)
