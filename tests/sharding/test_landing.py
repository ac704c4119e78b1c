"""A step of a preset on a manifold: one exchange, of gradients, points and results."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import manifold_optax as mo
from sharding.layouts import assert_close, points_on

pytestmark = pytest.mark.devices

PRESETS = {
    # The direction of `hyperball` is that of Muon, which goes by itself before.
    "manifold_muon": (mo.manifold_muon, mo.Stiefel(), 3, 2),
    "hyperspherical_descent": (mo.hyperspherical_descent, mo.Sphere(), 3, 2),
    "spel": (mo.spel, mo.Stiefel(), 3, 2),
    "hyperball": (mo.hyperball, mo.Sphere("kept"), 5, 4),
}
BY_DAY = ("hyperspherical_descent", AxisType.Auto)


@pytest.mark.promise(
    "Layouts and devices",
    "A step of a preset on a manifold sends each gradient, point and result once: the "
    "owner keeps the point between direction and retraction",
    on="manifold Muon, SPEL, hyperspherical descent, hyperball; owned, 8 devices",
)
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(
            name, kind, marks=() if (name, kind) == BY_DAY else pytest.mark.slow
        )
        for name in PRESETS
        for kind in (AxisType.Auto, AxisType.Explicit)
    ],
)
def test_a_step_on_a_manifold_is_one_exchange(
    name: str,
    kind: AxisType,
    rng: np.random.Generator,
    measured: Callable[..., None],
) -> None:
    preset, manifold, trees_sent, all_to_alls = PRESETS[name]
    shapes = {"w": (24, 16, 8)}
    gradients, points = (
        {n: jnp.asarray(rng.standard_normal(s), jnp.float32) for n, s in shapes.items()}
        for _ in range(2)
    )
    points = points_on(manifold, points)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    spec = P(None, "x", None)
    specs = dict.fromkeys(shapes, spec) if kind == AxisType.Auto else None
    placement = mo.sharding.owned(mesh, specs)
    alone = preset(0.1, momentum=None, axes=mo.STACKED)
    tx = preset(0.1, momentum=None, axes=mo.STACKED, placement=placement)
    expected = jax.jit(lambda g, p: alone.update(g, alone.init(p), p)[0])

    put = jax.device_put((gradients, points), NamedSharding(mesh, spec))
    layout = mo.sharding.state_shardings(tx, put[1])
    state = jax.jit(tx.init, out_shardings=layout)(put[1])
    compiled = jax.jit(tx.update).lower(put[0], state, put[1]).compile()
    assert_close(compiled(put[0], state, put[1])[0], expected(gradients, points))

    found = mo.programs.collectives(compiled)
    assert found.inside_loops == 0
    assert found.count("all-to-all") == all_to_alls
    # Three matrices for each owner, so that nothing is padded.
    shard = sum(x.nbytes for x in points.values()) / 8
    bound = trees_sent * 7 / 8 * shard
    # Besides, numbers of matrices are gathered or added: the tangency of manifold Muon,
    # and the norms of `Sphere("kept")`.
    (sent,) = (kind.outside for kind in found.kinds if kind.name == "all-to-all")
    measured(sent.wire / bound, at_most=1 + 1e-6)
