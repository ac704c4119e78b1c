"""Scalar functions: bounds against dense maxima in float64, and random programs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from manifold_optax.modular._scalar import analyse, apply, constant, IDENTITY
from modular.scalar_programs import expression

SLACK = 2e-4
"""What the analysis promises: bounds at most this much (relative) above the best."""

ROUNDING = 1e-6
"""The programs have float32 constants, the references float64 ones."""

INF = math.inf


def grid():
    """Points that are dense where activations bend and reach to 1e18."""
    far = np.logspace(-20, 18, 1001)
    near = np.linspace(-12, 12, 40_001)
    points = np.concatenate([-far, near, far])
    # Not on the kinks themselves, where a derivative is a convention.
    return points[np.abs(points * 6 - np.round(points * 6)) > 1e-12]


def measured(function, points):
    """Values and derivatives by automatic differentiation in float64."""
    both = jax.jit(jax.vmap(jax.value_and_grad(function)))(jnp.asarray(points))
    return map(np.asarray, both)


ACTIVATIONS = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "sigmoid": jax.nn.sigmoid,
    "softplus": jax.nn.softplus,
    "sparse_plus": jax.nn.sparse_plus,
    "sparse_sigmoid": jax.nn.sparse_sigmoid,
    "soft_sign": jax.nn.soft_sign,
    "silu": jax.nn.silu,
    "log_sigmoid": jax.nn.log_sigmoid,
    "leaky_relu": jax.nn.leaky_relu,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "hard_silu": jax.nn.hard_silu,
    "hard_tanh": jax.nn.hard_tanh,
    "elu": jax.nn.elu,
    "celu": jax.nn.celu,
    "celu of 0.7": lambda x: jax.nn.celu(x, 0.7),
    "selu": jax.nn.selu,
    "gelu": jax.nn.gelu,
    "gelu exact": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu by erf": lambda x: 0.5 * x * (1.0 + jax.lax.erf(x / math.sqrt(2.0))),
    "gelu by a sigmoid": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "squareplus": jax.nn.squareplus,
    "mish": jax.nn.mish,
    "identity": jax.nn.identity,
    "tanh": jnp.tanh,
    "sin": jnp.sin,
    "cos": jnp.cos,
    "arctan": jnp.arctan,
    "softplus of an affine map": lambda x: jax.nn.softplus(0.3 * x + 0.1),
    "softplus by hand": lambda x: jnp.log(1.0 + jnp.exp(jnp.minimum(x, 30.0))),
    "hard swish in float32": lambda x: jnp.where(
        x < -3, 0.0, jnp.where(x > 3, x, x * (x + 3) * 0.16666667)
    ),
    "two selections": lambda x: jnp.where(
        x > 0, jnp.log1p(jnp.where(x > 0, x, 7.0)), 0.0
    ),
    "normalised": lambda x: x * jax.lax.rsqrt(x * x + 1e-2),
    "clipped": lambda x: jnp.clip(2.5 * x - 0.3, -1.0, 1.7),
}


@pytest.fixture(scope="module")
def references():
    """Values and derivatives of all activations on the grid, by one compilation."""
    jax.config.update("jax_enable_x64", True)
    results = jax.jit(
        lambda x: {
            name: jax.vmap(jax.value_and_grad(function))(x)
            for name, function in ACTIVATIONS.items()
        }
    )(jnp.asarray(grid()))
    jax.config.update("jax_enable_x64", False)
    return results


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name, references):
    points = grid()
    facts = analyse(expression(ACTIVATIONS[name]))
    values, slopes = map(np.asarray, references[name])
    steepest = np.nanmax(np.abs(slopes))
    # The grid, of step 6e-4, misses a maximum of a smooth slope by less than 1e-6.
    assert steepest * (1 - ROUNDING) <= facts.lipschitz
    assert facts.lipschitz <= steepest * (1 + SLACK + ROUNDING)
    margin = ROUNDING * (1 + np.abs(values))
    assert (facts.lo <= values + margin).all()
    assert (values - margin <= facts.hi).all()
    assert (np.abs(values) <= facts.growth * np.abs(points) * (1 + ROUNDING)).all()
    largest = max(-facts.slope_lo, facts.slope_hi)
    assert math.isclose(largest, facts.lipschitz, rel_tol=SLACK)
    assert facts.continuous


@pytest.mark.parametrize(
    ("function", "domain", "expected"),
    [
        (jnp.square, (-3.0, 3.0), 6.0),
        (jnp.square, (-INF, INF), INF),
        (jnp.square, (-3.0, 1.0), 6.0),
        (lambda x: jax.nn.relu(x) ** 2, (0.0, 3.0), 6.0),
        (lambda x: jax.nn.relu(x) ** 2, (-5.0, 3.0), 6.0),
        (jnp.exp, (-1.0, 1.0), math.e),
        (jnp.exp, (-INF, INF), INF),
        (lambda x: 1.0 / x, (1.0, 2.0), 1.0),
        (lambda x: 1.0 / x, (-1.0, 2.0), INF),
        (lambda x: jax.lax.rsqrt(x + 1e-6), (0.0, INF), 0.5e9),
        (jnp.sqrt, (0.25, 4.0), 1.0),
        (jnp.sqrt, (0.0, 4.0), INF),
        (jnp.log, (0.5, INF), 2.0),
        (jnp.log, (-1.0, 1.0), INF),
        (jnp.cbrt, (1.0, 8.0), 1 / 3),
        (lambda x: x**3, (-2.0, 1.0), 12.0),
        (lambda x: x**-2, (0.5, 1.0), 16.0),
        (lambda x: x**1.5, (0.0, 4.0), 3.0),
        (lambda x: 2.0**x, (-INF, 3.0), 8 * math.log(2)),
        (jnp.sinh, (-1.0, 1.0), math.cosh(1.0)),
        (jnp.cosh, (-1.0, 1.0), math.sinh(1.0)),
        (lambda x: jnp.sqrt(x * x), (-INF, INF), 1.0),
        (lambda x: jnp.exp(-(x**2)), (-INF, INF), math.sqrt(2 / math.e)),
        (lambda x: jnp.tanh(50.0 * (x - 0.3)), (-INF, INF), 50.0),
        (lambda x: 0.0 * x + 3.0, (-INF, INF), 0.0),
    ],
)
def test_lipschitz_constant_on_a_domain(function, domain, expected):
    bound = analyse(expression(function), *domain).lipschitz
    if expected == INF:
        assert bound == INF
    else:
        # ROUNDING: constants such as 1e-6 are rounded to float32.
        assert expected * (1 - ROUNDING) <= bound <= expected * (1 + SLACK) + 1e-9


@pytest.mark.parametrize(
    ("function", "lipschitz"),
    [
        (lambda x: jnp.where(x > 0, 1.0, 0.0), INF),
        (lambda x: jnp.where(x >= 0, 1.0, 0.0), INF),
        (jnp.sign, INF),
        (jnp.floor, INF),
        (jnp.round, INF),
        (lambda x: jnp.where(x > 0, x, -1.0), INF),
        (lambda x: jnp.where(x > 0.1, x, 0.1001), INF),
        (lambda x: jnp.where(x > 0.1, x, 0.1), 1.0),
        (lambda x: jnp.where(3.0 * x > 1.0, 3.0 * x, 1.0), 3.0),
        (lambda x: jnp.where(x * x > 2.0, 2.0, x * x), 2 * math.sqrt(2)),
        (lambda x: jnp.where(x * x > 2.0, 1.9, x * x), INF),
        # Rounding leaves open whether tanh² is above 1, on cells of any width.
        (
            lambda x: jnp.where(jnp.tanh(x) ** 2 > 1.0, 1.0, jnp.tanh(x) ** 2),
            4 / 27**0.5,
        ),
        (lambda x: jnp.where(x == 0, 1.0, x), INF),
        (lambda x: jnp.where(x == 0, 0.0, x), 1.0),
        (lambda x: jnp.where((x > -1) & (x < 1), x, jnp.sign(x)), 1.0),
        (lambda x: jnp.where((x > -1) & ~(x > 1), x, 0.0), INF),
        (lambda x: x * jnp.sign(x), 1.0),
        (lambda x: x * (x > 0).astype(jnp.float32), 1.0),
        (lambda x: jnp.where(x > 1000, jnp.exp(x), 0.0), INF),
        (lambda x: x + jax.lax.stop_gradient(jnp.round(x) - x), INF),
    ],
)
def test_jumps_and_branches_that_meet(function, lipschitz):
    facts = analyse(expression(function))
    if lipschitz == INF:
        assert facts.lipschitz == INF
        assert not facts.continuous
    else:
        assert lipschitz * (1 - ROUNDING) <= facts.lipschitz
        assert facts.lipschitz <= lipschitz * (1 + SLACK)
        assert facts.continuous


@pytest.mark.parametrize(
    ("function", "growth", "lo", "hi"),
    [
        (jax.nn.relu, 1.0, 0.0, INF),
        (jax.nn.relu6, 1.0, 0.0, 6.0),
        (jax.nn.silu, 1.0, -0.278465, INF),
        (jax.nn.gelu, 1.0, -0.170041, INF),
        (jax.nn.elu, 1.0, -1.0, INF),
        (jax.nn.sigmoid, INF, 0.0, 1.0),
        (jnp.tanh, 1.0, -1.0, 1.0),
        (jax.nn.softplus, INF, 0.0, INF),
        (jnp.square, INF, 0.0, INF),
        (lambda x: 0.25 * x, 0.25, -INF, INF),
        (lambda x: jnp.minimum(3.0 * jnp.abs(x), 2.0), 3.0, 0.0, 2.0),
        (lambda x: x * x * jnp.exp(-jnp.abs(x)), 1 / math.e, 0.0, 4 / math.e**2),
    ],
)
def test_growth_and_range(function, growth, lo, hi):
    facts = analyse(expression(function))
    # 1e-6: the references have six digits.
    assert growth * (1 - 1e-6) <= facts.growth <= growth * (1 + SLACK)
    assert facts.lo == pytest.approx(lo, rel=SLACK, abs=1e-6)
    assert facts.hi == pytest.approx(hi, rel=SLACK, abs=1e-6)
    assert facts.nonneg == (lo >= 0)


def test_at_zero():
    assert analyse(expression(jax.nn.softplus)).at_zero == pytest.approx(math.log(2))
    assert analyse(expression(jax.nn.relu)).at_zero == 0.0
    assert math.isnan(analyse(expression(jnp.log)).at_zero)


def test_single_point():
    facts = analyse(expression(jnp.exp), 1.0, 1.0)
    assert facts.lipschitz == 0.0
    assert facts.lo == pytest.approx(math.e)
    assert facts.hi == pytest.approx(math.e)
    assert analyse(expression(jnp.tanh), 0.0, 0.0).growth == 0.0


def test_empty_domain():
    with pytest.raises(ValueError, match=r"lo <= hi, got lo=1\.0 and hi=0\.0"):
        analyse(IDENTITY, 1.0, 0.0)


def test_expressions_are_shared_and_equal():
    value = IDENTITY
    for _ in range(64):  # as a tree this would have 2^64 leaves
        value = apply("add", [value, value], {})
        assert value is not None
    assert len(value.steps) == 64
    # 1e-9: rounding of 64 sums of intervals.
    assert analyse(value).lipschitz == pytest.approx(2.0**64, rel=1e-9)
    silu = expression(jax.nn.silu)
    assert silu == expression(lambda x: x * jax.nn.sigmoid(x))
    assert analyse(silu) is analyse(expression(jax.nn.silu))


@pytest.mark.parametrize(
    ("primitive", "operands", "params"),
    [
        ("lgamma", [IDENTITY], {}),
        ("pow", [IDENTITY, IDENTITY], {}),
        ("pow", [-2.0, IDENTITY], {}),
        ("and", [IDENTITY, 1.0], {}),
        ("select_n", [IDENTITY, 1.0, 2.0], {}),
        ("convert_element_type", [IDENTITY], {"new_dtype": np.int32}),
        ("add", [apply("gt", [IDENTITY, 0.0], {}), 1.0], {}),
    ],
)
def test_unknown_is_none(primitive, operands, params):
    assert apply(primitive, operands, params) is None


def test_constants_are_folded():
    three = apply("add", [1.0, constant(2.0)], {})
    assert three is not None
    assert three.constant == 3.0
    condition = apply("lt", [1.0, 2.0], {})
    assert condition is not None
    assert condition.constant is True
    assert apply("select_n", [condition, IDENTITY, 0.0], {}) == constant(0.0)


UNARY = [
    jnp.tanh,
    jnp.abs,
    jnp.sin,
    jnp.expm1,
    jnp.arctan,
    jnp.cbrt,
    jax.nn.sigmoid,
    jax.nn.relu,
    jax.lax.erf,
    jnp.arcsinh,
    jnp.square,
    lambda x: 1.0 / (1.0 + x * x),
    lambda x: jnp.sqrt(x * x + 0.5),
    lambda x: jnp.exp(-jnp.abs(x)),
    lambda x: jnp.log1p(x * x),
    lambda x: jax.nn.leaky_relu(x, 0.3),
    lambda x: 1.7 * x - 0.4,
]
BINARY = [jnp.add, jnp.subtract, jnp.multiply, jnp.maximum, jnp.minimum]


def random_function(rng):
    """A function composed of a few random ones."""
    parts = [
        (UNARY[rng.integers(len(UNARY))], UNARY[rng.integers(len(UNARY))])
        for _ in range(2)
    ]
    join = BINARY[rng.integers(len(BINARY))]

    def function(x):
        return join(*(outer(inner(x)) for outer, inner in parts))

    return function


@pytest.mark.parametrize("seed", range(8))
def test_bounds_hold_for_random_programs(seed, x64):
    rng = np.random.default_rng(seed)
    function = random_function(rng)
    points = np.concatenate([rng.normal(size=2000), 8 * rng.uniform(-1, 1, 2000)])
    facts = analyse(expression(function), -8.0, 8.0)
    values, slopes = measured(function, points)
    assert np.abs(slopes).max() <= facts.lipschitz * (1 + ROUNDING)
    margin = ROUNDING * (1 + np.abs(values))
    assert (facts.lo <= values + margin).all()
    assert (values - margin <= facts.hi).all()
    assert (np.abs(values) <= facts.growth * np.abs(points) * (1 + ROUNDING)).all()
