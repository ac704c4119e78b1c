"""The modular optimizer in wrappers and frameworks, its program and its messages."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

import manifold_optax as mo
from manifold_optax.modular._algebra._module import Atom
from manifold_optax.modular._budgets._budget import budget
from manifold_optax.modular._budgets._optimizer import modular_optimizer
from modular.handmade import gaussian, Handmade, handmade
from modular.sample_network import (
    ATOMS,
    CHEAP,
    gradients,
    network,
    RATE,
    SHAPES,
    start,
    step,
    Tree,
)


@pytest.mark.slow
def test_multi_steps_emit_the_step_of_the_mean() -> None:
    module = network(CHEAP)
    inner = modular_optimizer(module, RATE)
    tx = optax.MultiSteps(inner, 2).gradient_transformation()
    params = start(module)
    state, update = tx.init(params), jax.jit(tx.update)
    one, two = (gradients(module, seed) for seed in (1, 2))
    silent, state = update(one, state, params)
    chex.assert_trees_all_equal(silent, jax.tree.map(jnp.zeros_like, params))
    emitted, _ = update(two, state, params)
    mean = jax.tree.map(lambda x, y: (x + y) / 2, one, two)
    wanted = step(inner, params, mean)
    # Another program rounds differently: a few units of steps of order 0.1.
    chex.assert_trees_all_close(emitted, wanted, rtol=2e-5, atol=2e-5)


def test_numbers_may_be_injected() -> None:
    module = network()
    tx = optax.inject_hyperparams(modular_optimizer, static_args=("module", "budget"))(
        module, learning_rate=RATE, momentum=0.9
    )
    params = start(module)
    state = jax.eval_shape(tx.init, params)
    assert set(state.hyperparams) == {"learning_rate", "momentum"}
    jax.eval_shape(tx.update, gradients(module), state, params)


@pytest.mark.slow
def test_in_an_nnx_optimizer() -> None:
    class Model(nnx.Module):
        def __init__(self) -> None:
            self.up = nnx.Linear(4, 8, rngs=nnx.Rngs(0))
            self.head = nnx.Linear(8, 2, rngs=nnx.Rngs(1))

    model = Model()
    paths = {"head/bias": "vector", "head/kernel": "readout"}
    paths |= {"up/bias": "vector", "up/kernel": "matrix"}
    norm = {"vector": mo.Max()}
    atoms = [Atom(k, v, norm=norm.get(v, mo.Frobenius())) for k, v in paths.items()]
    params = nnx.state(model, nnx.Param)
    module = handmade(params, atoms)
    optimizer = nnx.Optimizer(model, modular_optimizer(module, RATE), wrt=nnx.Param)
    before = np.asarray(model.up.kernel[...])
    optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param)))
    change = np.linalg.norm(np.asarray(model.up.kernel[...]) - before)
    # A share of 1/2. A difference of weights of order 1 rounds to 1e-7 of 0.05.
    np.testing.assert_allclose(change, RATE / 2, rtol=1e-5)


def test_describe_shows_the_links() -> None:
    module = network()
    table = str(mo.describe(modular_optimizer(module, RATE), start(module)))
    lines = {line.split()[0]: line for line in table.splitlines() if line}
    assert "Sphere(radius=2.0) under Frobenius" in lines["layers"]
    assert "steepest, scale_by_modular_budget, retract" in lines["layers"]
    assert "10 × 8" in lines["embed"]
    assert "other" in lines["bias"]


def deep(count: int) -> Handmade:
    """A chain of layers, `[8, 16]` and `[16, 8]` in turn, with own sensitivities."""
    shapes = {f"{i:02}": (8, 16) if i % 2 else (16, 8) for i in range(count)}
    numbers = {path: 1.0 + i for i, path in enumerate(shapes)}
    return handmade(gaussian(shapes), [Atom(path) for path in shapes], numbers)


def program(tx: Any, params: Tree) -> Any:
    return jax.jit(tx.update).lower(params, tx.init(params), params)


def test_equal_layers_make_the_stacks_and_the_program_of_hybrid() -> None:
    module = deep(24)
    params = gaussian(dict(module.shapes))
    plain = mo.scion(RATE, norm=mo.Spectral(), momentum=0.95, nesterov=True)
    labels = mo.roles(default="matrix")
    ours = modular_optimizer(module, RATE)
    theirs = mo.hybrid(plain, labels=labels)
    stacks = [str(mo.describe(tx, params)).split("\n\n")[1] for tx in (ours, theirs)]
    assert stacks[0] == stacks[1]
    texts = [program(tx, params).as_text() for tx in (ours, theirs)]
    dots = [text.count("dot_general") for text in texts]
    assert dots[0] == dots[1]
    lines = [text.count("\n") for text in texts]
    # Two factors of each leaf, constants included, and no product or stack more.
    assert lines[0] - lines[1] <= 6 * 24


def test_vectors_on_an_explicit_mesh() -> None:
    module = network(ATOMS[:1])
    tx = modular_optimizer(module, RATE, budget=budget(module, vectors=True))
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        params = jax.device_put(
            {"bias": jnp.ones(8)}, jax.NamedSharding(mesh, P("data"))
        )
        updates = jax.eval_shape(tx.update, params, tx.init(params), params)[0]
    assert updates["bias"].sharding.spec == P("data")


def test_weights_off_their_manifold_are_named() -> None:
    with pytest.raises(ValueError, match=r"(?s)'layers' is not on Sphere.*mo\.project"):
        modular_optimizer(network(), RATE).init(gaussian(SHAPES))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"up": (16, 4)}, r"'up' is \(16, 4\) here, \(16, 8\) when"),
        ({"new": (2, 2)}, r"'new' is \(2, 2\) here, nothing when"),
    ],
)
def test_other_parameters_than_were_read(shapes: Any, message: str) -> None:
    tx = modular_optimizer(network(), RATE)
    with pytest.raises(ValueError, match=f"read from other parameters: {message}"):
        tx.init(gaussian(SHAPES | shapes))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"module": None}, TypeError, "module must be what"),
        ({"learning_rate": -0.1}, ValueError, "learning_rate must be"),
        ({"learning_rate": "0.1"}, TypeError, "learning_rate must be"),
        ({"momentum": 1.0}, ValueError, "momentum must be"),
        ({"nesterov": 1}, TypeError, "nesterov must be"),
        ({"others": 0.1}, TypeError, "others"),
        ({"budget": "worst"}, ValueError, "budget must be one of"),
        ({"budget": 1.0}, ValueError, "budget must be"),
        ({"schedule": "jordan"}, ValueError, "schedule"),
        ({"placement": "owned"}, TypeError, "placement"),
    ],
)
def test_wrong_arguments(
    arguments: Any, error: Any, message: str, unhooked: None
) -> None:
    right: Any = {"module": network(), "learning_rate": RATE}
    with pytest.raises(error, match=message):
        modular_optimizer(**(right | arguments))


def test_the_budget_of_another_module() -> None:
    shared = budget(deep(2))
    with pytest.raises(ValueError, match=r"budget is one of another module.*'00'"):
        modular_optimizer(network(), RATE, budget=shared)
