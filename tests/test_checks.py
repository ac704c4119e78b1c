"""The messages of our own checks: what was wrong, what was got, what to do."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manifold_optax as mo
from manifold_optax import _checks

X = jnp.ones((4, 2))


def test_missing_parameters_name_the_transformation_and_the_call():
    message = r"retract needs the current parameters: call `tx\.update\(updates, state"
    with pytest.raises(ValueError, match=message):
        _checks.require_params(None, "retract")
    _checks.require_params({}, "retract")


@pytest.mark.parametrize(
    ("leaf", "dtype"),
    [
        (jnp.ones(2, jnp.int32), "int32"),
        (jnp.ones(2, bool), "bool"),
        (jnp.ones(2, jnp.complex64), "complex64"),
        (np.zeros(2, jax.dtypes.float0), "float0"),
        (jax.random.key(0), "key<fry>"),
    ],
)
def test_leaves_that_are_not_real_floating_are_refused(leaf, dtype):
    with pytest.raises(TypeError, match=f"'a/b' has dtype .*{dtype}") as caught:
        _checks.require_floating(leaf, "a/b")
    assert "mo.roles" in str(caught.value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_real_floating_leaves_pass(dtype):
    _checks.require_floating(jax.ShapeDtypeStruct((2,), dtype), "a/b")


def test_what_is_no_array_or_too_narrow_is_refused():
    with pytest.raises(TypeError, match=r"'a/b' is 3 of type int, not an array"):
        _checks.require_floating(3, "a/b")
    narrow = jax.ShapeDtypeStruct((2,), "float8_e4m3fn")
    with pytest.raises(TypeError, match=r"'a/b' has dtype float8.*bfloat16 or wider"):
        _checks.require_floating(narrow, "a/b")


def test_too_few_axes_name_the_leaf_and_the_remedy():
    message = r"'a/b' of shape \(4,\) cannot be viewed as matrices: at least 2 axes"
    with pytest.raises(ValueError, match=message) as caught:
        _checks.require_rank(jnp.ones(4), 2, "a/b")
    assert "mo.hybrid(matrices, others=optax.adamw(...))" in str(caught.value)
    for rank in (0, 1, 2):
        _checks.require_rank(X, rank, "a/b")


def test_shapes_that_differ_are_both_printed():
    message = r"'a/b' differ in shape: \(4, 2\) and \(2, 4\)"
    with pytest.raises(ValueError, match=message):
        _checks.require_same_shapes((X, X.T), "a/b")
    _checks.require_same_shapes((X, X), "a/b")


INSIDE = [0.0, 0.5, 0.999, np.float32(0.5), jnp.asarray(0.5)]
OUTSIDE = [-1e-9, 1.0, 2, float("nan"), float("inf"), -float("inf"), np.float32(1)]


@pytest.mark.parametrize("value", INSIDE)
def test_numbers_inside_a_range_pass(value):
    _checks.require_in_range("decay", value, "[0, 1)")


@pytest.mark.parametrize("value", OUTSIDE)
def test_numbers_outside_a_range_are_refused(value):
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got"):
        _checks.require_in_range("decay", value, "[0, 1)")


def test_what_is_not_known_yet_passes_a_range():
    _checks.require_in_range("rate", lambda step: -1.0, "[0, 1)", schedule=True)
    with pytest.raises(TypeError, match=r"decay must be a number.*inject_hyperparams"):
        _checks.require_in_range("decay", lambda step: -1.0, "[0, 1)")
    with pytest.raises(TypeError, match="rate must be a number, got 'a'"):
        _checks.require_in_range("rate", "a", "[0, 1)")
    traced = jax.jit(lambda x: _checks.require_in_range("rate", x, "[0, 1)"))
    assert traced(-1.0) is None


@pytest.mark.parametrize(
    ("value", "interval", "inside"),
    [
        (0.0, "[0, 1)", True),
        (0.0, "(0, 1)", False),
        (1.0, "[0, 1]", True),
        (1.0, "[0, 1)", False),
        (1e300, "(0, inf)", True),
        (float("inf"), "(0, inf)", False),
    ],
)
def test_the_ends_of_an_interval_are_read_from_its_brackets(value, interval, inside):
    if inside:
        _checks.require_in_range("x", value, interval)
        return
    with pytest.raises(ValueError, match=re.escape(f"x must be in {interval}, got")):
        _checks.require_in_range("x", value, interval)


@pytest.mark.parametrize(
    "value", [True, "0.1", 1j, (0.1,), np.ones(2), np.bool_(1), float, object()]
)
def test_what_is_no_number_is_refused(value):
    with pytest.raises(TypeError, match="rate must be a number or a schedule, got"):
        _checks.require_in_range("rate", value, "[0, 1)", schedule=True)


def test_none_is_a_number_only_where_it_is_optional():
    _checks.require_in_range("rate", None, "[0, 1)", optional=True)
    with pytest.raises(TypeError, match="rate must be a number, got None"):
        _checks.require_in_range("rate", None, "[0, 1)")


@pytest.mark.parametrize("value", ["false", 1, None, np.bool_(1)])
def test_a_flag_is_true_or_false(value):
    with pytest.raises(TypeError, match="nesterov must be True or False, got"):
        _checks.require_flag("nesterov", value)


@pytest.mark.parametrize("value", [jnp.int32, "int8", complex, "float", 3.0, object()])
def test_a_dtype_to_compute_in_is_real_and_floating(value):
    if value == "float":
        _checks.require_compute_dtype("compute_dtype", value)
        return
    with pytest.raises(TypeError, match="compute_dtype must be a real floating dtype"):
        _checks.require_compute_dtype("compute_dtype", value)


def test_a_class_in_place_of_its_instance_is_refused():
    with pytest.raises(TypeError, match=r"got the class itself: write Stiefel\(...\)"):
        _checks.require_instance("manifold", mo.Stiefel, mo.Manifold)


@pytest.mark.parametrize("value", [0, 3, None])
def test_static_steps_pass(value):
    _checks.require_static_steps("steps", value)


@pytest.mark.parametrize("value", [1.0, True, "3", np.int32(3), jnp.asarray(3)])
def test_steps_that_are_not_static_are_refused(value):
    with pytest.raises(TypeError, match=r"steps must be a Python int .*\('steps',\)"):
        _checks.require_static_steps("steps", value)


def test_negative_steps_are_refused():
    with pytest.raises(ValueError, match="steps must be at least 0, got -1"):
        _checks.require_static_steps("steps", -1)


def test_an_unknown_word_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="rule must be one of 'a', 'b'; got 'c'"):
        _checks.require_one_of("rule", "c", ("a", "b"))
    _checks.require_one_of("rule", "b", ("a", "b"))


PRESETS = (mo.muon, mo.manifold_muon, mo.hyperspherical_descent, mo.sign_descent)
PRESET_IDS = [preset.__name__ for preset in PRESETS]


@pytest.mark.parametrize("rate", [-0.1, float("nan")])
@pytest.mark.parametrize("preset", PRESETS, ids=PRESET_IDS)
def test_a_learning_rate_out_of_range_is_refused(preset, rate):
    with pytest.raises(ValueError, match="learning_rate"):
        preset(rate)


@pytest.mark.parametrize("preset", [mo.muon, mo.sign_descent], ids=["muon", "sign"])
def test_a_negative_weight_decay_is_refused(preset):
    with pytest.raises(ValueError, match="weight_decay"):
        preset(0.1, weight_decay=-0.1)


@pytest.mark.parametrize("preset", PRESETS, ids=PRESET_IDS)
def test_a_momentum_out_of_range_is_refused(preset):
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\), got 1.5"):
        preset(0.1, momentum=1.5)


@pytest.mark.parametrize("preset", PRESETS[1:3], ids=PRESET_IDS[1:3])
def test_a_weight_decay_on_a_manifold_is_refused(preset, unhooked):
    message = r"undone by the retraction; leave weight_decay=None .* got .*=0.1"
    with pytest.raises(ValueError, match=message):
        preset(0.1, weight_decay=0.1)
