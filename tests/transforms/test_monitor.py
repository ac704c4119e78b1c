"""`monitor` measures what NumPy measures, passes everything on, and counts."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manifold_optax as mo
from conformance.steps import gradients, parameters, update_of
from conformance.table import CASES
from manifold_optax.diagnostics import COUNTS, MEASURES, MonitorInfo
from manifold_optax.trees import leaves_by_path

RATE = 0.1
(CASE,) = (case for case in CASES if case.name == "monitor-inner")
MANIFOLD = CASE.manifold
INNER = CASE.arguments["inner"]
TALL, WIDE, STACK = PATHS = ("first/kernel", "second/kernel", "third/kernel")


def tree(seed: int) -> Any:
    return gradients(CASE, seed)


def shapes_of(tx: Any, params: Any) -> Any:
    """What `collect` finds in the first state, as shapes."""
    return jax.eval_shape(lambda p: mo.diagnostics.collect(tx.init(p)), params)


def steps(*taken: Any) -> list[Any]:
    """The updates and the state after each gradient; the parameters stay."""
    params, found = parameters(CASE), []
    state = CASE.make().init(params)
    for gradient in taken:
        updates, state = update_of(CASE)(gradient, state, params)
        found.append((updates, state))
    return found


def expected(param: Any, gradient: Any) -> dict[str, Any]:
    """The measures of one leaf after one step of descent, by singular values."""
    p, g = np.asarray(param, np.float64), np.asarray(gradient, np.float64)
    u = -RATE * g
    weight = p + u
    values = np.linalg.svd(u, compute_uv=False)
    relative = values**2 / np.mean(values**2, -1, keepdims=True)
    return {
        "residual": abs(np.linalg.norm(weight, axis=(-2, -1)) / 2.0 - 1),
        "update_spectral_norm": values[..., 0],
        "update_rms": np.sqrt(np.mean(u**2, (-2, -1))),
        "weight_spectral_norm": np.linalg.norm(weight, 2, axis=(-2, -1)),
        "weight_rms": np.sqrt(np.mean(weight**2, (-2, -1))),
        "orthogonality_error": np.sqrt(np.mean((relative - 1) ** 2, -1)),
        "stable_rank": np.sum(values**2, -1) / values[..., 0] ** 2,
        "angle": np.zeros(p.shape[:-2]),
        "applied": np.ones(p.shape[:-2]),
        "skipped": np.zeros(p.shape[:-2]),
        "nonfinite": np.zeros(p.shape[:-2]),
    }


def test_every_measure_is_that_of_numpy() -> None:
    gradient, params = tree(1), parameters(CASE)
    ((updates, state),) = steps(gradient)
    chex.assert_trees_all_equal(
        updates, INNER.update(gradient, INNER.init(params), params)[0]
    )
    info = mo.diagnostics.collect(state)
    assert tuple(info) == MEASURES
    points, slopes = leaves_by_path(params), leaves_by_path(gradient)
    for path in PATHS:
        for name, wanted in expected(points[path], slopes[path]).items():
            # Sums in float32, of angles in degrees; 16 power iterations of 8 × 2
            # matrices of these seeds have converged to 1e-3, and 8, of the weights, are
            # as far from it as the field says.
            absolute = 1e-4 if name == "angle" else 1e-6
            iterated = {"update_spectral_norm": 1e-3, "stable_rank": 1e-3}
            iterated["weight_spectral_norm"] = 0.06
            relative = iterated.get(name, 1e-5)
            np.testing.assert_allclose(
                info[name][path], wanted, rtol=relative, atol=absolute, err_msg=name
            )


def test_spectral_norms_are_estimated_from_below() -> None:
    gradient, params = tree(1), parameters(CASE)
    ((_, state),) = steps(gradient)
    points, slopes = leaves_by_path(params), leaves_by_path(gradient)
    info = mo.diagnostics.collect(state)
    for path in PATHS:
        wanted = expected(points[path], slopes[path])
        for name in ("update_spectral_norm", "weight_spectral_norm"):
            found = np.asarray(info[name][path])
            # Above it by rounding only.
            assert (found <= wanted[name] * (1 + 1e-6)).all()


def test_spectral_norms_of_gaussian_matrices_are_near() -> None:
    rng = np.random.default_rng(0)
    shapes = [(16, 16), (64, 16), (64, 64), (256, 64), (256, 256)] * 4
    drawn = {f"{n}": rng.standard_normal(shape) for n, shape in enumerate(shapes)}
    params = {name: jnp.asarray(x, jnp.float32) for name, x in drawn.items()}
    tx = mo.monitor(
        optax.set_to_zero(), measures=("weight_spectral_norm",), axes=mo.STACKED
    )
    _, state = jax.jit(tx.update)(params, tx.init(params), params)
    weights = mo.diagnostics.collect(state)["weight_spectral_norm"]
    tx = mo.monitor(
        optax.scale(-1.0), measures=("update_spectral_norm",), axes=mo.STACKED
    )
    _, state = jax.jit(tx.update)(params, tx.init(params), params)
    updates = mo.diagnostics.collect(state)["update_spectral_norm"]
    for name, x in drawn.items():
        norm = np.linalg.norm(x, 2)
        # As the fields say (seen in 40 draws of each: 14 % at 16 × 16, 11 % at
        # 64 × 64, 7 % at 256 × 256; 4 %).
        assert 0.85 * norm <= weights[name] <= norm * (1 + 1e-6)
        assert 0.95 * norm <= updates[name] <= norm * (1 + 1e-6)


def test_updates_between_two_measured_ones_are_only_counted() -> None:
    first, second, third = (state for _, state in steps(tree(1), tree(2), tree(3)))
    assert [int(state.count) for state in (first, second, third)] == [1, 2, 3]
    sampled = dict.fromkeys(COUNTS)
    was, between, then = (s.info._replace(**sampled) for s in (first, second, third))
    chex.assert_trees_all_equal(between, was)
    changed = [float(info.update_rms["first"]["kernel"]) for info in (was, then)]
    assert changed[0] != changed[1]
    assert mo.diagnostics.collect(second)["applied"][TALL] == 2


def test_applied_skipped_and_not_finite_matrices_are_counted_apart() -> None:
    good = tree(1)
    first, second, third = (good[name]["kernel"] for name in good)
    bad = good | {"third": {"kernel": third.at[1, 2, 1].set(jnp.nan)}}
    zero = good | {"second": {"kernel": jnp.zeros_like(second)}}
    infinite = good | {"first": {"kernel": first.at[0, 0].set(-jnp.inf)}}
    *_, (_, state) = steps(good, bad, zero, infinite)
    counts = mo.diagnostics.collect(state)
    assert [int(counts[name][TALL]) for name in COUNTS] == [3, 0, 1]
    assert [int(counts[name][WIDE]) for name in COUNTS] == [3, 1, 0]
    assert [list(counts[name][STACK]) for name in COUNTS] == [[4, 3], [0, 0], [0, 1]]


@pytest.mark.slow
def test_around_apply_if_finite_a_bad_step_is_counted_and_inside_undone() -> None:
    params, bad = tree(0), jax.tree.map(lambda x: x * jnp.nan, tree(1))
    watch = lambda tx: mo.monitor(tx, axes=mo.STACKED, measures=COUNTS)
    around = watch(optax.apply_if_finite(INNER, 3))
    _, state = around.update(bad, around.init(params), params)
    found = mo.diagnostics.collect(state)
    assert [float(found[name][TALL]) for name in COUNTS] == [0, 1, 1]
    inside = optax.apply_if_finite(watch(INNER), 3)
    _, state = inside.update(bad, inside.init(params), params)
    found = mo.diagnostics.collect(state)
    assert [float(found[name][TALL]) for name in COUNTS] == [0, 0, 0]


@pytest.mark.slow
def test_a_group_has_the_mean_and_the_worst_of_its_matrices() -> None:
    gradient, params = tree(1), parameters(CASE)
    ((_, state),) = steps(gradient)
    single = mo.diagnostics.collect(state)
    groups = {"first": "one", ".*": "rest"}
    tx = mo.monitor(INNER, axes=mo.STACKED, manifold=MANIFOLD, groups=groups)
    _, grouped = jax.jit(tx.update)(gradient, tx.init(params), params)
    found = mo.diagnostics.collect(grouped)
    assert set(found) == set(MEASURES)
    for name, numbers in found.items():
        own = np.asarray(single[name][TALL])
        rest = np.append(single[name][STACK], single[name][WIDE])
        if name in COUNTS:
            assert numbers == {"one/total": own, "rest/total": rest.sum()}
            continue
        worst = rest.min() if name == "stable_rank" else rest.max()
        wanted = {"one/mean": own, "one/worst": own, "rest/worst": worst}
        wanted |= {"rest/mean": rest.mean()}
        assert set(numbers) == set(wanted)
        for key, value in wanted.items():
            # The same numbers, added in another order.
            np.testing.assert_allclose(numbers[key], value, rtol=1e-5, atol=1e-5)


MODEL = {
    "up": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)},
    "embed": jnp.ones((5, 4)),
}


def test_what_is_no_matrix_by_its_role_is_not_measured() -> None:
    around = mo.monitor(mo.hybrid(mo.muon(0.02)), axes=mo.roles())
    inside = mo.hybrid(mo.monitor(mo.muon(0.02)))
    for tx in (around, inside):
        assert set(shapes_of(tx, MODEL)["applied"]) == {"up/kernel"}
        (seen,) = (x for x in mo.describe(tx, MODEL).leaves if "monitor" in x.links)
        assert seen.path == "up/kernel"
        links = ("orthogonalize_via_newton_schulz", "scale_by_shape", "monitor")
        assert seen.links == links
        # The plan is that of what is watched alone.
        assert len(mo.describe(tx, MODEL).plans) == 1


def test_a_link_has_no_angle_and_needs_params_for_weights_alone() -> None:
    params = tree(0)
    tx = mo.monitor(axes=mo.STACKED, measures=["update_rms", "applied"])
    assert set(shapes_of(tx, params)) == {"update_rms", "applied"}
    updates, _ = jax.eval_shape(lambda: tx.update(params, tx.init(params)))
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    everything = shapes_of(mo.monitor(axes=mo.STACKED), params)
    assert set(everything) == set(MEASURES) - {"residual", "angle"}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"measures": ["rms"]}, ValueError, "measures must be one of 'residual'"),
        ({"measures": "angle"}, TypeError, "measures must be a tuple of names"),
        ({"measures": ()}, ValueError, "at least one"),
        ({"measures": ["angle"]}, ValueError, "'angle' of monitor needs an inner"),
        ({"measures": ["residual"]}, ValueError, "'residual' of monitor needs the man"),
        ({"every": 0}, ValueError, "at least 1, got 0"),
        ({"every": 1.5}, TypeError, "every must be a Python int"),
        ({"groups": {}}, TypeError, "at least one"),
        ({"groups": {"(": "a"}}, ValueError, "pattern of groups is invalid"),
        ({"groups": {"a": 1}}, TypeError, "name of the group 'a' must be a string"),
        ({"inner": "muon"}, TypeError, "inner of monitor must be"),
        ({"manifold": mo.Sphere}, TypeError, "manifold of monitor must be an instance"),
        ({"axes": 3}, TypeError, "axes must be named axes"),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: Any, error: type[Exception], message: str, unhooked: None
) -> None:
    with pytest.raises(error, match=message):
        mo.monitor(**arguments)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"first|second": "a"}, r"'third/kernel' of shape \(2, 8, 2\) is in no group"),
        ({".*": "a", "tell": "b"}, r"patterns \['tell'\] of groups match no parameter"),
    ],
)
def test_groups_that_do_not_fit_are_refused_at_init(groups: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mo.monitor(axes=mo.STACKED, groups=groups).init(tree(0))


def test_a_group_is_a_label_where_roles_are_given() -> None:
    known = mo.roles({"first": mo.Role("first", mo.STACKED), ".*": mo.STACKED})
    tx = mo.monitor(INNER, axes=known, groups=known, measures=COUNTS)
    state = jax.eval_shape(tx.init, tree(0))
    totals = shapes_of(tx, tree(0))["skipped"]
    assert set(totals) == {"first/total", "matrix/total"}
    empty = jax.eval_shape(tx.init, {})
    assert jax.tree.structure(empty) == jax.tree.structure(state)


def test_the_fields_are_the_measures() -> None:
    assert MonitorInfo._fields == MEASURES
