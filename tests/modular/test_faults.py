"""Models that were once read wrongly, or stopped the reader."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import manifold_optax as mo
from manifold_optax import modular

Forward = Callable[[Any, Any], Any]

X = jnp.ones((2, 3, 8))
SQUARE = {"w": jnp.ones((8, 8))}


def read_one(function: Callable[[Any], Any], x: Any = X) -> modular.Network:
    """A matrix, and what a function makes of its result."""
    return modular.read(lambda p, x: function(x @ p["w"]), SQUARE, x)


def test_not_a_number_is_no_small_number() -> None:
    # `std` divides by the number of entries, or takes nan where there are none.
    network = read_one(lambda h: h.std(-1, keepdims=True) * jnp.ones((1, 1, 8)))
    with pytest.raises(ValueError, match="'w' is known"):
        network.sensitivity("w", "derived")


def test_a_choice_that_is_known_leaves_the_other_case_out() -> None:
    network = read_one(lambda h: jnp.where(jnp.array(True), h, jnp.nan) ** 2)
    # |h| ≤ √8, so that the slope of h² is 2√8; its range is rounded up by 2^(1/8).
    assert network.sensitivity("w", "derived") == pytest.approx((2 * 8**0.5,), rel=0.1)


def test_queries_that_are_scaled_before_the_product_are_as_keys() -> None:
    params = {name: jnp.ones((8, 8)) for name in ("q", "k", "v")}

    def attention(p: Any, x: Any) -> Any:
        query = (x @ p["q"]) / 8
        logits = jnp.einsum("btd,bsd->bts", query, x @ p["k"])
        return jax.nn.softmax(logits) @ (x @ p["v"])

    found = modular.read(attention, params, X).sensitivities("nominal")
    # Exact: products of powers of 2 and √8, up to rounding of float64.
    assert found == {name: pytest.approx((1.0,), rel=1e-12) for name in params}


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda h: h[..., :0], (2, 8)),
        (lambda h: jax.lax.associative_scan(jnp.add, h), (5, 8)),
        (lambda h: h.reshape(0, 16), (0, 8)),
        (lambda h: jax.nn.softmax(h @ jnp.swapaxes(h, -1, -2)) @ h, (2, 0, 8)),
    ],
)
def test_axes_without_entries(
    function: Callable[[Any], Any], shape: tuple[int, ...]
) -> None:
    network = read_one(function, jnp.ones(shape))
    for kind in ("nominal", "derived"):
        (number,) = network.sensitivity("w", kind)
        assert 0 <= number < float("inf")
    assert str(network)


def test_a_matrix_without_inputs() -> None:
    params = {"w": jnp.ones((0, 3))}
    roles = {"w": mo.Role("matrix", mo.STACKED)}
    network = modular.read(
        lambda p, x: x @ p["w"], params, jnp.ones((2, 0)), roles=roles
    )
    assert network.sensitivity("w") == (0.0,)


def test_a_loop_of_no_steps() -> None:
    params = {"w": jnp.ones((0, 8, 8))}
    forward: Forward = lambda p, x: jax.lax.scan(lambda h, w: (h @ w, None), x, p["w"])[
        0
    ]
    assert modular.read(forward, params, X).sensitivity("w") == ()


@pytest.mark.parametrize(
    "forward", [lambda p, x: p["w"], lambda p, x: p["w"] * 2, lambda p, x: jnp.ones(3)]
)
def test_a_network_without_activations_is_printed(forward: Forward) -> None:
    assert str(modular.read(forward, SQUARE, X))


def test_a_scalar_function_without_a_slope_is_named_by_its_steps() -> None:
    network = read_one(lambda h: jnp.linalg.norm(h, axis=-1))
    with pytest.raises(ValueError, match=r"made of pow has no bounded slope"):
        network.sensitivity("w")


def test_what_bounds_a_value_below_bounds_its_functions() -> None:
    network = read_one(lambda h: jnp.sqrt(jnp.sum(h * h, -1, keepdims=True) + 0.25))
    # The root of a number above 1/4 has the slope 1, and Σ h dh of entries below √8 is
    # at most √8 · √8 · ‖dh‖. Slopes are right to 2e-4 from above.
    wanted = 2 * 8**1.5
    assert network.sensitivity("w", "derived") == pytest.approx((wanted,), rel=3e-4)


@pytest.mark.parametrize("key", ["nope", ""])
def test_an_unknown_input_is_an_error(key: str) -> None:
    with pytest.raises(ValueError, match=r"input_rms fits no input.*'0'"):
        modular.read(lambda p, x: x @ p["w"], SQUARE, X, input_rms={key: 2.0})


def test_a_key_of_input_rms_is_a_pattern(unhooked: None) -> None:
    with pytest.raises(TypeError, match="a key of input_rms must be a string"):
        modular.read(lambda p, x: x @ p["w"], SQUARE, X, input_rms={0: 2.0})  # type: ignore[dict-item]


def test_one_array_has_no_path() -> None:
    with pytest.raises(ValueError, match="params is one array"):
        modular.read(lambda p, x: x @ p, SQUARE["w"], X)


def test_outputs_are_listed_where_none_counts() -> None:
    with pytest.raises(ValueError, match="no output of floats; its outputs are: '' of"):
        modular.read(lambda p, x: jnp.argmax(x @ p["w"]), SQUARE, X)


def test_a_measured_budget_names_a_parameter_that_is_missing() -> None:
    network = read_one(lambda h: h)
    with pytest.raises(ValueError, match=r"\['w'\] are missing"):
        modular.measured_budget(network, {}, X)


def test_nested_stacks_are_as_many_layers_as_the_tree_says() -> None:
    params = {"w": jnp.ones((3, 2, 8, 8))}

    def layer(h: Any, w: Any) -> Any:
        return h / 2 + jnp.tanh(h @ w) / 2, None

    def block(h: Any, stack: Any) -> Any:
        h, _ = jax.lax.scan(layer, h, stack)
        return 2 * h, None

    network = modular.read(lambda p, x: jax.lax.scan(block, x, p["w"])[0], params, X)
    # The slope of tanh is right to 2e-4 from above, and passed up to six times.
    wanted = pytest.approx((4.0, 4.0, 2.0, 2.0, 1.0, 1.0), rel=2e-3)
    assert network.slices == {"w": 6}
    assert network.sensitivity("w") == wanted
    assert modular.sensitivities(network.tree)["w"] == wanted


@pytest.mark.slow
def test_a_dense_network_is_printed_without_its_tree() -> None:
    params = [jnp.ones((8, 8))] * 13

    def forward(p: Any, x: Any) -> Any:
        made = [x]
        for w in p:
            made.append(jnp.tanh(sum(made) @ w))
        return made[-1]

    network = modular.read(forward, params, X)
    assert str(network).splitlines()[-1].startswith("No tree: Its paths branch too")
    # Rounding of float64 alone.
    assert network.sensitivity("12") == pytest.approx((1.0,), rel=1e-12)


@pytest.mark.slow
def test_reading_does_not_slow_down_above_a_thousand_parameters() -> None:
    params = [jnp.ones((1, 8))] * 1100
    started = time.process_time()
    modular.read(lambda p, x: sum(p, x), params, jnp.ones((1, 8)))
    # 0.4 s alone on the CPU; with patterns that are forgotten it was a minute.
    assert time.process_time() - started < 10


def test_a_computation_that_is_too_deep_says_so() -> None:
    def lstm(p: Any, x: Any) -> Any:
        hidden = cell = jnp.zeros((2, 8))
        for _ in range(70):
            gates = x @ p["in"] + hidden @ p["w"]
            i, f, g, o = jnp.split(gates, 4, -1)
            cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
            hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
        return hidden

    params = {"in": jnp.ones((8, 32)), "w": jnp.ones((8, 32))}
    network = modular.read(lstm, params, jnp.ones((2, 8)))
    with pytest.raises(ValueError, match=r"of 'w' is known.*as a jax\.lax\.scan"):
        network.sensitivity("w", "derived")


def test_noise_that_is_drawn_inside_has_no_rule_and_needs_none() -> None:
    key = jax.random.key(0)

    def forward(params: Any, x: Any) -> Any:
        mean, spread = x @ params["centre"], jnp.tanh(x @ params["spread"])
        return (mean + spread * jax.random.normal(key, mean.shape)) @ params["out"]

    params = {name: jnp.zeros((4, 4)) for name in ("centre", "spread", "out")}
    network = modular.read(forward, params, jnp.zeros((3, 4)))
    # √2 times the inverse error function, which has no rule and counts as 1.
    assert network.sensitivities()["spread"] == pytest.approx((2**0.5,))
    assert network.sensitivities("derived")["centre"] == pytest.approx((1.0,))
