"""Any leaf in any layout: as NumPy computes it in float64, or refused by its name."""

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, HealthCheck, settings, strategies as st

import manifold_optax as mo
import oracles
from matrices.views import Dims, Example

PATH = "block/weights"
EPS = float(np.finfo(np.float32).eps)

# Axes as the library takes them; inputs and outputs as NumPy does; the rank of a leaf.
LAYOUTS: dict[str, tuple[Any, tuple[int, ...], tuple[int, ...], int]] = {
    "two axes": (None, (0,), (1,), 2),
    "PyTorch": (mo.OUT_IN, (1,), (0,), 2),
    "stacked": (mo.STACKED, (1,), (2,), 3),
    "stacked twice": (mo.STACKED, (2,), (3,), 4),
    "batch between": (Dims(0, 2), (0,), (2,), 3),
    "batch last": (Dims(0, 1), (0,), (1,), 3),
    "heads": (mo.HEADS, (0,), (1, 2), 3),
    "heads out": (mo.HEADS_OUT, (0, 1), (2,), 3),
    "convolution": (mo.CONV, (0, 1, 2), (3,), 4),
    "split": (mo.Split((1, 2, 2)), (0,), (1,), 2),
    "split rows": (mo.Split((2, 1), axis=-2), (1,), (2,), 3),
}

WRONG_DTYPES = ("int32", "bool", "complex64", "float8_e4m3fn")
EXPONENTS = {"float32": 30, "bfloat16": 30, "float16": 7}
"""Largest power of ten of a scale; beyond, float16 has no numbers."""

VALUES = ("gaussian", "ones", "zero", "one NaN", "one infinity")


def frobenius(matrix: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(matrix)
    return matrix / norm if norm else matrix


def row_rms(matrix: np.ndarray) -> np.ndarray:
    """Rows are those of `[fan_out, fan_in]`, so columns here."""
    norms = np.linalg.norm(matrix, axis=0) / matrix.shape[0] ** 0.5
    return matrix / np.where(norms, norms, 1)


class Rule(NamedTuple):
    """A transformation of matrices, what it does to each in float64, and how well."""

    make: Callable[..., optax.GradientTransformation]
    oracle: Callable[[np.ndarray], np.ndarray]
    amplifies: bool = False
    """Rounding of the input is multiplied by the condition of the matrix."""


RULES = {
    "frobenius": Rule(
        functools.partial(mo.steepest, mo.Euclidean(), mo.Frobenius()), frobenius
    ),
    "max": Rule(functools.partial(mo.steepest, mo.Euclidean(), mo.Max()), np.sign),
    "rows": Rule(functools.partial(mo.steepest, mo.Euclidean(), mo.RowRms()), row_rms),
    "spectral": Rule(
        functools.partial(mo.steepest, mo.Euclidean(), mo.Spectral()),
        functools.partial(oracles.polar, tolerance=1e-5),
        amplifies=True,
    ),
    "newton_schulz": Rule(
        mo.orthogonalize_via_newton_schulz,
        lambda matrix: oracles.newton_schulz(matrix, mo.linalg.JORDAN),
    ),
}
CHEAP = ("frobenius", "max", "rows")


class Leaf(NamedTuple):
    """A drawn leaf."""

    layout: str
    shape: tuple[int, ...]
    fits: bool
    dtype: str
    values: str
    exponent: int
    seed: int

    @property
    def gradient(self) -> Any:
        """The gradient in its dtype; that is what NumPy gets, too."""
        x = np.random.default_rng(self.seed).standard_normal(self.shape)
        if self.values == "ones":
            x = np.ones(self.shape)
        scale = 10.0 ** min(self.exponent, EXPONENTS.get(self.dtype, 0))
        x = np.zeros(self.shape) if self.values == "zero" else x * scale
        if self.values == "one NaN":
            x.flat[0] = np.nan
        if self.values == "one infinity":
            x.flat[-1] = -np.inf
        if self.dtype in WRONG_DTYPES:
            x = np.ones(self.shape)
        return jnp.asarray(x, self.dtype)


@st.composite
def leaves(draw: st.DrawFn, sizes: tuple[int, ...] = (1, 2, 3, 5)) -> Leaf:
    layout = draw(st.sampled_from(sorted(LAYOUTS)))
    axes, *_, rank = LAYOUTS[layout]
    fits = draw(st.sampled_from((True, True, True, False)))
    shape = [draw(st.sampled_from(sizes)) for _ in range(rank)]
    if isinstance(axes, mo.Split):
        # One more than the blocks hold does not fit.
        shape[axes.axis] = sum(axes.sizes) + (not fits)
    elif not fits:
        # One axis is too few for any layout, but for those of stacks.
        shape = shape[:1]
    dtype = draw(st.sampled_from((*EXPONENTS, *EXPONENTS, *WRONG_DTYPES)))
    values = draw(st.sampled_from(VALUES))
    largest = EXPONENTS.get(dtype, 0)
    exponent = draw(st.integers(-largest, largest if dtype != "float16" else 3))
    seed = draw(st.integers(0, 2**16))
    return Leaf(layout, tuple(shape), fits, dtype, values, exponent, seed)


def tolerance(rule: Rule, leaf: Leaf, matrix: np.ndarray) -> float:
    """Entries of a direction are at most some units; the result is rounded to dtype."""
    rounding = max(EPS, float(jnp.finfo(leaf.dtype).eps))
    if not rule.amplifies:
        # Newton-Schulz's steep polynomials amplify float32 rounding 485 times at most.
        return 4 * rounding + 512 * EPS
    values = np.linalg.svd(matrix, compute_uv=False)
    kept = values[values > 1e-5 * values[0]]
    return 4 * rounding + EPS * (8 + 4 * values[0] / kept[-1]) if values[0] else 0.0


def near_the_border(matrix: np.ndarray) -> bool:
    """Whether a singular value is so small that it may be kept, dropped or between."""
    values = np.linalg.svd(matrix, compute_uv=False)
    return bool(((values > 1e-8 * values[0]) & (values < 1e-4 * values[0])).any())


def check(rule: Rule, leaf: Leaf) -> None:
    """The law: the oracle's numbers, what is not finite visible, or a named error."""
    axes, inputs, outputs, _ = LAYOUTS[leaf.layout]
    tx, gradient = rule.make(axes=axes), {"block": {"weights": leaf.gradient}}

    def update() -> Any:
        params = jax.tree.map(jnp.ones_like, gradient)
        updates, _ = jax.jit(tx.update)(gradient, tx.init(params), params)
        return updates["block"]["weights"]

    if not leaf.fits or leaf.dtype in WRONG_DTYPES:
        with pytest.raises((ValueError, TypeError), match=re.escape(repr(PATH))):
            update()
        return
    found = update()
    assert (found.shape, found.dtype) == (leaf.shape, leaf.dtype)
    example = Example(leaf.shape, axes, inputs, outputs)
    off = []

    def compare(pair: np.ndarray) -> np.ndarray:
        got, given = np.real(pair), np.imag(pair)
        if not np.isfinite(given).all():
            off.append(np.isfinite(got).all())
        elif not (rule.amplifies and near_the_border(given)):
            wanted = rule.oracle(given)
            off.append(np.abs(got - wanted).max() > tolerance(rule, leaf, given))
        return got

    # Both in one array, so that each matrix of one stands beside that of the other.
    both = np.empty(leaf.shape, np.complex128)
    both.real = np.asarray(found, np.float64)
    both.imag = np.asarray(leaf.gradient, np.float64)
    example.each(both, compare)
    assert not any(off), (leaf, found, leaf.gradient)


law = functools.partial(
    settings,
    deadline=None,
    derandomize=True,
    # The fixtures are for the whole test.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


RIGHT_OR_REFUSED = pytest.mark.promise(
    "Faults",
    "Any leaf gets the direction that NumPy computes in float64, shows what is not "
    "finite, or is refused by its name",
    on=(
        "11 layouts (axes, batches, heads, convolutions, splits); bfloat16, float16, "
        "float32; scales 1e-30 to 1e30; zero, rank one, NaN, infinity; dtypes and "
        "shapes that do not fit"
    ),
)


@RIGHT_OR_REFUSED
@law(max_examples=6)
@given(leaf=leaves(sizes=(2,)), rule=st.sampled_from(CHEAP))
def test_a_few_leaves_are_right_or_refused(
    leaf: Leaf, rule: str, unhooked: None
) -> None:
    check(RULES[rule], leaf)


@RIGHT_OR_REFUSED
@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
@law(max_examples=60)
@given(leaf=leaves())
def test_many_leaves_are_right_or_refused(
    leaf: Leaf, rule: str, unhooked: None
) -> None:
    check(RULES[rule], leaf)


ROLES = ("matrix", "vector", "embedding", "readout", "other")


@pytest.mark.promise(
    "Faults",
    "What is no matrix by its role gets the optimizer of the others, to the bit",
    on="hybrid; every role, 11 layouts, any scale, NaN, infinity",
)
@pytest.mark.slow
@law(max_examples=60)
@given(leaf=leaves(), role=st.sampled_from(ROLES))
def test_a_role_decides_which_optimizer_a_leaf_gets(
    leaf: Leaf, role: str, unhooked: None
) -> None:
    if not leaf.fits or leaf.dtype in WRONG_DTYPES:
        return
    axes, *_ = LAYOUTS[leaf.layout]
    own = (mo.STACKED if axes is None else axes) if role == "matrix" else role
    # A label that nothing has would be an error.
    roles = mo.roles({PATH: own, "always": mo.STACKED})
    gradient = {"block": {"weights": leaf.gradient}, "always": jnp.ones((2, 2))}
    matrices = mo.steepest(mo.Euclidean(), mo.Max(), axes=roles)
    tx = mo.hybrid(matrices, others=optax.sgd(1.0), labels=roles)
    updates, _ = jax.jit(tx.update)(gradient, tx.init(gradient), gradient)
    found = np.asarray(updates["block"]["weights"], np.float64)
    given = np.asarray(leaf.gradient, np.float64)
    wanted = np.sign(given) if role == "matrix" else -given
    finite = np.isfinite(given)
    np.testing.assert_array_equal(found[finite], wanted[finite])
    assert not np.isfinite(found[~finite]).any()
