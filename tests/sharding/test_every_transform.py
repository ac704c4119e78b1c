"""Every public transformation on eight devices gives what it gives on one.

The cases are those of the conformance table that work on matrices alone. Two updates of
one compiled program each: the second starts from the sharded state of the first.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import manifold_optax as mo
from conformance.case import Case
from conformance.steps import filled
from conformance.table import CASES
from sharding.layouts import mesh_of, points_on, TOLERANCE

pytestmark = pytest.mark.devices

SHAPES = {"tall": (16, 8), "wide": (8, 16), "stack": (8, 16, 8)}
"""Ten matrices of one stack where they may be transposed: one kernel to compile."""

CUT = {name: P(*(None,) * (len(shape) - 2), "x", "y") for name, shape in SHAPES.items()}
"""Two-dimensional: over 2 × 4 devices."""

LAYOUTS: dict[str, tuple[Callable[..., mo.sharding.Placement], dict[str, P]]] = {
    "two-dimensional": (mo.sharding.owned, CUT),
    # Two replicas of what four devices hold together.
    "hybrid": (
        mo.sharding.owned,
        {"tall": P("y"), "wide": P("y"), "stack": P(None, "y")},
    ),
    # Experts lie on a device each.
    "batch": (mo.sharding.owned, CUT | {"stack": P(("x", "y"))}),
    "sliced": (mo.sharding.sliced, CUT),
    "auto": (mo.sharding.auto, CUT),
}

FAST = {
    ("momentum", "two-dimensional"),
    ("tangent_project-Sphere", "hybrid"),
    ("scale_by_row_rms", "batch"),
    ("shrink_norm-RowRms", "batch"),
    ("add_spectral_weight_decay", "sliced"),
    ("scale_by_size", "sliced"),
    ("hyperspherical_descent", "auto"),
}
"""Each layout, and each transformation that no other test runs on a mesh by day.

The last one retracts, too. `test_exchange` runs muon, `test_presets` manifold Muon and
the dual ascent, `test_fused` the orthogonalization and the scales of shapes. Nightly
all pairs run.
"""


def each_pair() -> pytest.MarkDecorator:
    """Every case in every layout."""
    pairs = [
        pytest.param(
            case,
            layout,
            id=f"{case.name}-{layout}",
            marks=() if (case.name, layout) in FAST else (pytest.mark.slow,),
        )
        for case in CASES
        if not (case.whole_model or case.names_leaves)
        for layout in LAYOUTS
    ]
    return pytest.mark.parametrize(("case", "layout"), pairs)


def inputs_of(case: Case) -> tuple[Any, list[Any]]:
    """Parameters on the manifold, and two gradients."""
    points = points_on(case.manifold, filled(SHAPES, 0))
    return points, [filled(SHAPES, 1), filled(SHAPES, 2)]


def step_of(tx: Any) -> Callable[..., Any]:
    def step(gradient: Any, state: Any, params: Any) -> Any:
        updates, state = tx.update(gradient, state, params)
        return updates, state, optax.apply_updates(params, updates)

    return step


def two_steps(step: Any, gradients: list[Any], state: Any, params: Any) -> Any:
    """Updates and states of two steps."""
    taken = []
    for gradient in gradients:
        updates, state, params = step(gradient, state, params)
        taken.append((updates, state))
    return taken


@functools.cache
def on_one_device(case: Case) -> Any:
    params, gradients = inputs_of(case)
    tx = case.make()
    step = jax.jit(step_of(tx))
    return jax.device_get(two_steps(step, gradients, tx.init(params), params))


def assert_same(actual: Any, expected: Any) -> float:
    """The largest difference, relative to the largest entry of each array.

    Gaps, tangencies and residuals are relative errors already, of the size of rounding:
    they are compared on the scale that they are relative to. What is measured besides
    is compared on its own scale where that is larger.
    """
    worst = 0.0
    paired, treedef = jax.tree_util.tree_flatten_with_path(expected)
    for (keys, wanted), got in zip(paired, treedef.flatten_up_to(actual), strict=True):
        wanted = np.asarray(wanted)
        # NaN stands for numbers that no one asked for; it must be NaN on both.
        scale = np.abs(wanted[~np.isnan(wanted)]).max(initial=0)
        if any(getattr(key, "name", None) in mo.diagnostics.FIELDS for key in keys):
            scale = max(1, scale)
        np.testing.assert_allclose(
            np.asarray(got),
            wanted,
            rtol=0,
            atol=TOLERANCE * float(scale),
            err_msg=jax.tree_util.keystr(keys),
        )
        off = np.abs(np.asarray(got) - wanted)
        worst = max(worst, off[~np.isnan(off)].max(initial=0) / max(scale, 1e-30))
    return worst


@pytest.mark.promise(
    "Layouts and devices",
    "Two sharded updates are those of one device, and no loop communicates",
    on=(
        "every transformation of matrices; 8 devices, Auto axes; "
        "two-dimensional, hybrid replicas (HSDP), batches; owned, sliced, auto"
    ),
)
@each_pair()
def test_two_updates_equal_those_of_one_device(
    case: Case, layout: str, measured: Callable[..., None]
) -> None:
    place, specs = LAYOUTS[layout]
    mesh = mesh_of(AxisType.Auto)
    where = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    params, gradients = inputs_of(case)
    params = jax.device_put(params, where)
    gradients = [jax.device_put(gradient, where) for gradient in gradients]
    stacked = {"axes": mo.STACKED} if case.takes_axes else {}
    arguments = {**stacked, **case.arguments, **case.numbers}
    if "placement" in inspect.signature(case.factory).parameters:
        arguments["placement"] = place(mesh, params)
    tx = case.factory(**arguments)
    of_state = mo.sharding.state_shardings(tx, params)
    state = jax.device_put(tx.init(params), of_state)
    step = jax.jit(step_of(tx), out_shardings=(where, of_state, where))
    compiled = step.lower(gradients[0], state, params).compile()
    actual = two_steps(compiled, gradients, state, params)
    worst = assert_same(jax.device_get(actual), on_one_device(case))
    measured(worst, at_most=TOLERANCE)
    assert mo.programs.collectives(compiled).inside_loops == 0
