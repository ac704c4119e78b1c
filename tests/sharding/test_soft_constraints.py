"""Decays and row normalisation on eight devices give the numbers of one."""

from typing import Any

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import manifold_optax as mo
from sharding.layouts import assert_close, mesh_of, trees

pytestmark = pytest.mark.devices

# In every layout the short side of both leaves is whole.
SPECS = {"tall": P("x", None), "batch": P(None, "x", None)}

MAKERS = {
    "add_spectral_weight_decay": lambda placement: mo.add_spectral_weight_decay(
        0.5, steps=64, axes=mo.STACKED, placement=placement
    ),
    "shrink_norm": lambda placement: mo.shrink_norm(
        mo.Spectral(),
        optax.constant_schedule(0.3),
        axes=mo.STACKED,
        placement=placement,
    ),
    "momentum": lambda placement: mo.momentum(
        0.9, transport=mo.Stiefel(), axes=mo.STACKED, placement=placement
    ),
    "retract": lambda placement: mo.retract(
        mo.Stiefel(), every=2, axes=mo.STACKED, placement=placement
    ),
    "scale_by_row_rms": lambda placement: mo.scale_by_row_rms(axes=mo.STACKED),
}


@pytest.mark.parametrize(
    "kind", [AxisType.Explicit, pytest.param(AxisType.Auto, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    "recipe",
    [mo.sharding.sliced, pytest.param(mo.sharding.owned, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize(
    "name",
    [
        # The rows have no placement. The others do no more than the transforms of
        # `test_placements`; `test_every_transform` slices the decay by day.
        "scale_by_row_rms",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "add_spectral_weight_decay",
                "shrink_norm",
                "momentum",
                "retract",
            )
        ),
    ],
)
def test_two_sharded_steps(
    name: str, recipe: Any, kind: AxisType, rng: np.random.Generator
) -> None:
    gradients, points = ({leaf: tree[leaf] for leaf in SPECS} for tree in trees(rng))
    mesh = mesh_of(kind)
    specs = SPECS if kind == AxisType.Auto else None

    def put(tree: Any) -> Any:
        return {
            leaf: jax.device_put(x, NamedSharding(mesh, SPECS[leaf]))
            for leaf, x in tree.items()
        }

    def two_steps(tx: Any, gradients: Any, points: Any) -> Any:
        state, update = tx.init(points), jax.jit(tx.update)
        _, state = update(gradients, state, points)
        return update(gradients, state, points)

    expected = two_steps(MAKERS[name](None), gradients, points)
    placed = MAKERS[name](recipe(mesh, specs))
    assert_close(two_steps(placed, put(gradients), put(points)), expected)
