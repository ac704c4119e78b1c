"""Spectral directions on Oblique and DiagonalGram; the manifold of the latter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from manifold_optax.geometry import DiagonalGram, gram_spectral_direction, Oblique
from operations import assert_no_scale, EPS, scale_cases, SHAPE
from oracles_steepest import optimum_orthogonal_to

MANIFOLDS = (Oblique(), Oblique(of="columns"), DiagonalGram())
everywhere = pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)

compiled = jax.jit(gram_spectral_direction, static_argnums=0)


def point_on(manifold, rng, shape=SHAPE):
    if isinstance(manifold, DiagonalGram):
        return oracles.polar(rng.standard_normal(shape)) * rng.uniform(0.3, 2, shape[1])
    x = rng.standard_normal(shape)
    axis = 1 if manifold.of == "rows" else 0
    return x / np.linalg.norm(x, axis=axis, keepdims=True)


def run(manifold, points, gradients):
    return compiled(
        manifold, jnp.asarray(points, jnp.float32), jnp.asarray(gradients, jnp.float32)
    )


def normals_at(manifold, w):
    """A basis of the normal space."""
    m, n = w.shape
    if manifold == Oblique():
        return [np.eye(m)[:, [i]] * w for i in range(m)]
    if manifold == Oblique(of="columns"):
        return [w * np.eye(n)[[j]] for j in range(n)]
    pairs = [(i, j) for i in range(n) for j in range(i)]
    unit = np.eye(n)
    return [
        w @ (np.outer(unit[i], unit[j]) + np.outer(unit[j], unit[i])) for i, j in pairs
    ]


def stack(manifold):
    """One case per kind of gradient; the points, the gradients and what is found."""
    rng = np.random.default_rng(1)
    points = np.stack([point_on(manifold, rng) for _ in oracles.GRADIENT_KINDS])
    gradients = np.stack(
        [oracles.gradient(k, rng, *SHAPE) for k in oracles.GRADIENT_KINDS]
    )
    found = compiled(
        manifold, *(jnp.asarray(x, jnp.float32) for x in (points, gradients))
    )
    return points, gradients, found


@everywhere
def test_feasible_and_nearly_optimal_by_an_independent_bound(manifold):
    points, gradients, found = stack(manifold)
    # Measured: 1.4e-3, of rows for low rank with noise; 6e-6 and less otherwise.
    tolerance = 3e-3
    directions = np.asarray(found.direction, np.float64)
    for w, g, a, gap in zip(points, gradients, directions, found.gap, strict=True):
        normals = normals_at(manifold, w)
        # Rounding of float32 in a unit direction and a unit normal.
        for normal in normals:
            assert abs(np.sum(a * normal)) <= 8 * EPS * np.linalg.norm(normal)
        assert np.linalg.norm(a, 2) == pytest.approx(1, abs=8 * EPS)
        best = optimum_orthogonal_to(normals, g)
        value = np.sum(a * g)
        assert (1 - tolerance) * best <= value <= (1 + 16 * EPS) * best
        # The certificate never promises more than is there; the oracle errs by 1e-5.
        assert float(gap) >= max(0, 1 - value / best - 1e-5)
        # Nor much less: the dual is as far from its optimum (measured: 2.6e-4).
        assert float(gap) <= 1 - value / best + 1e-3


@pytest.mark.parametrize("manifold", [Oblique(), DiagonalGram()], ids=str)
def test_square_matrices_the_hardest_are_solved_to_a_hundredth(manifold):
    rng = np.random.default_rng(7)
    shape = 32, 32
    points = [point_on(manifold, rng, shape) for _ in oracles.GRADIENT_KINDS]
    gradients = [oracles.gradient(k, rng, *shape) for k in oracles.GRADIENT_KINDS]
    found = run(manifold, np.stack(points), np.stack(gradients))
    # By the certificate, which the independent bound has proved to be one.
    assert float(found.gap.max()) <= 1e-2


def test_more_steps_close_the_gap(unhooked):
    """A threshold that adapts could cycle; it settles."""
    manifold, rng = DiagonalGram(), np.random.default_rng(8)
    pair = point_on(manifold, rng), oracles.gradient("low_rank_noise", rng, *SHAPE)
    w, g = (jnp.asarray(x, jnp.float32) for x in pair)

    # Traced, against three compilations; the hook asks for a number.
    @jax.jit
    def gap_after(steps):
        return gram_spectral_direction(manifold, w, g, steps=steps).gap

    first, some, many = (float(gap_after(steps)) for steps in (0, 40, 400))
    assert first > some > many
    # What is left is the rounding of the bound: 128 rounding units.
    assert many <= 256 * EPS


@everywhere
def test_scale_zero_normal_and_nan(manifold):
    rng = np.random.default_rng(2)
    points = np.stack([point_on(manifold, rng) for _ in oracles.GRADIENT_KINDS])
    g = rng.standard_normal(SHAPE)
    normal = sum(rng.standard_normal() * x for x in normals_at(manifold, points[0]))
    points[:] = points[0]
    found = run(manifold, points, scale_cases(g, 1e3 * normal))
    # Scales that are no powers of two round the gradient anew (seen: 1.3e-6).
    assert_no_scale(found.direction, atol=1e-5)


def test_wide_matrices_turn_rows_into_columns():
    w, g = np.random.default_rng(3).standard_normal((2, 6, 5, 8))
    w /= np.linalg.norm(w, axis=2, keepdims=True)
    wide = run(Oblique(), w, g).direction
    tall = run(Oblique(of="columns"), w.mT, g.mT).direction
    # The same numbers in the same order, up to how sums are blocked.
    np.testing.assert_allclose(wide.mT, tall, atol=64 * EPS)


def test_zero_lines_have_no_constraint():
    rng = np.random.default_rng(4)
    for manifold in MANIFOLDS[:2]:
        w = point_on(manifold, rng)
        w[:, 0] = 0
        w[0] = 0
        points = jnp.asarray(np.broadcast_to(w, (6, *SHAPE)), jnp.float32)
        gradients = jnp.asarray(rng.standard_normal((6, *SHAPE)), jnp.float32)
        found = compiled(manifold, points, gradients)
        assert np.isfinite(found.direction).all()
        assert (np.abs(found.direction[:, 0]).max(axis=-1) > 1e-2).all()


def test_diagonal_gram_manifold(x64):
    manifold = DiagonalGram()
    rng = np.random.default_rng(5)
    w = point_on(manifold, rng)
    x, v, u = rng.standard_normal((3, *SHAPE))

    @jax.jit
    def compute(w, x, v, u):
        tangent = manifold.to_tangent(w, v)
        steps = jnp.stack([1e-3 * tangent, 1e-2 * tangent, x - w, 0 * w])
        points = jnp.broadcast_to(w, steps.shape)
        moved = manifold.retract(points, steps)
        residual = manifold.residual(moved[2])
        return (
            tangent,
            manifold.to_tangent(w, u),
            moved,
            moved - points - steps,
            residual,
        )

    results = compute(*map(jnp.asarray, (w, x, v, u)))
    tangent, other, moved, errors, residual = map(np.asarray, results)
    projected, still = moved[2:]
    gram = np.asarray(projected.T @ projected)
    # Rounding of float64.
    assert np.abs(gram - np.diag(np.diag(gram))).max() <= 1e-13
    assert float(residual) <= 1e-13
    np.testing.assert_allclose(still, w, atol=1e-13)
    for normal in normals_at(manifold, w):
        assert abs(np.sum(tangent * normal)) <= 1e-13
    # Self-adjoint, as an orthogonal projection.
    assert np.sum(tangent * u) == pytest.approx(np.sum(v * other), abs=1e-13)
    # A retraction: the error falls with the square of the step (seen: slope 1.99).
    sizes = [float(np.linalg.norm(e)) for e in errors[:2]]
    assert np.log10(sizes[1] / sizes[0]) == pytest.approx(2, abs=0.1)
    # Near the nearest point: no random orthogonal basis beats it.
    distance = np.linalg.norm(projected - x)
    for _ in range(200):
        q = oracles.polar(projected + 0.3 * rng.standard_normal(SHAPE))
        best = q * np.sum(q * x, axis=0)
        assert np.linalg.norm(best - x) >= distance * (1 - 1e-2)


def test_diagonal_gram_needs_rows(unhooked):
    with pytest.raises(ValueError, match="needs fan_out ≥ fan_in, got 3 × 5"):
        DiagonalGram().project(jnp.ones((3, 5)))


def test_short_and_zero_columns_survive_the_projection():
    x = np.random.default_rng(6).standard_normal(SHAPE) * [1, 1e-2, 1e-4, 1, 0]
    point = jax.jit(DiagonalGram().project)(jnp.asarray(x, jnp.float32))
    lengths = np.linalg.norm(np.asarray(point, np.float64), axis=0)
    assert lengths[4] == 0
    # What is orthogonal to three longer columns of eight is at least a tenth.
    assert (lengths[:4] >= 0.1 * np.linalg.norm(x[:, :4], axis=0)).all()
    assert float(DiagonalGram().residual(point)) <= 1e-4


@pytest.mark.parametrize("scale", [1e-30, 1e-19, 1e19, 1e30])
def test_the_tangent_space_of_orthogonal_columns_has_no_scale(scale):
    rng = np.random.default_rng(9)
    point = point_on(DiagonalGram(), rng)
    vector = jnp.asarray(rng.standard_normal(SHAPE), jnp.float32)
    to_tangent = jax.jit(DiagonalGram().to_tangent)
    found = to_tangent(jnp.asarray(scale * point, jnp.float32), vector)
    expected = to_tangent(jnp.asarray(point, jnp.float32), vector)
    # The point is rounded anew (seen: 2e-7).
    np.testing.assert_allclose(found, expected, atol=64 * EPS)
