"""The table of pairs as data: what it says, what it refuses, what it certifies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec as P

import manifold_optax as mo
import oracles
from manifold_optax.geometry import (
    certified_direction,
    has_certificate,
    needs_whole,
    pair_table,
    steepest_direction,
)

SEARCHED = (
    mo.Sphere(),
    mo.SpectralSphere(),
    mo.Oblique(),
    mo.DiagonalGram(),
    mo.Ball(mo.RmsToRms()),
    mo.Band(0.2, 1.0),
)
CERTIFIED = (mo.Stiefel(), *SEARCHED)
SPECTRAL = (mo.Spectral(), mo.RmsToRms())
WITHOUT = (
    (mo.Euclidean(), mo.Spectral()),
    (mo.Sphere(), mo.Frobenius()),
    (mo.Oblique(), mo.RowRms()),
    (mo.Ball(mo.Max()), mo.Max()),
    (mo.Sphere(), mo.PNorm(3.0)),
    (mo.PNormSphere(3.0), mo.PNorm(3.0)),
)
both = pytest.mark.parametrize("ask", [steepest_direction, certified_direction])


def on(manifold, shape=(8, 5)):
    x = jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)
    return manifold.project(x), jnp.roll(x, 1, axis=0)


@pytest.mark.promise(
    "Numbers",
    "A certified gap belongs to the direction that is returned",
    on="every pair with a certificate",
)
@pytest.mark.parametrize("manifold", CERTIFIED, ids=str)
@pytest.mark.slow
def test_the_certificate_belongs_to_the_direction(manifold):
    """The gap is of the plain direction, whatever multiple of it the norm asks."""

    @jax.jit
    def compute(point, gradient):
        plain = steepest_direction(manifold, mo.Spectral())(point, gradient)
        found = [certified_direction(manifold, n)(point, gradient) for n in SPECTRAL]
        return plain, found

    point, gradient = on(manifold)
    plain, (found, scaled) = compute(point, gradient)
    # The solver is the same, in another program (seen: equal).
    np.testing.assert_allclose(found.direction, plain, atol=1e-4)
    np.testing.assert_allclose(scaled.direction, np.sqrt(8 / 5) * plain, atol=1e-4)
    assert 0 <= float(found.gap) <= 1e-2
    assert found.gap == pytest.approx(float(scaled.gap), abs=1e-6)
    if manifold == mo.Stiefel():
        assert float(found.tangency) <= 1e-6
        optimum = oracles.stiefel_spectral_optimum(oracles.polar(point), gradient)
        assert np.sum(np.asarray(found.direction) * gradient) <= optimum.upper * 1.0001
    else:
        assert found.tangency is None


def test_a_wide_point_and_a_tolerance():
    point, gradient = on(mo.Stiefel(), (5, 8))
    ask = certified_direction(mo.Stiefel(), mo.Spectral(), tolerance=1e-4)
    found = jax.jit(ask)(point, gradient)
    assert found.direction.shape == (5, 8)
    assert 0 <= float(found.gap) <= 1e-4


def test_which_pairs_have_what():
    for manifold in CERTIFIED:
        assert all(has_certificate(manifold, norm) for norm in SPECTRAL)
    assert not any(has_certificate(*pair) for pair in WITHOUT)
    searched = [(manifold, norm) for manifold in SEARCHED for norm in SPECTRAL]
    assert all(
        needs_whole(*pair) for pair in (*searched, (mo.Stiefel(), mo.RmsToRms()))
    )
    whole = [needs_whole(*pair) for pair in WITHOUT]
    assert whole == [False, False, False, False, True, True]
    assert not needs_whole(mo.Stiefel(), mo.Spectral())


@pytest.mark.parametrize(("manifold", "norm"), WITHOUT, ids=str)
def test_pairs_without_a_certificate_are_told_those_with_one(manifold, norm):
    with pytest.raises(ValueError, match="has no certificate") as caught:
        certified_direction(manifold, norm)
    message = str(caught.value)
    for known in CERTIFIED:
        assert type(known).__name__ in message
    assert "PNorm " not in message.split("\n", 1)[1]


@pytest.mark.parametrize("manifold", SEARCHED, ids=str)
def test_a_tolerance_that_cannot_be_honoured_is_refused(manifold):
    with pytest.raises(ValueError, match=r"tolerance=0\.001 cannot.*Stiefel\.$"):
        certified_direction(manifold, mo.Spectral(), tolerance=1e-3)


@both
def test_classes_and_strings_are_refused(ask, unhooked):
    with pytest.raises(TypeError, match=r"norm must be a Norm object.*write Spectral"):
        ask(mo.Stiefel(), mo.Spectral)
    with pytest.raises(TypeError, match=r"manifold must.*the class Stiefel: write"):
        ask(mo.Stiefel, mo.Spectral())
    with pytest.raises(TypeError, match=r"e\.g\. mo\.Spectral\(\), got 'spectral'"):
        ask(mo.Stiefel(), "spectral")
    with pytest.raises(TypeError, match=r"e\.g\. mo\.Stiefel\(\), got None"):
        ask(None, mo.Spectral())


def test_markdown_has_the_rows_of_the_table():
    plain, markdown = pair_table().splitlines(), pair_table(markdown=True).splitlines()
    assert len(markdown) == len(plain) + 1
    for line, row in zip(plain[1:], markdown[2:], strict=True):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 5
        assert " ".join(line.split()) == " ".join(
            " ".join(cells).replace("`", "").split()
        )


class Half(mo.Norm):
    """A norm that the library does not know."""

    def value(self, x, *, axis_name=None):
        return mo.Frobenius().value(x, axis_name=axis_name) / 2

    def dual_value(self, gradient, *, axis_name=None):
        return 2 * mo.Frobenius().value(gradient, axis_name=axis_name)

    def steepest(self, gradient, *, axis_name=None):
        return 2 * mo.Frobenius().steepest(gradient, axis_name=axis_name)


def test_a_new_norm_needs_no_row():
    gradient = jnp.array([[3.0, 4.0]])
    found = steepest_direction(mo.Euclidean(), Half())(gradient, gradient)
    np.testing.assert_allclose(found, [[1.2, 1.6]], rtol=1e-6)
    with pytest.raises(ValueError, match="No direction is known"):
        steepest_direction(mo.Stiefel(), Half())


@pytest.mark.promise(
    "Layouts and devices",
    "Inside `shard_map` directions pass `check_vma`",
    on="every manifold × spectral, p- and Frobenius norms; whole and split rows",
)
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("norm", [mo.Spectral(), mo.PNorm(3.0), mo.Frobenius()])
def test_shard_map_sees_what_varies(norm, split):
    """Abstractly: a loop's first carry varies over the axes that its result does."""
    mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Auto,))
    axis = {"axis_name": "x"} if split else {}
    manifolds = (
        *CERTIFIED,
        mo.Euclidean(),
        mo.PNormSphere(3.0),
        mo.Oblique(of="columns"),
    )

    def compute(x):
        found = []
        for manifold in manifolds:
            try:
                direction = steepest_direction(manifold, norm)
            except ValueError:
                continue
            point = manifold.unit().project(x, **axis)
            found.append(direction(point, 2 * x, **axis))
        return found, norm.steepest(x, **axis)

    checked = jax.shard_map(compute, mesh=mesh, in_specs=P("x"), out_specs=P("x"))
    found, _ = jax.eval_shape(checked, jnp.ones((12, 5)))
    assert all(x.shape == (12, 5) for x in found)


def test_columns_of_rms_norms_match_their_lines():
    with pytest.raises(ValueError, match="No direction is known"):
        steepest_direction(mo.Oblique(of="columns"), mo.RowRms())
    assert not needs_whole(mo.Oblique(of="columns"), mo.ColumnRms())
