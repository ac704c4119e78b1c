from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manifold_optax as mo
import oracles
from conformance.steps import on_manifold
from transforms.draws import apply, draw, draw_pair

# Float32 rounding of matrices with singular values near 1.
ROUNDING = 1e-5


def steepest(manifold, norm, point, gradient):
    return apply(mo.steepest, manifold, norm, point=point, update=gradient)


def normalised(x):
    return x / np.linalg.norm(x)


# Each row of the table: manifold, norm, oracle of the direction on the unit manifold.
ROWS = {
    "Euclidean-Frobenius": (mo.Euclidean(), mo.Frobenius(), lambda w, g: normalised(g)),
    "Euclidean-Max": (mo.Euclidean(), mo.Max(), lambda w, g: np.sign(g)),
    "Euclidean-Spectral": (
        mo.Euclidean(),
        mo.Spectral(),
        lambda w, g: oracles.polar(g),
    ),
    "Sphere-Frobenius": (mo.Sphere(2.0), mo.Frobenius(), oracles.sphere_direction),
    "Stiefel-Frobenius": (
        mo.Stiefel(2.0),
        mo.Frobenius(),
        lambda w, g: normalised(oracles.stiefel_tangent(w, g)),
    ),
    "Stiefel-Spectral": (mo.Stiefel(2.0), mo.Spectral(), oracles.square_direction),
}


@pytest.mark.parametrize("row", ROWS)
def test_the_direction_is_that_of_the_oracle(rng, row):
    manifold, norm, oracle = ROWS[row]
    point, gradient = draw_pair(rng, manifold, (4, 4))
    found = steepest(manifold, norm, point, gradient)
    size = manifold.size
    w, g = np.asarray(point, np.float64) / size, np.asarray(gradient, np.float64)
    np.testing.assert_allclose(found, size * oracle(w, g), rtol=0, atol=10 * ROUNDING)
    assert np.sum(found * gradient) > 0


@pytest.mark.parametrize("shape", [(6, 3), (3, 6)])
@pytest.mark.parametrize("row", ROWS)
def test_the_direction_has_the_length_of_the_manifolds_size(rng, row, shape):
    manifold, norm, _ = ROWS[row]
    point, gradient = draw_pair(rng, manifold, shape)
    found = steepest(manifold, norm, point, gradient)
    length = norm.value(found) / manifold.size
    # The dual solver stays up to a permille inside the unit ball.
    np.testing.assert_allclose(length, 1, atol=1e-3 if row.endswith("ral") else 1e-6)
    doubled = steepest(manifold, norm, point, 1e3 * gradient)
    np.testing.assert_allclose(doubled, found, rtol=0, atol=10 * ROUNDING)


@pytest.mark.parametrize("row", ["Sphere-Frobenius", "Stiefel-Frobenius"])
def test_a_radial_gradient_gives_zero(rng, row):
    manifold, norm, _ = ROWS[row]
    point, _ = draw_pair(rng, manifold, (6, 3))
    found = steepest(manifold, norm, point, 7 * point)
    np.testing.assert_array_equal(found, 0)


def test_updates_keep_their_dtype(rng):
    point, gradient = draw_pair(rng, mo.Sphere(), (6, 3))
    half = gradient.astype(jnp.bfloat16)
    assert steepest(mo.Sphere(), mo.Frobenius(), point, half).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("manifold", "norm"),
    [(mo.Sphere(), mo.Max()), (mo.Stiefel(), mo.Max())],
)
def test_an_unknown_pair_is_an_error_that_prints_the_table(manifold, norm):
    with pytest.raises(ValueError, match="No direction is known for") as caught:
        mo.steepest(manifold, norm)
    for word in (str(manifold), str(norm), "mo.manifold_muon", "hyperspherical"):
        assert word in str(caught.value)


def test_missing_parameters_name_the_pair():
    tx = mo.steepest(mo.Sphere(), mo.Frobenius())
    with pytest.raises(ValueError, match=r"steepest\(Sphere\(radius=1.0\), Frobenius"):
        tx.update({"w": jnp.ones((4, 2))}, tx.init({}))


CERTIFIED = {
    "Stiefel": (mo.Stiefel(2.0), {"tolerance": 1e-3}),
    "Sphere": (mo.Sphere(3.0), {}),
}


@pytest.mark.parametrize("name", CERTIFIED)
@pytest.mark.slow
def test_a_certificate_bounds_what_the_direction_loses(rng, name):
    manifold, options = CERTIFIED[name]
    tx: Any = mo.steepest(
        manifold, mo.Spectral(), certify=True, axes=mo.STACKED, **options
    )
    points = {"w": on_manifold(manifold, draw(rng, 3, 6, 4))}
    gradients = {"w": draw(rng, 3, 6, 4)}
    state = tx.init(points)
    np.testing.assert_array_equal(state.gap["w"], np.ones(3, np.float32))
    updates, new = jax.jit(tx.update)(gradients, state, points)
    gaps = np.asarray(new.gap["w"])
    assert jax.tree.structure(new) == jax.tree.structure(state)
    assert gaps.shape == (3,)
    assert (gaps >= 0).all()
    assert (gaps < options.get("tolerance", 0.2)).all()
    for direction, gradient, point, gap in zip(
        updates["w"], gradients["w"], points["w"], gaps, strict=True
    ):
        unit = np.asarray(direction, np.float64) / manifold.size
        g = np.asarray(gradient, np.float64)
        value = np.sum(unit * g)
        # No tangent direction of length 1 may reach more than the certificate allows.
        drawn = draw(rng, 50, 6, 4) + 5 * gradient[None]
        tangent = jax.vmap(manifold.unit().to_tangent, (None, 0))
        others = np.asarray(tangent(point / manifold.size, drawn), np.float64)
        reached = np.sum(others * g, axis=(1, 2))
        reached /= np.linalg.norm(others, 2, axis=(1, 2))
        assert reached.max() <= value / (1 - gap) * (1 + ROUNDING)


def test_without_a_certificate_there_is_no_state(rng):
    point, _ = draw_pair(rng, mo.Stiefel(), (6, 3))
    tx = mo.steepest(mo.Stiefel(), mo.Spectral())
    assert tx.init({"w": point}) == optax.EmptyState()


def test_a_leaf_without_update_keeps_its_gap(rng):
    params = {"a": draw_pair(rng, mo.Stiefel(), (6, 3))[0], "b": jnp.eye(6, 3)}
    tx = mo.steepest(mo.Stiefel(), mo.Spectral(), certify=True)
    state = tx.init(params)
    taken = {"a": draw(rng, 6, 3), "b": None}
    updates, new = jax.jit(tx.update)(taken, state, params)
    assert updates["b"] is None
    assert float(new.gap["b"]) == 1
    assert float(new.gap["a"]) < 0.1


@pytest.mark.parametrize(
    ("manifold", "norm", "options"),
    [
        (mo.Sphere(), mo.Frobenius(), {"certify": True}),
        (mo.Euclidean(), mo.Spectral(), {"certify": True}),
        (mo.Sphere(), mo.Spectral(), {"tolerance": 0.1}),
    ],
)
def test_what_a_pair_cannot_promise_is_an_error(manifold, norm, options):
    with pytest.raises(ValueError, match=type(manifold).__name__):
        mo.steepest(manifold, norm, **options)
