"""Products of updates with shares: dtypes, stacks, absent leaves, messages."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manifold_optax as mo
from manifold_optax.modular._algebra._module import Atom
from manifold_optax.modular._budgets._atom_axes import axes_of_atoms
from manifold_optax.modular._budgets._budget import budget
from manifold_optax.modular._budgets._scale import (
    scale_by_modular_budget,
    scale_to_unit_norm,
)
from modular.handmade import gaussian, Handmade, handmade

SHAPES = {"layers": (3, 4, 8), "head": (8, 2)}
ATOMS = (Atom("head", "readout"), Atom("layers", axes=mo.STACKED))
# One product in float32 rounds once, half a unit of 1.2e-7.
ROUNDING = 1.2e-7


def module(atoms: Any = ATOMS, shapes: Any = SHAPES) -> Handmade:
    return handmade(gaussian(shapes), atoms, {"layers": [1.0, 2.0, 4.0], "head": 3.0})


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_each_slice_is_multiplied_by_its_share(dtype: Any) -> None:
    updates = gaussian(SHAPES, 1, dtype)
    tx = scale_by_modular_budget(module())
    state = tx.init(updates)
    assert state == optax.EmptyState()
    found, _ = jax.jit(tx.update)(updates, state)
    shares = np.array([1 / 4, 1 / 8, 1 / 16]).reshape(3, 1, 1)
    wanted = {"layers": shares, "head": 1 / 12}
    for path, share in wanted.items():
        assert found[path].dtype == dtype
        exact = np.asarray(updates[path], np.float64) * share
        # Rounded once, to the dtype: half a unit; float32's rounding stands before.
        rounding = ROUNDING + float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(np.asarray(found[path], np.float64), exact, rounding)


def test_nested_stacks_have_a_share_for_each_slice() -> None:
    params = {"layers": jnp.ones((2, 3, 4, 8))}
    numbers = {"layers": [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]}
    nested = handmade(params, [Atom("layers", axes=mo.STACKED)], numbers)
    tx = scale_by_modular_budget(nested)
    found: Any = tx.update(params, tx.init(params))[0]
    found = found["layers"]
    wanted = np.reshape([1 / 6 / 2**k for k in range(6)], (2, 3, 1, 1))
    np.testing.assert_allclose(found, np.broadcast_to(wanted, found.shape), ROUNDING)


def test_a_module_stands_for_its_nominal_budget() -> None:
    updates = gaussian(SHAPES)
    found = [
        scale_by_modular_budget(given).update(updates, optax.EmptyState())[0]
        for given in (module(), budget(module()))
    ]
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_absent_leaves_pass() -> None:
    updates = {"layers": None, "head": optax.MaskedNode()}
    tx = scale_by_modular_budget(module())
    assert tx.update(updates, tx.init(updates))[0] == updates


def test_a_parameter_without_a_share_is_named() -> None:
    tx = scale_by_modular_budget(module())
    params = gaussian(SHAPES | {"bias": (2,)})
    with pytest.raises(ValueError, match=r"'bias' of shape \(2,\) has no share"):
        tx.init(params)
    with pytest.raises(ValueError, match="'bias'"):
        tx.update(params, optax.EmptyState())


def test_another_number_of_slices_is_named() -> None:
    params = gaussian(SHAPES | {"layers": (2, 4, 8)})
    with pytest.raises(ValueError, match=r"3 shares for 'layers'.*\(2, 4, 8\)"):
        scale_by_modular_budget(module()).init(params)


def test_a_module_of_another_kind(unhooked: None) -> None:
    wrong: Any = {"layers": 1.0}
    with pytest.raises(TypeError, match=r"mo\.modular\.read"):
        scale_by_modular_budget(wrong)


_SLOW = pytest.mark.slow  # its solver takes seconds to compile


@pytest.mark.parametrize(
    ("axes", "manifold", "norm"),
    [
        (mo.STACKED, mo.Sphere(3.0), mo.Frobenius()),
        (mo.Split((2, 6)), mo.Euclidean(), mo.RmsToRms()),
        pytest.param(
            mo.Split((1, 3) * 2), mo.Sphere("rms"), mo.Frobenius(), marks=_SLOW
        ),
        pytest.param(mo.STACKED, mo.Stiefel("rms"), mo.Spectral(), marks=_SLOW),
        pytest.param(mo.STACKED, mo.Stiefel(3.0), mo.RmsToRms(), marks=_SLOW),
        pytest.param(mo.Split((1, 7)), mo.Stiefel("rms"), mo.RmsToRms(), marks=_SLOW),
    ],
)
def test_directions_get_norm_1(axes: Any, manifold: mo.Manifold, norm: mo.Norm) -> None:
    atom = Atom("layers", axes=axes, manifold=manifold, norm=norm)
    known = axes_of_atoms([atom])
    project = jax.jit(lambda points: mo.project(points, manifold, axes=known))
    params = project(gaussian({"layers": (3, 4, 8)}))
    tx = optax.chain(
        mo.steepest(manifold, norm.free_of_shape, axes=known),
        scale_to_unit_norm(manifold, norm, axes=known),
    )
    gradient = gaussian({"layers": (3, 4, 8)}, 1)
    found, _ = jax.jit(tx.update)(gradient, tx.init(params), params)
    sizes = axes.sizes if isinstance(axes, mo.Split) else (8,)
    leaf = np.asarray(found["layers"], np.float64)
    for block in np.split(leaf, np.cumsum(sizes)[:-1], axis=-1):
        fan_in, fan_out = block.shape[-2:]
        order = "fro" if norm == mo.Frobenius() else 2
        scale = math.sqrt(fan_in / fan_out) if norm == mo.RmsToRms() else 1.0
        values = scale * np.linalg.norm(block, order, axis=(-2, -1))
        # Exact directions are off by a few rounding units of 1.2e-7, that of a single
        # column on mo.Stiefel by 4e-6.
        np.testing.assert_allclose(values, 1.0, rtol=1e-5)
