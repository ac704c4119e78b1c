"""The oblique manifold and its directions in the norms of rows and columns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from manifold_optax.geometry import ColumnRms, Oblique, RowRms, steepest_direction
from operations import EPS, operate, SHAPE

PAIRS = ((Oblique(), RowRms()), (Oblique(of="columns"), ColumnRms()))
everywhere = pytest.mark.parametrize(("manifold", "norm"), PAIRS, ids=str)


def axis_of(manifold):
    return 1 if manifold.of == "rows" else 0


def unit_lines(x, manifold):
    length = np.linalg.norm(x, axis=axis_of(manifold), keepdims=True)
    return x / np.where(length > 0, length, 1)


directions = {pair: jax.jit(steepest_direction(*pair)) for pair in PAIRS}


@pytest.mark.parametrize("of", ["rows", "columns"])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e15])
def test_laws(of, scale):
    manifold = Oblique(2.0, of)
    x, v = np.random.default_rng(0).standard_normal((2, 2, *SHAPE))
    x[0, 3], x[1, :, 2] = 0, 0
    found = operate(manifold, scale * x, v)
    for w, u, point, _, tangent, moved in zip(x, v, *found, strict=True):
        base = unit_lines(w, manifold)
        # Rounding of float32 at size 2.
        np.testing.assert_allclose(point, 2 * base, atol=8 * EPS)
        along = np.sum(base * u, axis=axis_of(manifold), keepdims=True)
        np.testing.assert_allclose(tangent, u - base * along, atol=16 * EPS)
        expected = 2 * unit_lines(2 * base + u, manifold)
        np.testing.assert_allclose(moved, expected, atol=16 * EPS)


def test_residual_of_the_worst_line():
    x = np.eye(3)
    x[1] *= 1.5
    assert float(Oblique().residual(jnp.asarray(x))) == pytest.approx(0.5)
    # A zero line is not on the manifold, and projection leaves it there.
    x[0] = 0
    point = Oblique().project(jnp.asarray(x))
    assert not point[0].any()
    assert float(Oblique().residual(point)) == 1


@everywhere
def test_direction_is_the_normalised_tangent_part_of_each_line(manifold, norm):
    w, g = np.random.default_rng(1).standard_normal((2, *SHAPE))
    w = unit_lines(w, manifold)
    along = np.sum(w * g, axis=axis_of(manifold), keepdims=True)
    expected = unit_lines(g - w * along, manifold) * np.sqrt(SHAPE[axis_of(manifold)])
    direction = directions[manifold, norm]
    for scale in (1e-20, 1.0, 1e15):
        found = direction(
            jnp.asarray(w, jnp.float32), jnp.asarray(scale * g, jnp.float32)
        )
        # Rounding, over a tangent part of at least a third of its line.
        np.testing.assert_allclose(found, expected, atol=32 * EPS)
    assert float(norm.value(found)) == pytest.approx(1, abs=8 * EPS)


@everywhere
def test_lines_without_a_tangent_part_do_not_move(manifold, norm):
    w, g = np.random.default_rng(2).standard_normal((2, *SHAPE))
    w = unit_lines(w, manifold)
    line = (2, slice(None)) if manifold.of == "rows" else (slice(None), 2)
    g[line] = 3 * w[line]
    direction = directions[manifold, norm]
    found = np.asarray(
        direction(jnp.asarray(w, jnp.float32), jnp.asarray(g, jnp.float32))
    )
    assert not found[line].any()
    assert np.count_nonzero(found) > 0
    zero = direction(jnp.asarray(w, jnp.float32), jnp.zeros(SHAPE))
    assert not zero.any()
    bad = direction(jnp.asarray(w, jnp.float32), jnp.full(SHAPE, jnp.nan))
    assert np.isnan(bad).all()


def test_random_point_and_static_facts(unhooked):
    manifold = Oblique(3.0, "columns")
    point = manifold.random_point(jax.random.key(0), SHAPE)
    # Rounding.
    assert float(manifold.residual(point)) <= 4 * EPS
    assert manifold.unit() == Oblique(of="columns")
    assert not manifold.transposable
    with pytest.raises(ValueError, match='of must be "rows" or "columns", got 0'):
        Oblique(of=0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="radius must be a number > 0, got 'rms'"):
        Oblique("rms")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="radius must be > 0 and finite, got 0"):
        Oblique(0)
