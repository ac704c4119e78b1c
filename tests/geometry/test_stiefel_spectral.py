"""The Stiefel x spectral solver keeps its promises on every kind of gradient.

Against a certified optimum in float64 directions are tangent, inside the spectral ball,
near the optimum, and have a duality gap that does not flatter.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from manifold_optax import geometry

ALL = oracles.GRADIENT_KINDS
# The kinds that are tried by day; at night all are, at every shape.
BY_DAY = {
    (64, 10): ALL,
    (128, 64): ALL,
    (96, 64): ("power", "low_rank_noise", "rank_one"),
    (72, 64): (),
    (66, 64): ("power",),
    (64, 64): ("power", "low_rank_noise", "rank_one"),
    (65, 65): (),
    (512, 128): (),
    (3072, 128): (),
}
CASES = [
    pytest.param(kind, *shape, marks=() if kind in kinds else pytest.mark.slow)
    for shape, kinds in BY_DAY.items()
    for kind in ALL
]

solve = jax.jit(geometry.stiefel_spectral_direction, static_argnames="certify")


def problem(kind, m, n, seed=0):
    rng = np.random.default_rng(seed)
    return oracles.stiefel_point(rng, m, n), oracles.gradient(kind, rng, m, n)


@functools.cache
def momentum_cases():
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    return {name: (w, g) for name, w, g in oracles.momentum_gradients()}


def assert_promises(w, g, share, slack=3e-3):
    """Asserts all promises for the gradient g at w; `share` of the optimum."""
    found = solve(
        jnp.asarray(w, jnp.float32), jnp.asarray(g, jnp.float32), certify=True
    )
    a = np.asarray(found.direction, np.float64)
    length = np.linalg.norm(a)
    # Asked for: 1e-5; rounding of the last projection (seen: 2.2e-7).
    off = np.linalg.norm(w.T @ a + a.T @ w)
    assert off <= 1e-5 * length
    # The state's number is the same up to rounding of W^T A in float32 (seen: 1.5e-7).
    assert float(found.tangency) == pytest.approx(off / length, abs=1e-6)
    # Asked for: 1.001 (seen: 1 + 2e-6).
    norm = np.linalg.norm(a, 2)
    assert norm <= 1.001

    # A bracket of 1e-4 is narrow against the shares asked for.
    optimum = oracles.stiefel_spectral_optimum(w, g, tolerance=1e-4)
    value = np.sum(a * g)
    assert value >= share * optimum.upper
    # It certifies: the gap bounds what A, made feasible, lacks of the optimum. Against
    # `lower`, which the optimum is not below; rounding of float32 sums (seen: 3e-7).
    true_gap = 1 - value / max(1, norm) / optimum.lower
    assert float(found.gap) >= max(true_gap, 0) - 1e-6
    # And it does not exaggerate: the bound lies as near as the direction (seen: 1e-3).
    # In the closed forms it is a float32 sum of singular values (seen: 1.3e-2, 6e-3).
    closed_form = w.shape[0] == w.shape[1] or w.shape[1] == 1
    assert float(found.gap) <= true_gap + (2e-2 if closed_form else slack)


@pytest.mark.parametrize(("kind", "m", "n"), CASES)
def test_promises_on_synthetic_gradients(kind, m, n):
    # Seen: 0.9992 near square (power), 0.99998 elsewhere.
    assert_promises(*problem(kind, m, n), share=0.998 if m < 1.5 * n else 0.999)


@pytest.mark.parametrize(
    "name",
    [
        "128x64",
        pytest.param("64x32", marks=pytest.mark.slow),
        pytest.param("32x10", marks=pytest.mark.slow),
    ],
)
def test_promises_on_real_momentum(name):
    # Two steps at 128 x 64 (seen: 0.9964), four below (0.9997, 0.99997).
    assert_promises(*momentum_cases()[name], share=0.995)


def test_promises_on_su_s_case():
    # Asked for: .994 (seen: .9953); the bound is as far from the optimum.
    assert_promises(oracles.SU_POINT, oracles.SU_GRADIENT, share=0.994, slack=6e-3)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("shape", [(64, 10), (96, 64), (128, 64)])
def test_low_rank_with_noise_stays_inside_the_ball(shape, seed):
    # The hardest for float32: the noise of a Gram matrix is as large as its ridge.
    w, g = problem("low_rank_noise", *shape, seed=seed)
    found = solve(
        jnp.asarray(w, jnp.float32), jnp.asarray(g, jnp.float32), certify=True
    )
    norm = np.linalg.norm(np.asarray(found.direction, np.float64), 2)
    # Asked for: 1.001.
    assert norm <= 1.001


@pytest.mark.parametrize("kind", ["gaussian", "power", "low_rank_noise", "readout"])
@pytest.mark.parametrize("ratio", [0.01, 1.0, 100.0])
def test_promises_when_the_rotation_is_unrelated_to_the_rest(kind, ratio):
    # K = skew(W^T G) of any size, from another gradient than the rest; the
    # perturbative start is the worse one here.
    w, g = problem(kind, 64, 10)
    _, other = problem(kind, 64, 10, seed=1)
    rotation = w @ oracles.skew(w.T @ other)
    rest = g - w @ (w.T @ g)
    rotation *= ratio / np.linalg.norm(rotation)
    assert_promises(w, rest / np.linalg.norm(rest) + rotation, share=0.998)


@pytest.mark.parametrize("shape", [(64, 10), (20, 1)])
def test_promises_when_the_normal_part_is_large(shape):
    w, g = problem("gaussian", *shape)
    multiplier = oracles.sym(np.random.default_rng(1).standard_normal((shape[1],) * 2))
    # 3e3 times the tangent part, of which float32 keeps four digits.
    normal = w @ multiplier * 3e3 * np.linalg.norm(g) / np.linalg.norm(multiplier)
    assert_promises(w, g + normal, share=0.99)


@pytest.mark.promise(
    "Numbers",
    "The certified gap is never negative, but for rounding",
    on="Stiefel × spectral norm, float32",
)
@pytest.mark.parametrize("shape", [(64, 10), (64, 64)])
def test_the_gap_is_never_negative(shape, measured):
    for kind in oracles.GRADIENT_KINDS:
        for seed in range(4):
            w, g = problem(kind, *shape, seed=seed)
            found = solve(
                jnp.asarray(w, jnp.float32), jnp.asarray(g, jnp.float32), certify=True
            )
            # Closed forms have the gap 0 up to rounding of sums (seen: -3.5e-7).
            assert float(found.gap) <= 2e-2
            measured(max(0.0, -float(found.gap)), at_most=1e-6)


# By day the least shape; the others compile another program of the same code.
SHAPES = ((20, 12), (20, 1), (64, 64), (96, 64), (64, 10))
BY_PRODUCTS = [
    pytest.param(shape, marks=pytest.mark.slow if number else ())
    for number, shape in enumerate(SHAPES)
]


@pytest.mark.promise(
    "Numbers",
    "By products alone, without float64, the certified gap is never negative",
    on="Stiefel × spectral norm, float32, the arithmetic of accelerators",
)
@pytest.mark.parametrize("shape", BY_PRODUCTS, ids=str)
def test_the_gap_by_products_is_never_negative(shape, on_accelerators, measured):
    certified = functools.partial(geometry.stiefel_spectral_direction, certify=True)
    gap = jax.jit(lambda w, g: certified(w, g).gap)
    for kind in oracles.GRADIENT_KINDS:
        for seed in range(4):
            w, g = problem(kind, *shape, seed=seed)
            found = float(gap(jnp.asarray(w, jnp.float32), jnp.asarray(g, jnp.float32)))
            # Of the search in float32 (seen: 3e-2 at 96 x 64, else 2e-2).
            assert found <= 5e-2
            measured(max(0.0, -found), at_most=0)
