from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manifold_optax as mo
from transforms.draws import apply, draw


def row_normalised(taken, decay, eps=1e-8):
    """NorMuon's formula for matrices `[fan_out, fan_in]`, in float64."""
    mean_square = np.zeros((*taken[0].shape[:-1], 1))
    made = []
    for o in np.asarray(taken, np.float64):
        mean = np.mean(o**2, axis=-1, keepdims=True)
        mean_square = decay * mean_square + (1 - decay) * mean
        even = o / (np.sqrt(mean_square) + eps)
        length = np.linalg.norm(o, axis=(-2, -1), keepdims=True)
        made.append(even * length / np.linalg.norm(even, axis=(-2, -1), keepdims=True))
    return made


def run(tx, taken) -> tuple[list[Any], Any]:
    state, update = tx.init({"w": taken[0]}), jax.jit(tx.update)
    made = []
    for leaf in taken:
        updates, state = update({"w": leaf}, state)
        made.append(updates["w"])
    return made, state


@pytest.mark.parametrize("decay", [0.0, 0.95])
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (2, 4, 3)])
def test_rows_are_divided_by_their_rms_over_time(rng, shape, decay):
    taken = draw(rng, 4, *shape)
    found, state = run(mo.scale_by_row_rms(decay, axes=mo.STACKED), list(taken))
    expected = row_normalised(taken.mT, decay)
    # A kernel is [fan_in, fan_out]; a dozen float32 roundings of entries below 8.
    np.testing.assert_allclose(
        jnp.stack(found).mT, np.stack(expected), rtol=0, atol=1e-5
    )
    assert state.mean_square["w"].shape == (*shape[:-2], 1, shape[-1])


def test_the_norm_is_kept_and_the_first_rows_are_equal(rng):
    update = draw(rng, 5, 3) * jnp.asarray([[1.0, 10.0, 0.1]])
    found = apply(mo.scale_by_row_rms, update=update)
    norm = np.linalg.norm(update)
    np.testing.assert_allclose(np.linalg.norm(found), norm, rtol=1e-6)
    rows = np.linalg.norm(found, axis=0)
    # `eps` is 1e-6 of the smallest root mean square here.
    np.testing.assert_allclose(rows, norm / 3**0.5, rtol=1e-5)


@pytest.mark.parametrize("axis", [-1, -2])
def test_blocks_are_matrices_of_their_own(rng, axis):
    taken = draw(rng, 2, 4, 6)
    sizes = (4, 2) if axis == -1 else (1, 3)
    found, _ = run(mo.scale_by_row_rms(axes=mo.Split(sizes, axis)), list(taken))
    for block, made in zip(
        np.split(np.asarray(taken), [sizes[0]], axis=axis),
        np.split(np.stack(found), [sizes[0]], axis=axis),
        strict=True,
    ):
        expected = row_normalised(block.mT if hasattr(block, "mT") else block, 0.95)
        np.testing.assert_allclose(
            np.swapaxes(made, -1, -2), expected, rtol=0, atol=1e-5
        )


def test_rows_are_outputs_whatever_the_array_order(rng):
    taken = draw(rng, 2, 4, 6)
    plain, _ = run(mo.scale_by_row_rms(axes=mo.STACKED), list(taken))
    turned, _ = run(mo.scale_by_row_rms(axes=mo.OUT_IN), list(taken.mT))
    np.testing.assert_allclose(jnp.stack(turned).mT, jnp.stack(plain), atol=1e-6)


@pytest.mark.promise(
    "Faults",
    "Rows of zeros stay zero",
    on="`scale_by_row_rms`, `RowRms`",
)
def test_zero_rows_and_matrices_stay_zero(rng):
    tx = mo.scale_by_row_rms()
    update = {"w": draw(rng, 4, 3).at[:, 1].set(0), "z": jnp.zeros((4, 3))}
    found, state = jax.jit(tx.update)(update, tx.init(update))
    np.testing.assert_array_equal(found["z"], 0)
    np.testing.assert_array_equal(found["w"][:, 1], 0)
    assert np.isfinite(found["w"]).all()
    assert np.isfinite(state.mean_square["w"]).all()


def test_low_precision_updates_have_float32_averages(rng):
    update = {"w": draw(rng, 4, 3).astype(jnp.bfloat16)}
    tx: Any = mo.scale_by_row_rms()
    found, state = tx.update(update, tx.init(update))
    assert found["w"].dtype == jnp.bfloat16
    assert state.mean_square["w"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"decay": 1.0}, r"decay must be in \[0, 1\)"), ({"eps": 0.0}, "eps must be")],
)
def test_numbers_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        mo.scale_by_row_rms(**arguments)


def test_the_size_of_the_manifold_is_a_factor_of_the_update(rng):
    point, update = draw(rng, 2, 4, 6), draw(rng, 2, 4, 6)
    norms = np.linalg.norm(np.asarray(point, np.float64), axis=(-2, -1), keepdims=True)
    for manifold, size in (
        (mo.Sphere("kept"), norms),
        (mo.Stiefel("rms"), np.sqrt(6 / 4)),
        (mo.Sphere(3.0), 3.0),
    ):
        found = apply(mo.scale_by_size, manifold, point=point, update=update)
        np.testing.assert_allclose(found, size * np.asarray(update), rtol=1e-6)
