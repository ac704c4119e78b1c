"""The chunked attention against float64 NumPy, JAX's own, and a count of its memory."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from manifold_optax import attention
from manifold_optax.attention import Dropout, Scores
from oracles_attention import attention as oracle

# Float32 sums of up to 16 products of numbers near 1, in another order: observed 9e-7.
CLOSE = 1e-5


@functools.partial(jax.jit, static_argnames=("chunk", "absolute"))
def attend(*arrays: jax.Array, **options: Any) -> Any:
    return attention.dot_product_attention(*arrays, **{"chunk": 4} | options)


@functools.partial(jax.jit, static_argnames=("is_causal", "absolute"))
def statistic(*arrays: jax.Array, **options: Any) -> jax.Array:
    return attention.largest_logits(*arrays, chunk=4, **options)


def inputs(
    key_heads: int = 2, q_len: int = 11, k_len: int = 11, value_dim: int = 8
) -> tuple[jax.Array, ...]:
    """Query, key, value and a cotangent of the output: 4 heads of width 8."""
    rng = np.random.default_rng(1)
    shapes = [
        (2, q_len, 4, 8),
        (2, k_len, key_heads, 8),
        (2, k_len, key_heads, value_dim),
        (2, q_len, 4, value_dim),
    ]
    return tuple(jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes)


def random_mask(*shape: int) -> jax.Array:
    """A mask of which every row has a key, with is_causal too."""
    mask = np.random.default_rng(2).random(shape) < 0.6
    mask[..., 0] = True
    return jnp.asarray(mask)


def random_bias(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(3).normal(size=shape), jnp.float32)


# Eleven queries are two chunks of four and a rest of three.
CASES: dict[str, tuple[dict[str, int], dict[str, Any]]] = {
    "multi-head, mask": (
        {"key_heads": 4, "k_len": 7},
        {"mask": random_mask(2, 4, 11, 7)},
    ),
    "grouped, causal, more keys": ({"k_len": 14}, {"is_causal": True}),
    "multi-query, causal, fewer keys": (
        {"key_heads": 1, "k_len": 5, "value_dim": 3},
        {"is_causal": True, "absolute": True},
    ),
    "everything": (
        {},
        {
            "bias": random_bias(1, 4, 11, 11),
            "mask": random_mask(2, 1, 11, 11),
            "is_causal": True,
        },
    ),
    "one row of mask and bias": (
        {},
        {"mask": random_mask(2, 1, 1, 11), "bias": random_bias(1, 4, 1, 11)},
    ),
    "chunks without a rest": ({"q_len": 8}, {"scale": 0.5}),
    "one chunk": ({"q_len": 4}, {"is_causal": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_output_gradient_and_statistic(case: str) -> None:
    sizes, options = CASES[case]
    *arrays, cotangent = inputs(**sizes)
    scores = Scores(chunk=4, **options)

    @jax.jit
    def both(*arrays: jax.Array) -> Any:
        output, back, largest = jax.vjp(
            lambda *x: attention.attend(*x, scores=scores), *arrays, has_aux=True
        )
        return output, back(cotangent), largest

    output, gradient, largest = both(*arrays)
    exact = oracle(*arrays, cotangent=cotangent, **options)
    np.testing.assert_allclose(output, exact.output, atol=CLOSE)
    for ours, wanted in zip(gradient, exact.gradient, strict=True):
        np.testing.assert_allclose(ours, wanted, atol=CLOSE)
    np.testing.assert_allclose(largest, exact.largest, rtol=CLOSE)
    assert largest.dtype == jnp.float32


@pytest.mark.parametrize(
    "case", ["multi-head, mask", "multi-query, causal, fewer keys"]
)
def test_the_statistic_alone(case: str) -> None:
    sizes, options = CASES[case]
    arrays = inputs(**sizes)
    exact = oracle(*arrays, **options).largest
    np.testing.assert_allclose(statistic(*arrays[:2], **options), exact, rtol=CLOSE)


@pytest.mark.promise(
    "Attention",
    "Attention with statistics has the output and gradient of `jax.nn`",
    on="float32",
)
def test_output_and_gradient_are_those_of_jax_and_that_of_a_bias_too() -> None:
    *arrays, cotangent = inputs()
    options: dict[str, Any] = {"mask": random_mask(1, 4, 11, 11), "is_causal": True}
    scores = lambda bias: Scores(bias=bias, chunk=4, **options)

    def ours(bias: jax.Array, *arrays: jax.Array) -> jax.Array:
        return attention.attend(*arrays, scores=scores(bias))[0]

    def theirs(bias: jax.Array, *arrays: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(*arrays, bias=bias, **options)

    @jax.jit
    def pair(*arrays: jax.Array) -> Any:
        backs = [jax.vjp(function, *arrays) for function in (ours, theirs)]
        return [(output, back(cotangent)) for output, back in backs]

    results = (jax.tree.leaves(x) for x in pair(random_bias(2, 4, 11, 11), *arrays))
    for x, y in zip(*results, strict=True):
        np.testing.assert_allclose(x, y, atol=CLOSE)


def test_the_statistic_has_no_gradient() -> None:
    query, key, value, _ = inputs()

    def both(query: jax.Array) -> jax.Array:
        return jnp.sum(attend(query, key, value)[1] + statistic(query, key))

    assert not jnp.any(jax.jit(jax.grad(both))(query))


@pytest.mark.slow
def test_a_batch_of_any_rank_and_vmap() -> None:
    query, key, value, _ = inputs()
    output, largest = attend(query, key, value)
    each, own = jax.jit(jax.vmap(attend))(query, key, value)
    np.testing.assert_allclose(each, output, atol=CLOSE)
    assert own.shape == (2, 4)
    np.testing.assert_allclose(own.max(0), largest, rtol=CLOSE)
    nested, _ = attend(query[None], key[None], value[None])
    np.testing.assert_allclose(nested[0], output, atol=CLOSE)


def test_bfloat16_has_float32_logits() -> None:
    *arrays, cotangent = (x.astype(jnp.bfloat16) for x in inputs())
    output, largest = attend(*arrays)
    exact = oracle(*arrays, cotangent=cotangent)
    assert (output.dtype, largest.dtype) == (jnp.bfloat16, jnp.float32)
    # The weights and the output are rounded to 8 bits; the logits are not.
    np.testing.assert_allclose(output.astype(float), exact.output, atol=2**-6)
    np.testing.assert_allclose(largest, exact.largest, rtol=CLOSE)


def test_float64_stays(x64: None) -> None:
    arrays = [x.astype(jnp.float64) for x in inputs()]
    output, largest = attend(*arrays[:3])
    exact = oracle(*arrays)
    # A few eps of sums of 16 terms.
    np.testing.assert_allclose(output, exact.output, atol=1e-14)
    np.testing.assert_allclose(largest, exact.largest, rtol=1e-14)


def test_queries_and_heads_that_see_no_key() -> None:
    query, key, value, cotangent = inputs(key_heads=4)
    mask = jnp.ones((2, 4, 11, 11), bool).at[0, :, 2].set(False).at[:, 1].set(False)
    output, largest = attend(query, key, value, mask=mask)
    reference = jax.jit(jax.nn.dot_product_attention)(query, key, value, mask=mask)
    np.testing.assert_allclose(output, reference, atol=CLOSE)
    np.testing.assert_allclose(output[0, 2], value[0].mean(0), atol=CLOSE)
    assert largest[1] == -jnp.inf
    assert jnp.all(jnp.isfinite(largest[jnp.array([0, 2, 3])]))
    exact = oracle(query, key, value, cotangent, mask=mask)
    np.testing.assert_allclose(largest, exact.largest, rtol=CLOSE)


@pytest.mark.parametrize("absolute", [False, True])
def test_a_nan_is_seen_where_it_counts_and_only_there(absolute: bool) -> None:
    query, key, value, _ = inputs(key_heads=4)
    broken = np.array(key)
    broken[0, 9, 2] = np.nan
    key = jnp.asarray(broken)
    _, largest = attend(query, key, value, absolute=absolute)
    assert jnp.isnan(largest).tolist() == [False, False, True, False]
    assert jnp.isnan(statistic(query, key, absolute=absolute)[2])
    hidden = jnp.asarray(np.arange(11) != 9)
    masked = statistic(query, key, mask=hidden, absolute=absolute)
    assert np.all(np.isfinite(masked))


def test_signed_and_absolute() -> None:
    x = 4 * jnp.eye(4)[:, None]
    assert attention.largest_logits(x, -x - 1) == -2
    assert attention.largest_logits(x, -x - 1, absolute=True) == 10


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_any_scale(scale: float) -> None:
    # Half of the scale on either side would leave float32 in the middle: on one side.
    query, key, value, cotangent = inputs()
    query = query * scale
    output, largest = attend(query, key, value)
    exact = oracle(query, key, value, cotangent)
    np.testing.assert_allclose(largest, exact.largest, rtol=CLOSE)
    assert jnp.all(jnp.isfinite(output))


@functools.partial(jax.jit, static_argnames="shared")
def dropped(seed: jax.Array, *, shared: bool) -> jax.Array:
    """The weights of 64 queries for 32 keys: they are equal, and the values one-hot."""
    query, key = jnp.zeros((2, 64, 2, 4)), jnp.zeros((2, 32, 2, 4))
    value = jnp.broadcast_to(jnp.eye(32)[:, None], (2, 32, 2, 32))
    dropout = Dropout(jax.random.key(seed), 0.25, shared)
    scores = Scores(chunk=16)
    return 32 * attention.attend(query, key, value, scores, dropout=dropout)[0]


@pytest.mark.parametrize("shared", [True, False])
def test_dropout(shared: bool) -> None:
    weights = np.asarray(dropped(0, shared=shared))
    kept = weights > 0
    np.testing.assert_allclose(weights[kept], 1 / 0.75, rtol=CLOSE)
    # 2048 independent draws at least: five standard deviations of their mean.
    assert abs(np.mean(kept) - 0.75) < 5 * (0.25 * 0.75 / 2048) ** 0.5
    assert np.all(kept == kept[:1, :, :1]) == shared
    # Every chunk of 16 queries draws anew.
    assert np.any(kept[:, :16] != kept[:, 16:32])
    assert np.any(kept != (np.asarray(dropped(1, shared=shared)) > 0))


@pytest.mark.slow
def test_dropout_is_the_same_in_the_backward_pass() -> None:
    query, key, value, cotangent = inputs()
    dropout = Dropout(jax.random.key(0), 0.5)

    @jax.jit
    def both(value: jax.Array) -> Any:
        output, back = jax.vjp(
            lambda v: attention.attend(query, key, v, Scores(chunk=4), dropout=dropout)[
                0
            ],
            value,
        )
        return output, back(cotangent)

    output, (gradient,) = both(value)
    # The output is linear in the values: with other bits the two would differ.
    np.testing.assert_allclose(
        # Two float32 sums of 700 terms that cancel in part.
        jnp.sum(output * cotangent),
        jnp.sum(gradient * value),
        rtol=1e-4,
    )


def temporary(function: Any, length: int) -> int:
    """Bytes of the compiled program beside its inputs and outputs, for 2 heads."""
    shape = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)
    compiled: Any = jax.jit(function).lower(shape, shape, shape).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def gradient_of(attend: Any) -> Any:
    return jax.grad(lambda *x: jnp.sum(attend(*x) ** 2), argnums=(0, 1, 2))


@pytest.mark.promise(
    "Attention", "Its memory is linear in the length", on="compiled program"
)
def test_memory_is_linear_in_the_length(measured: Callable[..., None]) -> None:
    def ours(*x: jax.Array) -> jax.Array:
        return attention.dot_product_attention(*x, is_causal=True)[0]

    def theirs(*x: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(*x, is_causal=True)

    one, two = (temporary(gradient_of(ours), length) for length in (2048, 4096))
    chunk_of_logits = 2 * 2048 * 128 * 4
    # Logits, weights and their gradients, and the transposed inputs: observed 4.5
    # (jax 0.10.2) and 5.3 (jax 0.8.0).
    assert one < 7 * chunk_of_logits
    # 2 is linear, and what remains is the tiles of a chunk.
    measured(two / one, at_most=2.3)
    # The whole matrix of logits is 16 chunks, several times.
    assert temporary(gradient_of(theirs), 2048) > 2 * 16 * chunk_of_logits


def test_memory_of_the_statistic_alone_is_linear() -> None:
    def ours(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        del value
        return attention.largest_logits(query, key, is_causal=True)

    one, two = (temporary(ours, length) for length in (2048, 4096))
    # Logits and what of them counts: observed 2.1.
    assert one < 3 * (2 * 2048 * 128 * 4)
    assert two < 2.3 * one


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "heads": ({"key": jnp.ones((2, 11, 3, 8))}, ValueError, "multiple"),
    "batch": ({"key": jnp.ones((3, 11, 2, 8))}, ValueError, "same batch axes"),
    "width": ({"key": jnp.ones((2, 11, 2, 7))}, ValueError, "head_dim"),
    "values": ({"value": jnp.ones((2, 10, 2, 8))}, ValueError, "agree with the keys"),
    "chunk": ({"chunk": 0}, ValueError, "chunk must be in"),
    "no chunk": ({"chunk": 2.0}, TypeError, "Python int"),
    "numbers": ({"mask": jnp.ones((11, 11))}, TypeError, "must be a boolean array"),
    "axes": ({"mask": jnp.ones((1,) * 5, bool)}, ValueError, "more axes"),
    "rows": ({"mask": jnp.ones((7, 11), bool)}, ValueError, "does not broadcast"),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors(case: str, unhooked: None) -> None:
    changed, kind, message = WRONG[case]
    query, key, value, _ = inputs()
    arguments: dict[str, Any] = {"query": query, "key": key, "value": value} | changed
    with pytest.raises(kind, match=message):
        attention.dot_product_attention(**arguments)


def test_a_rate_of_dropout_out_of_range() -> None:
    query, key, value, _ = inputs()
    dropout = Dropout(jax.random.key(0), 1.0)
    with pytest.raises(ValueError, match="rate of dropout"):
        attention.attend(query, key, value, Scores(), dropout=dropout)
