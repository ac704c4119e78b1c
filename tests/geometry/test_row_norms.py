"""Norms that know rows from columns, and what only they and L1 promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from manifold_optax.geometry import (
    Ball,
    ColumnRms,
    Frobenius,
    L1,
    Max,
    Oblique,
    PNorm,
    RmsToRms,
    RowRms,
    Spectral,
    steepest_direction,
)

EPS = float(np.finfo(np.float32).eps)


def gaussian(shape, seed=0):
    x = np.random.default_rng(seed).standard_normal(shape)
    return jnp.asarray(x, jnp.float32)


def test_rows_of_a_matrix_are_columns_of_its_transpose():
    x = gaussian((6, 4))
    assert float(RowRms().value(x)) == float(ColumnRms().value(x.T))
    assert float(RowRms().dual_value(x)) == pytest.approx(
        float(ColumnRms().dual_value(x.T)), rel=4 * EPS
    )
    # Sums in another order.
    np.testing.assert_allclose(
        RowRms().steepest(x), ColumnRms().steepest(x.T).T, atol=4 * EPS
    )


def test_every_line_has_root_mean_square_one():
    rows = np.asarray(RowRms().steepest(gaussian((6, 4))), np.float64)
    columns = np.asarray(ColumnRms().steepest(gaussian((6, 4))), np.float64)
    np.testing.assert_allclose(np.mean(rows**2, axis=1), 1, atol=4 * EPS)
    np.testing.assert_allclose(np.mean(columns**2, axis=0), 1, atol=4 * EPS)


@pytest.mark.promise(
    "Faults",
    "Rows of zeros stay zero",
    on="`scale_by_row_rms`, `RowRms`",
)
def test_zero_lines_stay_zero_and_scales_of_lines_do_not_matter():
    x = np.array(gaussian((6, 4)))
    x[2] = 0
    x[3] *= 1e-30
    x[4] *= 1e30
    found = np.asarray(RowRms().steepest(jnp.asarray(x)))
    assert not found[2].any()
    np.testing.assert_allclose(
        np.mean(found[[0, 1, 3, 4, 5]] ** 2, axis=1), 1, rtol=1e-6
    )


def test_a_nan_stays_visible_in_its_own_row():
    x = gaussian((6, 4)).at[2, 1].set(jnp.nan)
    found = np.asarray(RowRms().steepest(x))
    assert np.isnan(found[2]).any()
    assert np.isfinite(np.delete(found, 2, axis=0)).all()
    assert np.isnan(L1().steepest(x)[2, 1])


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_l1_shows_entries_that_are_not_finite(bad):
    found = np.asarray(L1().steepest(gaussian((6, 4)).at[2, 1].set(bad)))
    assert np.isnan(found[2, 1])
    assert np.isfinite(np.delete(found.ravel(), 9)).all()


@pytest.mark.promise(
    "Faults",
    "What is not finite stays in its own row or column",
    on="constraints of rows or columns",
)
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
@pytest.mark.parametrize(
    ("manifold", "norm", "place"),
    [
        (Oblique(), RowRms(), (2, slice(None))),
        (Oblique(of="columns"), ColumnRms(), (slice(None), 1)),
        (Ball(RowRms()), RowRms(), (2, slice(None))),
        (Ball(ColumnRms()), ColumnRms(), (slice(None), 1)),
        (Ball(Max()), Max(), (2, 1)),
    ],
    ids=str,
)
def test_what_is_not_finite_stays_in_its_block(manifold, norm, place, bad):
    direction = jax.jit(steepest_direction(manifold, norm))
    point = jax.jit(manifold.project)(gaussian((6, 4), 1))
    gradient = gaussian((6, 4))
    healthy = np.asarray(direction(point, gradient.at[place].set(0)))
    found = np.array(direction(point, gradient.at[2, 1].set(bad)))
    assert np.isnan(found[place]).all()
    found[place] = healthy[place]
    np.testing.assert_array_equal(found, healthy)


def test_rms_to_rms_is_a_gain_of_root_mean_squares():
    x = gaussian((3, 5))
    vt = np.linalg.svd(np.asarray(x, np.float64))[2]
    image = np.asarray(x, np.float64) @ vt[0]
    gain = np.sqrt(np.mean(image**2) / np.mean(vt[0] ** 2))
    assert float(RmsToRms().value(x)) == pytest.approx(gain, rel=8 * EPS)


def test_the_first_of_equal_entries_moves():
    x = jnp.array([[1.0, -2.0], [2.0, 0.0]])
    np.testing.assert_array_equal(L1().steepest(x), [[0, -1], [0, 0]])
    np.testing.assert_array_equal(L1().steepest(-x), [[0, 1], [0, 0]])


def test_which_norms_are_transposable():
    turned = (Frobenius(), Max(), L1(), PNorm(3.0), Spectral())
    assert all(norm.transposable for norm in turned)
    assert not any(norm.transposable for norm in (RmsToRms(), RowRms(), ColumnRms()))


@pytest.mark.parametrize("p", [1.0, 0.0, float("inf"), float("nan")])
def test_exponents_out_of_range_are_refused(p, unhooked):
    with pytest.raises(ValueError, match=f"p must satisfy 1 < p < inf, got {p}"):
        PNorm(p)
