"""The port of the published solver shows the published behaviour, failures included.

And the tools that measure it: the float64 bracket, and the count of FLOPs.
"""

import functools
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = load("dual_ascent_reference")
bracket = load("stiefel_optimum")
counter = load("dot_flops")

solve = jax.jit(reference.dual_ascent, static_argnames=("dtype", "normalise"))
in_float32 = functools.partial(solve, dtype=jnp.float32, steps=100)
SU_POINT = jnp.asarray(oracles.SU_POINT, jnp.float32)


def su(solver, scale):
    """The result on Su's case, and its (infeasible) share of the optimum."""
    gradient = jnp.asarray(scale * oracles.SU_GRADIENT, jnp.float32)
    found = solver(SU_POINT, gradient)
    value = np.sum(np.asarray(found.direction, np.float64) * oracles.SU_GRADIENT)
    return found, value


def test_step_size_suits_one_scale_of_the_gradient():
    # The three numbers of the independent float64 run are 0.245, 90.039 and 0.06.
    native, _ = su(in_float32, 1.0)
    assert native.steps == 100
    assert native.residual == pytest.approx(0.245, abs=1e-3)

    _, value = su(in_float32, 0.01)
    # Published digits of the optimum end at 1e-5; the value was read to 1e-3.
    assert value == pytest.approx(90.039, abs=1e-3)
    assert value < oracles.SU_OPTIMUM

    # It swings about the optimum with the amplitude of its step: where it stops is
    # rounding, that it has not converged is not (seen: 0.17).
    chattering, _ = su(in_float32, 0.001)
    assert chattering.steps == 100
    assert chattering.residual > 0.03


def test_normalised_gradient_makes_it_independent_of_scale():
    normalised = functools.partial(in_float32, normalise=True)
    (one, _), (other, _) = su(normalised, 1.0), su(normalised, 1e-3)
    # 100 steps carry the rounding of the division on (seen: 2e-5).
    np.testing.assert_allclose(one.direction, other.direction, atol=1e-3)


def square_problem():
    rng = np.random.default_rng(0)
    return oracles.stiefel_point(rng, 16, 16), rng.standard_normal((16, 16))


def test_square_case_stops_at_once_in_float32():
    point, gradient = square_problem()
    found = in_float32(*(jnp.asarray(x, jnp.float32) for x in (point, gradient)))
    assert found.steps == 1
    assert found.residual < 1e-6
    # Rounding of ten float32 steps (seen: 4e-7).
    expected = oracles.square_direction(point, gradient)
    np.testing.assert_allclose(found.direction, expected, atol=1e-5)


def test_square_case_never_stops_in_bfloat16():
    inputs = [jnp.asarray(x, jnp.float32) for x in square_problem()]
    found = solve(*inputs, dtype=jnp.bfloat16)
    assert found.steps == 100
    # The floor of bfloat16, measured elsewhere at 7e-4 ... 8e-3 (seen: 1.1e-2 here).
    assert 1e-4 < found.residual < 3e-2


def test_starts_at_the_projected_gradient_and_zero_stays_zero():
    found, _ = su(functools.partial(in_float32, steps=1), 1.0)
    tangent = oracles.stiefel_tangent(oracles.SU_POINT, oracles.SU_GRADIENT)
    # Ten rows in float32 against the polar factor (seen: 4e-7).
    np.testing.assert_allclose(found.direction, oracles.polar(tangent), atol=1e-5)
    zero = in_float32(SU_POINT, jnp.zeros((8, 4)))
    assert not zero.direction.any()


def test_wide_point_is_an_error():
    with pytest.raises(ValueError, match=r"tall; got \(4, 8\)"):
        reference.dual_ascent(SU_POINT.T, SU_POINT.T)


def test_matrix_sign_has_the_published_ten_rows():
    assert len(reference.MSIGN_SCHEDULE) == 10
    x = np.diag([1.0, 1e-2, 1e-3, 1e-5])
    expected = oracles.schedule_image(
        reference.MSIGN_SCHEDULE, np.diag(x) / (1.01 * np.linalg.norm(x))
    )
    sign = jax.jit(reference.msign, static_argnames="dtype")
    found = np.asarray(sign(jnp.asarray(x, jnp.float32), dtype=jnp.float32))
    # Ten float32 steps of slope up to 8 near zero (seen: 6e-8).
    np.testing.assert_allclose(np.diag(found), expected, atol=1e-5)


def test_count_of_flops_is_the_formula_of_the_loop():
    m, n = 12, 4
    example = jax.ShapeDtypeStruct((m, n), jnp.float32)
    fixed = functools.partial(reference.dual_ascent, steps=7, tolerance=None)
    step = 10 * (4 * m * n**2 + 2 * n**3) + 4 * m * n**2
    start = 2 * m * n**2
    assert counter.dot_flops(fixed, example, example) == 7 * step + start
    with pytest.raises(ValueError, match="no known length"):
        counter.dot_flops(reference.dual_ascent, example, example)


def test_factorisations_are_found_inside_calls():
    @jax.jit
    def inner(x):
        return jnp.linalg.eigh(x)[1]

    example = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    assert counter.factorisations(lambda x: inner(x) @ x, example) == {"eigh"}
    assert counter.factorisations(lambda x: x @ x, example) == set()
    assert counter.custom_calls(lambda x: inner(x) @ x, example)


def test_what_no_output_needs_is_not_counted():
    @jax.jit
    def inner(x):
        return x @ x, jnp.linalg.cholesky(x)

    example = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    assert counter.factorisations(lambda x: inner(x)[0], example) == set()
    assert counter.dot_flops(lambda x: (inner(x)[0], x @ x @ x)[0], example) == 2 * 4**3


@pytest.mark.parametrize("kind", oracles.GRADIENT_KINDS)
def test_bracket_agrees_with_the_oracle(kind, rng):
    w = oracles.stiefel_point(rng, 12, 8)
    g = oracles.gradient(kind, rng, 12, 8)
    ours, oracle = bracket.optimum(w, g), oracles.stiefel_spectral_optimum(w, g)
    # Both hold the optimum; 1e-5 is what the benchmark's text claims (seen: 1e-6).
    assert ours.lower <= oracle.upper * (1 + 1e-12)
    assert oracle.lower <= ours.upper * (1 + 1e-12)
    assert ours.width <= 1e-5
    # A feasible direction is not worth more than the optimum, nor than its completion.
    value = bracket.feasible_value(w, g, oracle.direction)
    assert value == pytest.approx(oracle.lower, rel=1e-12)
    completed = bracket.completed_value(w, g, oracle.direction)
    assert value * (1 - 1e-12) <= completed <= ours.upper * (1 + 1e-12)
