"""The oracles against closed forms, published numbers and each other."""

import numpy as np
import pytest
from scipy import linalg, special

import oracles

KELLER_JORDAN = ((3.4445, -4.7750, 2.0315),) * 5
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845749493, 0.4188073119525673),
)
# Rounding of a few float64 products and decompositions of size <= 64 (seen: 2e-15);
# `upper` is rounded outwards by 1e-13.
ROUNDING = 1e-12


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def problem(kind, seed, m, n):
    rng = np.random.default_rng(seed)
    return oracles.stiefel_point(rng, m, n), oracles.gradient(kind, rng, m, n)


def assert_feasible(w, optimum):
    a = optimum.direction
    # Projected and divided by its norm: rounding only (seen: 4e-15 and 4e-16).
    assert np.linalg.norm(w.T @ a + a.T @ w) <= 1e-10
    assert np.linalg.norm(a, 2) <= 1 + 1e-10


@pytest.mark.parametrize("shape", [(7, 7), (9, 4), (4, 9), (5, 1)])
def test_polar_has_the_defining_properties(rng, shape):
    x = rng.standard_normal(shape)
    u = oracles.polar(x)
    # A partial isometry whose other factor u^T x is symmetric positive semidefinite.
    np.testing.assert_allclose(u @ u.T @ u, u, atol=ROUNDING)
    np.testing.assert_allclose(u.T @ x, x.T @ u, atol=ROUNDING)
    assert np.linalg.eigvalsh(u.T @ x).min() >= -ROUNDING


def test_polar_of_low_rank_is_a_partial_isometry(rng):
    x = rng.standard_normal((9, 2)) @ rng.standard_normal((2, 6))
    singular_values = linalg.svdvals(oracles.polar(x))
    np.testing.assert_allclose(singular_values, [1, 1, 0, 0, 0, 0], atol=ROUNDING)
    # The inner product attains the nuclear norm, as for full rank.
    nuclear = np.linalg.norm(x, "nuc")
    np.testing.assert_allclose(np.sum(x * oracles.polar(x)), nuclear, rtol=ROUNDING)


def test_polar_of_zero_and_of_tiny():
    assert not oracles.polar(np.zeros((5, 3))).any()
    tiny = oracles.polar(1e-200 * np.eye(5, 3))
    np.testing.assert_array_equal(tiny, np.eye(5, 3))


def test_polar_tolerance_sets_the_rank():
    x = np.diag([1.0, 1e-4, 1e-8])
    np.testing.assert_array_equal(oracles.polar(x), np.eye(3))
    np.testing.assert_array_equal(oracles.polar(x, 1e-6), np.diag([1.0, 1.0, 0.0]))


@pytest.mark.parametrize(
    ("schedule", "image_of_one"), [(KELLER_JORDAN, 0.69644), (POLAR_EXPRESS, 1.12356)]
)
def test_schedule_image_of_one(schedule, image_of_one):
    # MATH 3.E prints five decimals.
    assert float(oracles.schedule_image(schedule, 1.0)) == pytest.approx(
        image_of_one, abs=1e-5
    )


def test_newton_schulz_equals_the_matrix_iteration(rng):
    g = rng.standard_normal((9, 5))
    x = g / np.linalg.norm(g)
    for a, b, c in KELLER_JORDAN:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    np.testing.assert_allclose(
        oracles.newton_schulz(g, KELLER_JORDAN), x, atol=ROUNDING
    )
    assert not oracles.newton_schulz(0 * g, KELLER_JORDAN).any()


def test_lyapunov_solves_its_equation(rng):
    root = rng.standard_normal((6, 6))
    a, b = root @ root.T + np.eye(6), rng.standard_normal((6, 6))
    r = oracles.lyapunov(a, b)
    # Some eps ||a|| ||r||, of norms with product 16 (seen: 4e-15).
    np.testing.assert_allclose(a @ r + r @ a, b, atol=1e-11)


def test_sphere_direction_is_the_steepest_unit_tangent(rng):
    w, g = rng.standard_normal((2, 6, 3))
    a = oracles.sphere_direction(w, g)
    assert abs(np.sum(a * w)) <= ROUNDING
    assert np.linalg.norm(a) == pytest.approx(1, abs=ROUNDING)
    # By Pythagoras no unit tangent does better than the length of the tangent part.
    radial = np.sum(g * w) / np.linalg.norm(w)
    best = np.sqrt(np.sum(g**2) - radial**2)
    assert np.sum(a * g) == pytest.approx(best, rel=ROUNDING)


@pytest.mark.parametrize("radius", [1.0, 3.0])
def test_sphere_step_moves_by_the_angle_atan_lr(rng, radius):
    w, g = rng.standard_normal((2, 8))
    w *= radius / np.linalg.norm(w)
    moved = oracles.sphere_step(w, g, 0.3, radius)
    assert np.linalg.norm(moved) == pytest.approx(radius, rel=ROUNDING)
    cosine = moved @ w / radius**2
    assert np.arccos(cosine) == pytest.approx(np.arctan(0.3), rel=ROUNDING)


def test_sphere_step_ignores_a_radial_gradient(rng):
    w = rng.standard_normal(8)
    w /= np.linalg.norm(w)
    np.testing.assert_array_equal(oracles.sphere_step(w, 5 * w, 0.3), w)


def test_stiefel_tangent_is_an_orthogonal_projection(rng):
    w, v = oracles.stiefel_point(rng, 9, 4), rng.standard_normal((9, 4))
    tangent = oracles.stiefel_tangent(w, v)
    np.testing.assert_allclose(w.T @ tangent + tangent.T @ w, 0, atol=ROUNDING)
    again = oracles.stiefel_tangent(w, tangent)
    np.testing.assert_allclose(again, tangent, atol=ROUNDING)
    assert abs(np.sum(tangent * (v - tangent))) <= ROUNDING


def test_muon_momentum_weights_of_two_steps():
    # One-hot gradients read off the weight of each, here with beta = 1/2.
    grads = list(np.eye(2))

    def weights(nesterov, debias):
        return np.array(oracles.muon_momentum(grads, 0.5, nesterov, debias))

    np.testing.assert_array_equal(weights(False, False), [[1 / 2, 0], [1 / 4, 1 / 2]])
    np.testing.assert_allclose(weights(False, True), [[1, 0], [1 / 3, 2 / 3]])
    np.testing.assert_array_equal(weights(True, False), [[3 / 4, 0], [1 / 8, 3 / 4]])
    # Step 1: (1/4)/(3/4) + (1/2)/(1/2). Step 2: (1/8)/(7/8), (1/4)/(7/8) + (1/2)/(3/4).
    expected = [[4 / 3, 0], [1 / 7, 2 / 7 + 2 / 3]]
    np.testing.assert_allclose(weights(True, True), expected)


def test_su_case_has_the_published_norms():
    # MATH 3.A prints six decimals.
    nuclear = np.linalg.norm(oracles.SU_GRADIENT, "nuc")
    assert nuclear == pytest.approx(122.326253, abs=1e-6)
    tangent = oracles.stiefel_tangent(oracles.SU_POINT, oracles.SU_GRADIENT)
    assert np.linalg.norm(tangent, "nuc") == pytest.approx(98.647572, abs=1e-6)


def test_su_optimum():
    optimum = oracles.stiefel_spectral_optimum(oracles.SU_POINT, oracles.SU_GRADIENT)
    assert_feasible(oracles.SU_POINT, optimum)
    # MATH 3.A prints seven digits; the bracket is [90.048126, 90.048132].
    assert optimum.gap <= 1e-6
    assert optimum.lower == pytest.approx(oracles.SU_OPTIMUM, rel=1e-6)
    assert optimum.upper == pytest.approx(oracles.SU_OPTIMUM, rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", [(24, 16), (64, 10)])
@pytest.mark.parametrize("kind", oracles.GRADIENT_KINDS)
def test_bracket_is_tight_for_every_kind(kind, shape, seed):
    w, g = problem(kind, seed, *shape)
    optimum = oracles.stiefel_spectral_optimum(w, g)
    assert_feasible(w, optimum)
    assert optimum.lower <= optimum.upper
    # The solver stops at 1e-6 (seen: 9e-7); ten times that leaves room for another
    # LAPACK, whose rounding changes the path of L-BFGS.
    assert optimum.gap <= 1e-5


@pytest.mark.parametrize(
    "kind", ["low_rank_noise", pytest.param("rank_deficient", marks=pytest.mark.slow)]
)
def test_bracket_of_the_hardest_cases(kind):
    w, g = problem(kind, 0, 72, 64)
    optimum = oracles.stiefel_spectral_optimum(w, g)
    assert_feasible(w, optimum)
    # L-BFGS stalls at the kinks, many of them since 72 is close to 64 (seen: 2.7e-5,
    # 4.3e-6). 1e-4 is the documented bound.
    assert 0 <= optimum.gap <= 1e-4


@pytest.mark.parametrize("kind", oracles.GRADIENT_KINDS)
def test_any_budget_gives_a_valid_bracket(kind):
    w, g = problem(kind, 3, 24, 16)
    rough = oracles.stiefel_spectral_optimum(w, g, max_iterations=2)
    tight = oracles.stiefel_spectral_optimum(w, g)
    assert_feasible(w, rough)
    # Both contain the optimum, so that they overlap.
    assert rough.lower <= tight.upper
    assert tight.lower <= rough.upper


@pytest.mark.parametrize("n", [6, 7])
@pytest.mark.parametrize("kind", ["gaussian", "readout", "rank_deficient"])
def test_square_closed_form_is_the_optimum(kind, n):
    w, g = problem(kind, 1, n, n)
    optimum = oracles.stiefel_spectral_optimum(w, g, tolerance=1e-9)
    closed = oracles.square_direction(w, g)
    assert_feasible(w, optimum._replace(direction=closed))
    # The multiplier 0 of the tangent part is optimal, hence `upper` exact (seen: 1e-13,
    # the outward rounding). `lower` pays for the smoothing (seen: 4e-10).
    assert np.sum(closed * g) == pytest.approx(optimum.upper, rel=ROUNDING)
    assert optimum.lower == pytest.approx(optimum.upper, rel=1e-8)


def test_column_is_the_normalised_projected_gradient():
    w, g = problem("gaussian", 2, 20, 1)
    optimum = oracles.stiefel_spectral_optimum(w, g)
    column = oracles.column_direction(w, g)
    np.testing.assert_allclose(optimum.direction, column, atol=ROUNDING)
    np.testing.assert_allclose(column, oracles.sphere_direction(w, g), atol=ROUNDING)
    assert optimum.upper == pytest.approx(np.sum(column * g), rel=ROUNDING)


def test_two_by_two_block_closed_form():
    # MATH 4.8 (9): K = k J and C = c I have the optimum tr Q = 2 sqrt(k^2 + c).
    k, c = 0.7, 0.3
    w = np.eye(6, 2)
    g = np.zeros((6, 2))
    g[:2] = [[0, k], [-k, 0]]
    g[2:4] = np.sqrt(c) * np.eye(2)
    optimum = oracles.stiefel_spectral_optimum(w, g, tolerance=1e-12)
    exact = 2 * np.sqrt(k**2 + c)
    # No singular value is near 0: the smoothing costs nothing (seen: 2e-13).
    assert optimum.lower == pytest.approx(exact, rel=1e-10)
    assert optimum.upper == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize("scale", [1e-20, 1e15])
def test_optimum_scales_with_the_gradient(scale):
    w, g = problem("gaussian", 4, 24, 16)
    optimum = oracles.stiefel_spectral_optimum(w, g)
    scaled = oracles.stiefel_spectral_optimum(w, scale * g)
    # Normalised first; the paths of L-BFGS part by rounding, within the two brackets
    # of 1e-6 (seen: 6e-11).
    assert scaled.upper == pytest.approx(scale * optimum.upper, rel=2e-6)
    assert scaled.lower == pytest.approx(scale * optimum.lower, rel=2e-6)


def test_optimum_ignores_the_normal_part(rng):
    w, g = problem("power", 5, 24, 16)
    normal = w @ oracles.sym(rng.standard_normal((16, 16)))
    optimum = oracles.stiefel_spectral_optimum(w, g)
    shifted = oracles.stiefel_spectral_optimum(w, g + normal)
    # Equal problems up to rounding: within two brackets of 1e-6 (seen: 2e-15).
    assert shifted.upper == pytest.approx(optimum.upper, rel=2e-6)
    for zero in (np.zeros_like(w), normal):
        lower, upper, direction = oracles.stiefel_spectral_optimum(w, zero)
        assert lower == upper == 0
        assert not direction.any()


@pytest.mark.parametrize(
    ("kind", "rank"),
    [
        ("gaussian", 16),
        ("power", 16),
        ("low_rank_noise", 16),
        ("rank_deficient", 4),
        ("readout", 15),
        ("rank_one", 1),
    ],
)
def test_gradients_have_the_rank_of_their_kind(rng, kind, rank):
    g = oracles.gradient(kind, rng, 24, 16)
    assert np.linalg.matrix_rank(g) == rank
    if kind == "readout":
        np.testing.assert_allclose(g.sum(axis=1), 0, atol=ROUNDING)
    if kind == "power":
        np.testing.assert_allclose(linalg.svdvals(g), 1 / np.arange(1, 17))


def test_unknown_kind_is_named(rng):
    with pytest.raises(ValueError, match="got 'flat'"):
        oracles.gradient("flat", rng, 3, 2)


def test_mlp_gradients_agree_with_differences(rng):
    shapes = ((6, 5), (5, 4), (4, 3))
    kernels = [oracles.stiefel_point(rng, *shape) for shape in shapes]
    tangents = [rng.standard_normal(shape) for shape in shapes]
    x, targets = rng.standard_normal((8, 6)), np.eye(3)[rng.integers(3, size=8)]

    def loss(t):
        moved = [w + t * v for w, v in zip(kernels, tangents, strict=True)]
        hidden = np.maximum(np.maximum(x @ moved[0], 0) @ moved[1], 0)
        logits = hidden @ moved[2]
        return np.mean(special.logsumexp(logits, axis=1) - (logits * targets).sum(1))

    grads = oracles.mlp_gradients(kernels, x, targets)
    slope = sum(np.sum(g * v) for g, v in zip(grads, tangents, strict=True))
    difference = (loss(1e-5) - loss(-1e-5)) / 2e-5
    # Central differences: the step and the rounding cost some 1e-10 (seen: 4e-10).
    assert slope == pytest.approx(difference, rel=1e-7)


def test_momentum_gradients():
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    first, second = oracles.momentum_gradients(), oracles.momentum_gradients()
    assert [name for name, _, _ in first] == ["128x64", "64x32", "32x10"]
    for (_, w, momentum), (_, _, again) in zip(first, second, strict=True):
        np.testing.assert_array_equal(momentum, again)
        np.testing.assert_allclose(w.T @ w, np.eye(w.shape[1]), atol=ROUNDING)
        # The range that MATH 4.5 saw in such networks is 0.06 to 0.7 (seen: 0.25-0.28).
        assert 0.06 <= np.linalg.norm(momentum) <= 0.7
    _, _, readout = first[-1]
    np.testing.assert_allclose(readout.sum(axis=1), 0, atol=ROUNDING)


def test_bracket_of_real_momentum():
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    for _, w, momentum in oracles.momentum_gradients():
        optimum = oracles.stiefel_spectral_optimum(w, momentum)
        assert_feasible(w, optimum)
        # As for the synthetic kinds (seen: 4.7e-7).
        assert 0 <= optimum.gap <= 1e-5
