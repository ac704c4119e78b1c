"""Proof that each optimizer did its work, measured on updates and weights alone.

Of one step of every optimizer of the table: how far what its method promises is from
true, which is rounding where the method was applied. The new weights must lie on the
manifold, the step must have the length and the singular values of the method. The same
is asked of plain SGD each time, which is far off, so that no test can pass for nothing.
All measures are NumPy's, in float64.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import manifold_optax as mo
import manifold_optax.optimizers
from conformance.case import Case, KERNELS, Tree, Tx, VECTOR
from conformance.steps import filled, gradients, parameters, update_of
from conformance.table import CASES, each_case
from conformance.test_wrappers import injected
from manifold_optax.diagnostics import COUNTS
from manifold_optax.trees import leaves_by_path

RATE, DECAY = 0.1, 0.2
ROLES = mo.roles({"kernel": mo.STACKED})

APPLIED = 0.006
"""Largest distance of what was applied: bounds of two digits, and float32."""

NOT_APPLIED = 10 * APPLIED
"""Least distance of plain SGD, for the matrix that comes nearest to it by chance."""


def values(x: np.ndarray) -> np.ndarray:
    return np.linalg.svd(x, compute_uv=False)


def beyond(numbers: Any, low: float, high: float) -> float:
    """How far the numbers are outside of an interval."""
    return float(np.max(np.maximum(low - numbers, numbers - high), initial=0))


def direction(point: np.ndarray, update: np.ndarray) -> np.ndarray:
    """The direction of a free step, which is `−rate·(direction + decay·point)`."""
    return -update / RATE - DECAY * point


def muon(point: np.ndarray, update: np.ndarray) -> float:
    fan_in, fan_out = update.shape
    scale = max(1.0, fan_out / fan_in) ** 0.5
    # The image of five steps with JORDAN's coefficients.
    return beyond(values(direction(point, update)) / scale, 0.68, 1.14)


def scion(point: np.ndarray, update: np.ndarray) -> float:
    fan_in, fan_out = update.shape
    scale = (fan_out / fan_in) ** 0.5
    return beyond(values(direction(point, update)) / scale, 1.0, 1.0)


def normuon(point: np.ndarray, update: np.ndarray) -> float:
    # At the first step each output is divided by its own length.
    lengths = np.linalg.norm(direction(point, update), axis=0)
    return beyond(lengths / lengths.mean(), 1.0, 1.0)


def sign_descent(point: np.ndarray, update: np.ndarray) -> float:
    return beyond(abs(direction(point, update)), 1.0, 1.0)


def modular(point: np.ndarray, update: np.ndarray) -> float:
    # Each matrix has a share of its own: equal singular values of any size.
    del point
    found = values(update)
    return beyond(found / found.mean(), 1.0, 1.0)


def on_stiefel(point: np.ndarray, update: np.ndarray) -> float:
    # The step is a chord of length `rate` in the spectral norm, to second order; with
    # JORDAN's polynomial in the place of the polar factor 0.68 to 1.14 of it.
    length = values(update)[0] / RATE
    residual = beyond(values(point + update), 1.0, 1.0)
    return max(residual, beyond(length, 0.65, 1.15))


def on_spectral_sphere(point: np.ndarray, update: np.ndarray) -> float:
    # On the sphere of radius 2; tangent directions have singular values near 1, and the
    # projection changes a step by its second order.
    steps, norm = values(update) / (2 * RATE), values(point + update)[0] / 2
    return max(beyond(norm, 1.0, 1.0), beyond(steps, 0.95, 1.05))


def on_sphere(point: np.ndarray, update: np.ndarray) -> float:
    radius = np.linalg.norm(point)
    # The chord of a tangent step of length 0.1: 0.0996.
    length = np.linalg.norm(update) / (radius * RATE)
    moved = np.linalg.norm(point + update) / radius
    return max(beyond(moved, 1.0, 1.0), beyond(length, 0.99, 1.0))


def hyperball(point: np.ndarray, update: np.ndarray) -> float:
    # A step of length `rate` that is not tangent: projected it is no longer than that.
    radius = np.linalg.norm(point)
    length = np.linalg.norm(update) / (radius * RATE)
    moved = np.linalg.norm(point + update) / radius
    return max(beyond(moved, 1.0, 1.0), beyond(length, 0.5, 1.0))


def muon_clip(point: np.ndarray, update: np.ndarray) -> float:
    scale = 0.2 * max(update.shape) ** 0.5
    return beyond(values(direction(point, update)) / scale, 0.68, 1.14)


PROMISES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "muon": muon,
    "manifold_muon": on_stiefel,
    "hyperspherical_descent": on_sphere,
    "spel": on_stiefel,
    "spectral_sphere": on_spectral_sphere,
    "hyperball": hyperball,
    "scion": scion,
    "normuon": normuon,
    "sign_descent": sign_descent,
    "hybrid": muon,
    "modular_optimizer": modular,
    "muon_clip": muon_clip,
}


def is_optimizer(case: Case) -> bool:
    return case.public_name in PROMISES


def off(case: Case, params: Tree, moved: Tree) -> Iterator[float]:
    """The distance of each matrix from what its optimizer promises."""
    before, after = leaves_by_path(params), leaves_by_path(moved)
    for path, leaf in before.items():
        # Those that muon_clip clips are no step of Muon any more.
        clipped = case.public_name == "muon_clip" and not path.startswith("third")
        if leaf.ndim < 2 or clipped:
            continue
        point = np.asarray(leaf, np.float64)
        update = np.asarray(after[path], np.float64) - point
        pairs = (x.reshape(-1, *x.shape[-2:]) for x in (point, update))
        for one, step in zip(*pairs, strict=True):
            yield PROMISES[case.public_name](one, step)


def assert_applied(case: Case, params: Tree, gradient: Tree, moved: Tree) -> None:
    assert max(off(case, params, moved)) < APPLIED
    plain = jax.tree.map(lambda p, g: p - RATE * g, params, gradient)
    assert min(off(case, params, plain)) > NOT_APPLIED


def alone(tx: Tx, params: Tree, gradient: Tree) -> Tree:
    updates, _ = jax.jit(tx.update)(gradient, tx.init(params), params)
    return optax.apply_updates(params, updates)


def through_hybrid(tx: Tx, params: Tree, gradient: Tree) -> Tree:
    return alone(mo.hybrid(tx, others=optax.sgd(RATE), labels=ROLES), params, gradient)


def through_partition(tx: Tx, params: Tree, gradient: Tree) -> Tree:
    labels = jax.tree.map(lambda _: "ours", params)
    return alone(optax.partition({"ours": tx}, labels), params, gradient)


def through_multi_steps(tx: Tx, params: Tree, gradient: Tree) -> Tree:
    wrapped = optax.MultiSteps(tx, every_k_schedule=2).gradient_transformation()
    update, state = jax.jit(wrapped.update), wrapped.init(params)
    _, state = update(gradient, state, params)
    updates, _ = update(gradient, state, params)
    return optax.apply_updates(params, updates)


def through_train_state(tx: Tx, params: Tree, gradient: Tree) -> Tree:
    state = TrainState.create(apply_fn=lambda: None, params=params, tx=tx)
    return jax.jit(lambda s, g: s.apply_gradients(grads=g))(state, gradient).params


class Layer(nnx.Module):
    def __init__(self, leaves: Tree) -> None:
        for name, leaf in leaves.items():
            setattr(self, name, nnx.Param(leaf))


class Model(nnx.Module):
    def __init__(self, layers: Tree) -> None:
        for name, leaves in layers.items():
            setattr(self, name, Layer(leaves))


def through_nnx(tx: Tx, params: Tree, gradient: Tree) -> Tree:
    model = Model(params)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    step = nnx.jit(lambda optimizer, model, slope: optimizer.update(model, slope))
    step(optimizer, model, nnx.state(Model(gradient), nnx.Param))
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


WRAPPERS = {
    "hybrid": through_hybrid,
    "partition": through_partition,
    "MultiSteps": through_multi_steps,
    "inject_hyperparams": alone,
    "TrainState": through_train_state,
    "nnx.Optimizer": through_nnx,
}


def each_pair() -> pytest.MarkDecorator:
    """Every optimizer in every wrapper; one of them by day."""
    pairs = [
        pytest.param(
            case,
            wrapper,
            id=f"{case.name}-{wrapper}",
            marks=() if (case.name, wrapper) == day else (pytest.mark.slow,),
        )
        for case in filter(is_optimizer, CASES)
        for wrapper in WRAPPERS
        if wrapper != "hybrid" or not case.whole_model
        for day in [("hyperspherical_descent", "hybrid")]
    ]
    return pytest.mark.parametrize(("case", "wrapper"), pairs)


def test_every_optimizer_promises_something() -> None:
    """Every public factory of `optimizers` and `modular` that is no building block."""
    optimizers = set(manifold_optax.optimizers.__all__) | {"modular_optimizer"}
    assert optimizers == set(PROMISES)


@each_case(is_optimizer, compiles=True)
def test_an_optimizer_did_to_its_matrices_what_it_promises(case: Case) -> None:
    params, gradient = parameters(case), gradients(case)
    updates, _ = update_of(case)(gradient, case.make().init(params), params)
    assert_applied(case, params, gradient, optax.apply_updates(params, updates))


@each_pair()
def test_it_does_so_in_every_wrapper(case: Case, wrapper: str) -> None:
    params, gradient = parameters(case), gradients(case)
    tx = injected(case) if wrapper == "inject_hyperparams" else case.make()
    if wrapper == "hybrid":
        params |= filled(VECTOR, 2)
        gradient |= filled(VECTOR, 3)
    moved = WRAPPERS[wrapper](tx, params, gradient)
    assert_applied(case, params, gradient, moved)


@pytest.mark.slow
@each_case(is_optimizer)
def test_describe_and_monitor_agree_on_what_was_applied(case: Case) -> None:
    params, gradient = parameters(case), gradients(case)
    tx = mo.monitor(case.make(), axes=ROLES, measures=COUNTS)
    described = {
        leaf.path
        for leaf in mo.describe(tx, params).leaves
        if set(leaf.links) - {"monitor", "qk_clip", "others"}
    }
    _, state = jax.jit(tx.update)(gradient, tx.init(params), params)
    counts = mo.diagnostics.collect(state)
    assert {
        path for path, n in counts["applied"].items() if np.all(n == 1)
    } == described
    assert not any(np.any(n) for n in counts["skipped"].values())


def test_a_matrix_that_no_optimizer_has_is_seen_by_both() -> None:
    params, gradient = filled(KERNELS, 0), filled(KERNELS, 1)
    frozen = mo.roles({"third": mo.Role("frozen", mo.STACKED), ".*": mo.STACKED})
    parts = {"matrix": optax.sgd(RATE), "frozen": optax.set_to_zero()}
    tx = mo.monitor(mo.hybrid(parts, labels=frozen), axes=frozen, measures=COUNTS)
    _, state = jax.jit(tx.update)(gradient, tx.init(params), params)
    counts = mo.diagnostics.collect(state)
    applied = {path: float(np.min(n)) for path, n in counts["applied"].items()}
    assert applied == {"first/kernel": 1, "second/kernel": 1, "third/kernel": 0}
    assert list(counts["skipped"]["third/kernel"]) == [1, 1]
    labels = {leaf.path: leaf.label for leaf in mo.describe(tx, params).leaves}
    assert labels["third/kernel"] == "frozen"
