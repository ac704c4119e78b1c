import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manifold_optax as mo
import oracles
from transforms.draws import apply, draw


def orthogonalized(leaf, *arguments, **options):
    return apply(mo.orthogonalize_via_newton_schulz, *arguments, update=leaf, **options)


@pytest.mark.parametrize("shape", [(6, 3), (3, 6)])
@pytest.mark.parametrize("name", ["JORDAN", "YOU", "POLAR_EXPRESS"])
def test_it_is_the_polynomial_of_the_singular_values(rng, name, shape):
    schedule = getattr(mo.linalg, name)
    x = rng.standard_normal(shape).astype(np.float32)
    found = orthogonalized(jnp.asarray(x), schedule)
    # Float32 products; a steep row amplifies the rounding by its slope, up to 8.
    np.testing.assert_allclose(
        found, oracles.newton_schulz(x, schedule), rtol=0, atol=5e-5
    )


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_the_scale_does_not_matter(rng, factor):
    x = draw(rng, 6, 3)
    # The entries are rounded once more, and the schedule amplifies it.
    np.testing.assert_allclose(
        orthogonalized(factor * x), orthogonalized(x), rtol=0, atol=5e-5
    )


def test_a_zero_matrix_gives_zero():
    np.testing.assert_array_equal(orthogonalized(jnp.zeros((6, 3))), 0)


def test_both_orientations_and_a_stack_of_them_agree(rng):
    x = draw(rng, 2, 6, 3)
    stack = orthogonalized(x)
    for index in range(2):
        # The same arithmetic, alone and in a stack.
        one, wide = orthogonalized(x[index]), orthogonalized(x[index].T).T
        np.testing.assert_allclose(stack[index], one, rtol=0, atol=5e-6)
        np.testing.assert_allclose(wide, one, rtol=0, atol=5e-6)


def test_products_in_bfloat16_are_near_those_in_float32(rng):
    x = draw(rng, 6, 3)
    plain = orthogonalized(x, mo.linalg.YOU)
    half = orthogonalized(x, mo.linalg.YOU, compute_dtype=jnp.bfloat16)
    assert half.dtype == jnp.float32
    difference = np.abs(half - plain).max()
    # 2⁻⁹ per operand, amplified by the five rows; and it must not be ignored.
    assert 1e-4 < difference < 0.1


def test_a_narrow_dtype_of_smaller_range_loses_no_scale(rng):
    x = draw(rng, 6, 3)
    half = orthogonalized(x, compute_dtype=jnp.float16)
    tiny = orthogonalized(np.float32(1e-20) * x, compute_dtype=jnp.float16)
    # A rounding to float16, 5e-4, may fall otherwise; the five rows amplify it.
    np.testing.assert_allclose(tiny, half, rtol=0, atol=0.05)
    assert np.abs(half).max() > 0.3


@pytest.mark.slow
def test_form_and_preconditioner_reach_the_iteration(rng):
    x = draw(rng, 12, 3)
    for form in ("direct", "gram"):
        for preconditioner in ("frobenius", "schatten"):
            options = {"form": form, "preconditioner": preconditioner}
            expected = jax.jit(functools.partial(mo.linalg.newton_schulz, **options))(x)
            # Two programs: rounding in another order (seen: 7e-7).
            found = orthogonalized(x, **options)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    frobenius, schatten = (
        orthogonalized(x, preconditioner=name) for name in ("frobenius", "schatten")
    )
    # Another norm puts the values elsewhere on the polynomial: by far no rounding.
    assert np.abs(frobenius - schatten).max() > 1e-3


@pytest.mark.parametrize("option", ["form", "preconditioner"])
def test_unknown_choices_are_refused_before_the_first_update(option, unhooked):
    unknown: dict[str, Any] = {option: "fast"}
    with pytest.raises(ValueError, match=f"{option} must be one of .*; got 'fast'"):
        mo.orthogonalize_via_newton_schulz(**unknown)
