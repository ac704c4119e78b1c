"""QK-clip against logits by NumPy: the laws that hold for every layout."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manifold_optax as mo
from attention.layouts import BY_NAME, EMBED, Layout, LAYOUTS, specs, TOKENS
from manifold_optax.attention._spec import SIDES

SPECS = specs()
NAMES = [layout.name for layout in LAYOUTS]


def draw(layout: Layout, rng: np.random.Generator) -> tuple[Any, np.ndarray]:
    """Parameters, and activations whose heads have logits on both sides of 1."""
    params = layout.draw(rng)
    x = rng.standard_normal((TOKENS, EMBED))
    return params, x


def clip(
    layout: Layout, params: Any, largest: np.ndarray, **options: Any
) -> dict[str, np.ndarray]:
    leaves = {f"block/attention/{name}": leaf for name, leaf in params.items()}
    clipped = mo.apply_qk_clip(
        jax.tree.map(jnp.asarray, leaves),
        {"block/attention": jnp.asarray(largest)},
        {r"block/attention": SPECS[layout.name]},
        **options,
    )
    return {
        name.removeprefix("block/attention/"): np.asarray(leaf, np.float64)
        for name, leaf in clipped.items()
    }


def median_threshold(largest: np.ndarray) -> float:
    """Half of the heads are above it."""
    return float(np.median(largest[largest > 0]))


SLOW = pytest.mark.slow


LANDS = pytest.mark.promise(
    "Attention",
    "A head above the threshold lands on it; all others keep their bits",
    on="MHA, GQA, MLA; float64 oracle",
)


@LANDS
@pytest.mark.parametrize(
    "balance", [0.5, pytest.param(0.0, marks=SLOW), pytest.param(1.0, marks=SLOW)]
)
@pytest.mark.parametrize("name", NAMES)
def test_each_head_lands_on_the_threshold_or_stays(
    x64: None,
    rng: np.random.Generator,
    name: str,
    balance: float,
    measured: Callable[..., None],
) -> None:
    layout = BY_NAME[name]
    params, x = draw(layout, rng)
    before = layout.largest(params, x)
    threshold = median_threshold(before)
    clipped = clip(layout, params, before, threshold=threshold, balance=balance)
    after = layout.largest(clipped, x)
    wanted = np.minimum(before, threshold)
    # 1e-12 of the threshold: a few hundred roundings of float64, in sums of 9 terms.
    tolerance = 1e-12 * threshold
    assert (before > threshold).any()
    assert (before < threshold).any()
    if layout.shared:
        assert np.all(after <= wanted + tolerance)
        assert after.max() == pytest.approx(threshold, abs=tolerance)
    else:
        measured(np.abs(after - wanted).max() / threshold, at_most=1e-12)
    named = {part.path for side in SIDES for part in SPECS[name].parts(side)}
    for path in set(params) - named:
        np.testing.assert_array_equal(clipped[path], params[path], err_msg=path)


IN_THE_GATE = ("multi-head with biases", "fused", "latent")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in IN_THE_GATE else SLOW) for n in NAMES]
)
def test_the_same_in_float32(rng: np.random.Generator, name: str) -> None:
    layout = BY_NAME[name]
    params, x = draw(layout, rng)
    params = as_float32(params)
    before = layout.largest(params, x)
    threshold = median_threshold(before)
    clipped = clip(layout, params, before.astype(np.float32), threshold=threshold)
    after = layout.largest(clipped, x)
    wanted = np.minimum(before, threshold)
    # 1e-6 of the threshold: each weight is rounded to 6e-8 of itself, the factors to
    # twice that, and the errors of hundreds of products add like random numbers.
    tolerance = 1e-6 * threshold
    if layout.shared:
        assert np.all(after <= wanted + tolerance)
        assert after.max() == pytest.approx(threshold, abs=tolerance)
    else:
        np.testing.assert_allclose(after, wanted, atol=tolerance)


@pytest.mark.parametrize("axis", [0, 1])
def test_stacked_layers_have_a_statistic_each_in_float32(
    rng: np.random.Generator, axis: int
) -> None:
    """Against the layers clipped alone; biases have the layers first in both."""
    layout, layers = BY_NAME["grouped-query"], 3
    stacked = as_float32(layout.draw(rng, layers))
    x = rng.standard_normal((TOKENS, EMBED))
    each = [{name: leaf[i] for name, leaf in stacked.items()} for i in range(layers)]
    before = np.stack([layout.largest(params, x) for params in each])
    threshold = median_threshold(before)

    def part(path: str) -> mo.HeadPart:
        return mo.HeadPart(path, layers=axis if path.endswith("kernel") else 0)

    both: dict[str, Any] = {
        n: [part(f"{n}/{k}") for k in ("kernel", "bias")] for n in ("query", "key")
    }
    leaves = {
        name: np.moveaxis(leaf, 0, axis) if name.endswith("kernel") else leaf
        for name, leaf in stacked.items()
    }
    spec = SPECS["stacked"] if axis == 0 else mo.Attention(8, 2, **both)
    clipped = mo.apply_qk_clip(
        leaves, {"": np.float32(before)}, {"": spec}, threshold=threshold
    )
    for i in range(layers):
        params = {
            name: np.take(leaf, i, axis if name.endswith("kernel") else 0)
            for name, leaf in jax.tree.map(np.float64, clipped).items()
        }
        # 1e-6 of the threshold: float32 weights, each rounded twice (2 · 6e-8).
        after = layout.largest(params, x)
        np.testing.assert_allclose(
            after, np.minimum(before[i], threshold), atol=1e-6 * threshold
        )


def as_float32(params: Any) -> Any:
    """Rounded to float32, so that the reference clips the same weights."""
    return jax.tree.map(lambda leaf: leaf.astype(np.float32), params)


def grouped(rng: np.random.Generator) -> tuple[Layout, Any, np.ndarray, np.ndarray]:
    """Two groups of four heads: in the second one no head is above 10."""
    layout = BY_NAME["grouped-query"]
    params = as_float32(layout.draw(rng))
    x = rng.standard_normal((TOKENS, EMBED))
    largest = np.array([40.0, 5.0, 20.0, 9.0, 10.0, 1.0, -3.0, 2.0], np.float32)
    return layout, params, x, largest


@LANDS
@pytest.mark.parametrize("balance", [0.5, 1.0])
def test_what_no_clip_needs_stays_bit_by_bit(
    rng: np.random.Generator, balance: float
) -> None:
    layout, params, x, largest = grouped(rng)
    clipped = clip(layout, params, largest, threshold=10.0, balance=balance)
    for kind in ("kernel", "bias"):
        query, key = clipped[f"query/{kind}"], clipped[f"key/{kind}"]
        np.testing.assert_array_equal(
            query[..., 4:, :], params[f"query/{kind}"][..., 4:, :]
        )
        np.testing.assert_array_equal(key[..., 1, :], params[f"key/{kind}"][..., 1, :])
        np.testing.assert_array_equal(clipped[f"value/{kind}"], params[f"value/{kind}"])
        if balance == 1:
            np.testing.assert_array_equal(key, params[f"key/{kind}"])
            np.testing.assert_array_equal(
                query[..., 1, :], params[f"query/{kind}"][..., 1, :]
            )
    # Innocent heads of the clipped group: the key shrank by g^(1-b), the query made up.
    factor = 0.25 ** (1 - balance)
    np.testing.assert_allclose(
        clipped["key/kernel"][:, 0], factor * params["key/kernel"][:, 0], rtol=2e-7
    )
    before, after = layout.logits(params, x), layout.logits(clipped, x)
    # Relative to the largest logit: roundings of float32 weights, 6e-8 each.
    for head in (1, 3):
        np.testing.assert_allclose(
            after[head], before[head], atol=1e-6 * np.abs(before[head]).max()
        )
    for head, gamma in ((0, 0.25), (2, 0.5)):
        np.testing.assert_allclose(
            after[head], gamma * before[head], atol=1e-6 * np.abs(before[head]).max()
        )


CLIPS_NOTHING = pytest.mark.promise(
    "Faults",
    "A largest logit that is negative, zero or not finite clips nothing",
    on="qk_clip",
)


@CLIPS_NOTHING
@pytest.mark.parametrize(
    "value", [-5.0, 0.0, 10.0, -np.inf, np.inf, np.nan], ids=lambda value: str(value)
)
def test_no_factor_without_a_finite_logit_above_the_threshold(
    rng: np.random.Generator, value: float
) -> None:
    layout, params, _, _ = grouped(rng)
    clipped = clip(layout, params, np.full(8, value, np.float32), threshold=10.0)
    for name, leaf in params.items():
        np.testing.assert_array_equal(clipped[name], leaf)


@CLIPS_NOTHING
def test_a_bad_statistic_of_one_head_leaves_the_rule_of_the_others(
    rng: np.random.Generator,
) -> None:
    layout, params, _, largest = grouped(rng)
    wanted = clip(layout, params, largest, threshold=10.0)
    for bad in (np.nan, np.inf, -np.inf):
        clipped = clip(
            layout, params, np.where(np.arange(8) == 1, bad, largest), threshold=10.0
        )
        for name, leaf in wanted.items():
            np.testing.assert_array_equal(clipped[name], leaf)


@pytest.mark.parametrize("largest", [1e30, 3e38])
def test_factors_of_huge_logits_are_finite_and_not_zero(
    rng: np.random.Generator, largest: float
) -> None:
    layout, params, _, _ = grouped(rng)
    clipped = clip(layout, params, np.full(8, largest, np.float32), threshold=1e-2)
    for name in ("query/kernel", "key/kernel"):
        assert np.isfinite(clipped[name]).all()
        assert (clipped[name] != 0).all()


def test_a_gain_stored_from_one_stays_where_its_factor_is_one() -> None:
    """`(1e-9 + 1) * 1 - 1` is 0 in float32."""
    spec = mo.Attention(
        2,
        query=mo.HeadPart("q", axis=0, offset=1.0),
        key=mo.HeadPart("k", axis=0, offset=1.0),
    )
    params = {name: jnp.full((2, 3), 1e-9) for name in "qk"}
    clipped = mo.apply_qk_clip(
        params, {"": jnp.array([8.0, 1.0])}, {"": spec}, threshold=2.0
    )
    for name in "qk":
        np.testing.assert_allclose(clipped[name][0], -0.5, rtol=1e-6)
        np.testing.assert_array_equal(clipped[name][1], params[name][1])
