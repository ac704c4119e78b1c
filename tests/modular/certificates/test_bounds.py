"""What certificates say, and what they say where there is no bound."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from manifold_optax import modular

DEPTH = 3
# Norms of weights are rounded up: by 0.1 % at most for matrices of this size.
ABOVE = 1.002


def _weights(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) / 3


def _stack():
    return {"up": _weights(DEPTH, 6, 6), "down": _weights(DEPTH, 6, 6, seed=1)}


def _layer(x, weights):
    return x + jnp.tanh(x @ weights["up"]) @ weights["down"], None


def _scanned(params, x):
    return jax.lax.scan(_layer, x, params)[0]


def _unrolled(params, x):
    for k in range(DEPTH):
        x, _ = _layer(x, jax.tree.map(lambda w: w[k], params))  # noqa: B023
    return x


@pytest.mark.slow
def test_a_loop_is_bounded_layer_by_layer():
    x = modular.L2Ball(jnp.ones((2, 6)), 1.0)
    step = jax.tree.map(lambda w: 0.01 * w, _stack())
    for bound in (
        lambda f: modular.lipschitz_bound(f, _stack(), x),
        lambda f: modular.change_bound(f, _stack(), step, x),
    ):
        # The same products in another order.
        np.testing.assert_allclose(bound(_scanned), bound(_unrolled), rtol=1e-5)
    norms = [np.linalg.norm(w, 2, axis=(1, 2)) for w in _stack().values()]
    expected = np.prod(1 + norms[0] * norms[1])
    bound = modular.lipschitz_bound(_scanned, _stack(), x)
    assert expected <= bound <= expected * ABOVE


def test_a_finite_step_of_a_chain():
    """`(∏(σ + δ) − ∏ σ)·‖x‖`, for steps along the weights."""
    params = {"a": _weights(6, 6), "b": _weights(6, 6, seed=1)}
    step = {"a": 0.5 * params["a"], "b": 0.25 * params["b"]}
    radius = 2.0

    def chain(params, x):
        return x @ params["a"] @ params["b"]

    x = modular.L2Ball(jnp.ones((1, 6)), radius)
    proof = modular.certificate(chain, params, x)
    product = np.prod([np.linalg.norm(w, 2) for w in params.values()]) * radius
    finite, first = (1.5 * 1.25 - 1) * product, 0.75 * product
    assert finite <= proof.change(params, step) <= finite * ABOVE
    assert first <= proof.change(params, step, first_order=True) <= first * ABOVE


@pytest.mark.slow
def test_a_step_that_shrinks_weights_counts_with_the_smaller_norms():
    """The change of `x ↦ w x` from `w` to 0 is no more than ‖w‖·‖x‖."""
    params = {"w": _weights(6, 6), "v": _weights(6, 6, seed=1)}
    step = jax.tree.map(np.negative, params)
    x = modular.L2Ball(jnp.ones((1, 6)), 1.0)

    def chain(params, x):
        return x @ params["w"] @ params["v"]

    product = np.prod([np.linalg.norm(w, 2) for w in params.values()])
    bound = modular.change_bound(chain, params, step, x)
    # ∫₀¹ 2(1 − t) dt = 1, and 1/32 more by the largest value on each of 32 pieces.
    assert product <= bound <= product * (1 + 1 / 32) * ABOVE


def test_pairs_are_the_differences_of_columns():
    params = {"w": _weights(6, 6), "head": _weights(6, 3, seed=1), "b": np.ones((1, 3))}

    def classifier(params, x):
        return 2 * (jax.nn.relu(x @ params["w"]) @ params["head"] + params["b"])

    x = jnp.ones((2, 6))  # Of one example layers are also taken together.
    pairs = modular.certificate(classifier, params, x).pairs(params)
    columns = params["head"].T
    differences = np.linalg.norm(columns[:, None] - columns[None], axis=-1)
    expected = 2 * differences * np.linalg.norm(params["w"], 2)
    assert np.all(pairs >= expected)
    assert np.all(pairs <= expected * ABOVE)


def test_pairs_without_a_last_product():
    params = {"w": 3 * np.eye(6, dtype=np.float32)}
    x = jnp.ones((1, 6))
    function = lambda params, x: jnp.tanh(x @ params["w"])
    pairs = modular.certificate(function, params, x).pairs(params)
    expected = 3 * np.sqrt(2) * (1 - np.eye(6))
    assert np.all(pairs >= expected)
    assert np.all(pairs <= expected * ABOVE)


@pytest.mark.slow
def test_pairs_where_the_last_weight_is_made_by_a_long_loop():
    """It is not computed from the parameters, so its columns say nothing."""
    params = {"w": np.eye(3, dtype=np.float32)}

    def function(params, x):
        head = jax.lax.fori_loop(0, 300, lambda _, w: jnp.tanh(w), params["w"])
        return x @ head

    pairs = modular.certificate(function, params, jnp.ones((2, 3))).pairs(params)
    head = function(params, np.eye(3, dtype=np.float32))
    differences = np.linalg.norm(head.T[:, None] - head.T[None], axis=-1)
    assert np.all(pairs >= differences)


def test_tokens_are_exchanged():
    params = {"table": _weights(9, 6), "w": _weights(6, 6, seed=1)}

    def model(params, tokens):
        return params["table"][tokens] @ params["w"]

    tokens = jnp.zeros((2, 3), jnp.int32)
    longest = np.linalg.norm(params["table"], axis=1).max()
    expected = 2 * longest * np.linalg.norm(params["w"], 2)
    proof = modular.certificate(model, params, tokens)
    assert expected <= proof.lipschitz(params) <= expected * ABOVE
    assert "tokens" in proof.explain(params)


def _attention(params, x):
    queries, keys = x @ params["q"], x @ params["k"]
    return jax.nn.softmax(queries @ keys.mT) @ x


def test_without_a_bounded_set_the_answer_is_infinite_and_names_the_step():
    params = {"q": _weights(6, 6), "k": _weights(6, 6, seed=1)}
    x = jnp.ones((1, 3, 6))
    with pytest.warns(UserWarning, match=r"infinite.*dot_general \[test_bounds\.py"):
        assert modular.lipschitz_bound(_attention, params, x) == jnp.inf
    assert np.isfinite(
        modular.lipschitz_bound(_attention, params, modular.RmsBall(x, 1.0))
    )


def test_a_step_without_a_rule_is_named():
    params, x = {"w": _weights(6, 6)}, jnp.ones((1, 6))
    function = lambda params, x: jax.lax.round(x @ params["w"])
    with pytest.warns(UserWarning, match=r"lipschitz_bound is infinite.*jumps"):
        assert modular.lipschitz_bound(function, params, x) == jnp.inf
    with pytest.warns(UserWarning, match="change_bound is infinite"):
        modular.change_bound(function, params, params, x)


def test_explain_multiplies_to_the_bound():
    params = {"up": _weights(6, 6), "down": _weights(6, 6, seed=1)}
    x = jnp.ones((2, 6))
    function = lambda params, x: jnp.tanh(x @ params["up"]) @ params["down"]
    proof = modular.certificate(function, params, x)
    first, *steps = proof.explain(params).splitlines()
    factors = [float(line.split()[0]) for line in steps]
    bound = proof.lipschitz(params)
    # Printed with four digits.
    np.testing.assert_allclose(np.prod(factors), bound, rtol=1e-3)
    assert f"{bound:.4g}"[:4] in first


@pytest.mark.slow
def test_weights_that_are_made_of_parameters_are_measured_as_they_are():
    """A low-rank step, and a norm layer of the weight itself."""
    params = {"w": _weights(6, 6), "a": _weights(6, 2), "b": _weights(2, 6, seed=2)}

    def low_rank(params, x):
        return x @ (params["w"] + params["a"] @ params["b"])

    def normalised(params, x):
        return x @ (params["w"] / jnp.linalg.norm(params["w"], axis=0, keepdims=True))

    w = params["w"]
    x = jnp.ones((1, 6))
    for function, matrix in (
        (low_rank, w + params["a"] @ params["b"]),
        (normalised, w / np.linalg.norm(w, axis=0)),
    ):
        bound = modular.lipschitz_bound(function, params, x)
        expected = np.linalg.norm(matrix, 2)
        # The matrix itself is computed in float32: 1e-6.
        assert expected * (1 - 1e-6) <= bound <= expected * ABOVE


def test_a_set_of_inputs():
    norm = modular.mixed_norm((2, 3), "bo")
    like = jnp.ones((2, 3))
    assert modular.Box(like, -1.0, 2.0).size(norm) == pytest.approx(2 * np.sqrt(3))
    low, high = np.array([0.0, -3.0, 0.0]), np.array([4.0, 0.0, 0.0])
    assert modular.Box(like, low, high).size(norm) == pytest.approx(5.0)
    assert modular.L2Ball(like, 2.0).size(norm) == pytest.approx(2.0)
    center = np.array([3.0, 0.0, 4.0])
    assert modular.L2Ball(like, 2.0, center).size(norm) == pytest.approx(7.0)
    assert modular.RmsBall(like, 2.0).size(norm) == pytest.approx(2 * np.sqrt(3))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda x: modular.Box(x, 1.0, 0.0), "low <= high"),
        (lambda x: modular.Box(x, 0.0, np.inf), "finite"),
        (lambda x: modular.L2Ball(x, -1.0), "radius"),
        (lambda x: modular.RmsBall(x, np.nan), "radius"),
    ],
    ids=("order", "infinite", "negative", "nan"),
)
def test_sets_that_are_none(made, message):
    with pytest.raises(ValueError, match=message):
        made(jnp.ones((2, 3)))


def test_parameters_of_another_shape_are_refused():
    params, x = {"w": _weights(4, 4)}, jnp.ones((1, 4))
    proof = modular.certificate(lambda params, x: x @ params["w"], params, x)
    with pytest.raises(ValueError, match=r"w: .* shape \(4, 4\), got \(4, 5\)"):
        proof.lipschitz({"w": _weights(4, 5)})
    with pytest.raises(ValueError, match="1 parameters, got 2"):
        proof.lipschitz({"w": _weights(4, 4), "v": _weights(4, 4)})


def test_the_radius_of_a_classifier():
    params = {"w": np.eye(2, dtype=np.float32)}
    x = jnp.array([[3.0, 1.0], [1.0, 3.0], [2.0, 2.0]])
    labels = jnp.array([0, 0, 0])
    linear = lambda params, x: x @ params["w"]
    radius = modular.certified_radius(linear, params, x, labels)
    expected = np.array([np.sqrt(2), 0.0, 0.0])
    assert np.all(radius <= expected)
    # One difference of columns, one product: rounded up by parts in a million.
    np.testing.assert_allclose(radius, expected, rtol=2e-5)
    with pytest.raises(ValueError, match="both low and high"):
        modular.certified_radius(linear, params, x, labels, low=0.0)
