"""The optimizer of a network that was read: lengths of steps, programs, wrappers."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import manifold_optax as mo
from manifold_optax.linalg import JORDAN
from manifold_optax.modular._atom_axes import axes_of_atoms
from manifold_optax.modular._budget import Budget, budget
from manifold_optax.modular._module import Atom
from manifold_optax.modular._optimizer import modular_optimizer, project_parameters
from modular.handmade import gaussian, Handmade, handmade

SHAPES = {
    "bias": (8,),
    "embed": (10, 8),
    "head": (8, 4),
    "layers": (2, 8, 16),
    "table": (10, 4),
    "up": (16, 8),
}
NUMBERS = {"head": 0.5, "layers": [3.0, 2.0], "up": 4.0, "embed": 7.0, "bias": 2.0}
ATOMS = (
    Atom("bias", "vector", norm=mo.Max()),
    Atom("embed", "embedding", norm=mo.RowRms()),
    Atom("head", "readout"),
    Atom("layers", axes=mo.STACKED, manifold=mo.Stiefel("rms")),
    Atom("table", "embedding", axes=mo.STACKED, norm=mo.ColumnRms()),
    Atom("up"),
)
RATE = 0.1
# float32: a step of length 0.1·share is the difference of weights of order 1.
LENGTH = 1e-5
Tree = Any


def network(atoms: Any = ATOMS, shapes: Any = SHAPES) -> Handmade:
    return handmade(gaussian(shapes), atoms, NUMBERS)


def start(module: Handmade, dtype: Any = jnp.float32) -> Tree:
    shapes = {path: tuple(shape) for path, shape in module.shapes.items()}
    params = jax.tree.map(lambda x: x / 4, gaussian(shapes, 0, dtype))
    return project_parameters(module, params)


def step(tx: Any, params: Tree, seed: int = 1) -> Tree:
    """The updates of the first step."""
    shapes = {path: leaf.shape for path, leaf in params.items()}
    gradient = gaussian(shapes, seed, params["up"].dtype)
    return jax.jit(tx.update)(gradient, tx.init(params), params)[0]


def norms(module: Handmade, updates: Tree) -> dict[str, np.ndarray]:
    """Norm of each update in the norm of its atom, by float64 NumPy."""
    x = {path: np.asarray(leaf, np.float64) for path, leaf in updates.items()}
    found = {}
    for atom in module.atoms:
        own = x[atom.path]
        if atom.norm == mo.Max():
            found[atom.path] = np.abs(own).max()
        elif atom.role == "embedding":
            # Tokens come first, however the axes call them.
            found[atom.path] = np.sqrt(np.square(own).mean(-1)).max()
        else:
            scale = np.sqrt(own.shape[-2] / own.shape[-1])
            found[atom.path] = scale * np.linalg.norm(own, 2, axis=(-2, -1))
    return found


def relative(module: Handmade, shared: Budget, updates: Tree) -> dict[str, np.ndarray]:
    """‖ΔW‖/share, which is the learning rate."""
    lengths = norms(module, updates)
    return {path: lengths[path] / np.array(s) for path, s in shared.shares.items()}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_first_step_has_the_length_of_the_learning_rate(dtype: Any) -> None:
    module = network()
    shared = budget(module, vectors=True)
    # Vectors have no retraction, and steps on a manifold are compared below.
    free = [atom.path for atom in ATOMS if atom.manifold == mo.Euclidean()]
    updates = step(modular_optimizer(module, RATE, budget=shared), start(module, dtype))
    found = relative(module, shared, updates)
    rtol = LENGTH if dtype == jnp.float32 else 2 * float(jnp.finfo(dtype).eps)
    for path in free:
        np.testing.assert_allclose(found[path], RATE, rtol=rtol, err_msg=path)
    assert all(leaf.dtype == dtype for leaf in updates.values())


@pytest.mark.parametrize("size", ["rms", 2.0])
def test_the_tangent_step_on_a_manifold_has_that_length_too(size: Any) -> None:
    stiefel = mo.Stiefel(size)
    module = network([dataclasses.replace(a, manifold=stiefel) for a in ATOMS[3:4]])
    module = dataclasses.replace(module, shapes={"layers": SHAPES["layers"]})
    params = start(module)
    tx = modular_optimizer(module, RATE)
    axes = axes_of_atoms(module.atoms)
    gradient = gaussian({"layers": SHAPES["layers"]}, 1)
    updates = jax.jit(tx.update)(gradient, tx.init(params), params)[0]
    # The retraction of a tangent step A is polar(W + A): on the unit manifold its
    # singular values are √(1 + σ²), so that the step is told from where it lands.
    moved = optax.apply_updates(params, updates)
    shares = np.array(budget(module).share("layers"))
    for k in range(2):
        w, new = (np.asarray(t["layers"][k], np.float64).T for t in (params, moved))
        scale = np.linalg.norm(w, 2)
        tangent = _tangent(w / scale, new / scale) * scale
        length = np.linalg.norm(tangent, 2) * np.sqrt(w.shape[1] / w.shape[0])
        # The tangent step is a quotient of small differences: 1e-7 over 0.02.
        np.testing.assert_allclose(length, RATE * shares[k], rtol=5e-5)
    residual = mo.diagnostics.residual(moved, stiefel, axes=axes)["layers"]
    assert float(jnp.max(residual)) < 1e-5  # a few rounding units of 1e-7


def _tangent(w: np.ndarray, new: np.ndarray) -> np.ndarray:
    """The tangent A at w with polar(w + A) = new: A = new·S − w, S symmetric.

    wᵀA must be skew: wᵀ·new·S + S·newᵀ·w = 2·I, a Lyapunov equation.
    """
    from scipy.linalg import solve_continuous_lyapunov

    b = w.T @ new
    s = solve_continuous_lyapunov(b, 2 * np.eye(w.shape[1]))
    return new @ s - w


def test_a_schedule_multiplies_all_steps() -> None:
    module = network()
    params = start(module)
    shared = budget(module, vectors=True)
    rates = optax.piecewise_constant_schedule(RATE, {1: 0.5})
    tx = modular_optimizer(module, rates, momentum=None, budget=shared)
    gradient = gaussian(SHAPES, 1)
    first, state = jax.jit(tx.update)(gradient, tx.init(params), params)
    second, _ = jax.jit(tx.update)(gradient, state, params)
    free = [a.path for a in ATOMS if a.manifold == mo.Euclidean()]
    for path in free:
        # Half, which is exact in binary.
        np.testing.assert_array_equal(second[path], first[path] / 2)


def test_vectors_and_what_is_left_out_belong_to_others() -> None:
    module = network()
    shared = budget(module, masses={"readout": None})
    tx = modular_optimizer(module, RATE, others=optax.sgd(1.0), budget=shared)
    params, gradient = start(module), gaussian(SHAPES, 1)
    updates = jax.jit(tx.update)(gradient, tx.init(params), params)[0]
    for path in ("bias", "head"):
        np.testing.assert_array_equal(updates[path], -gradient[path])


def test_mass_0_freezes() -> None:
    module = network()
    tx = modular_optimizer(module, RATE, budget=budget(module, masses={"up": 0.0}))
    assert not np.any(step(tx, start(module))["up"])


def test_zero_gradients_move_nothing_free() -> None:
    module = network()
    shared = budget(module, vectors=True)
    tx = modular_optimizer(module, RATE, budget=shared)
    params = start(module)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates = jax.jit(tx.update)(zeros, tx.init(params), params)[0]
    for path, leaf in updates.items():
        # On the manifold: the rounding of the retraction.
        assert float(jnp.max(jnp.abs(leaf))) <= (1e-6 if path == "layers" else 0), path


def test_a_nan_stays_in_its_matrix() -> None:
    module = network()
    shared = budget(module, vectors=True)
    tx = modular_optimizer(module, RATE, budget=shared)
    params, gradient = start(module), gaussian(SHAPES, 1)
    gradient["layers"] = gradient["layers"].at[1, 0, 0].set(jnp.nan)
    gradient["bias"] = gradient["bias"].at[0].set(jnp.nan)
    updates = jax.jit(tx.update)(gradient, tx.init(params), params)[0]
    assert bool(jnp.all(jnp.isnan(updates["layers"][1])))
    assert bool(jnp.all(jnp.isfinite(updates["layers"][0])))
    assert bool(jnp.isnan(updates["bias"][0]))
    assert bool(jnp.all(jnp.isfinite(updates["bias"][1:])))
    assert all(bool(jnp.all(jnp.isfinite(updates[p]))) for p in ("up", "head", "embed"))


def test_newton_schulz_in_place_of_exact_directions() -> None:
    module = network()
    params = start(module)
    exact = step(modular_optimizer(module, RATE), params)
    near = step(modular_optimizer(module, RATE, schedule=JORDAN), params)
    np.testing.assert_array_equal(near["layers"], exact["layers"])
    ratio = norms(module, near)["up"] / norms(module, exact)["up"]
    # JORDAN's singular values end in [0.68, 1.14] (orthogonalize_via_newton_schulz).
    assert 0.68 < ratio < 1.2
    assert ratio != pytest.approx(1, abs=1e-3)


def test_the_state_is_that_of_the_momentum() -> None:
    module = network()
    tx = modular_optimizer(module, RATE, others=optax.sgd(1.0))
    state = jax.eval_shape(tx.init, start(module))
    size = sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim)
    own = {path: shape for path, shape in SHAPES.items() if path != "bias"}
    assert size == sum(np.prod(shape) for shape in own.values())


def test_without_momentum_there_is_no_state_of_the_parameters() -> None:
    module = network()
    tx = modular_optimizer(module, RATE, momentum=None, others=optax.sgd(1.0))
    state = jax.eval_shape(tx.init, start(module))
    assert not [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]


@pytest.mark.slow
def test_multi_steps_emit_the_step_of_the_mean() -> None:
    module = network()
    inner = modular_optimizer(module, RATE)
    tx = optax.MultiSteps(inner, 2).gradient_transformation()
    params = start(module)
    state, update = tx.init(params), jax.jit(tx.update)
    one, two = gaussian(SHAPES, 1), gaussian(SHAPES, 2)
    silent, state = update(one, state, params)
    chex.assert_trees_all_equal(silent, jax.tree.map(jnp.zeros_like, params))
    emitted, _ = update(two, state, params)
    mean = jax.tree.map(lambda x, y: (x + y) / 2, one, two)
    wanted, _ = jax.jit(inner.update)(mean, inner.init(params), params)
    # Another program rounds differently: a few units of steps of order 0.1.
    chex.assert_trees_all_close(emitted, wanted, rtol=2e-5, atol=2e-5)


def test_numbers_may_be_injected() -> None:
    module = network()
    tx = optax.inject_hyperparams(modular_optimizer, static_args=("module", "budget"))(
        module, learning_rate=RATE, momentum=0.9
    )
    state = jax.eval_shape(tx.init, start(module))
    assert set(state.hyperparams) == {"learning_rate", "momentum"}
    jax.eval_shape(tx.update, gaussian(SHAPES, 1), state, start(module))


def test_in_an_nnx_optimizer() -> None:
    class Model(nnx.Module):
        def __init__(self) -> None:
            self.up = nnx.Linear(4, 8, rngs=nnx.Rngs(0))
            self.head = nnx.Linear(8, 2, rngs=nnx.Rngs(1))

    model = Model()
    paths = {"head/bias": "vector", "head/kernel": "readout"}
    paths |= {"up/bias": "vector", "up/kernel": "matrix"}
    norm = {"vector": mo.Max()}
    atoms = [Atom(k, v, norm=norm.get(v, mo.RmsToRms())) for k, v in paths.items()]
    params = nnx.state(model, nnx.Param)
    module = handmade(params, atoms)
    optimizer = nnx.Optimizer(model, modular_optimizer(module, RATE), wrt=nnx.Param)
    before = np.asarray(model.up.kernel[...])
    optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param)))
    change = np.linalg.norm(np.asarray(model.up.kernel[...]) - before, 2)
    # Share 1/2; fan-out over fan-in is 2. A difference of weights rounds to 1e-6.
    np.testing.assert_allclose(change / np.sqrt(2), RATE / 2, rtol=1e-5)


def test_describe_shows_the_links() -> None:
    module = network()
    table = str(mo.describe(modular_optimizer(module, RATE), start(module)))
    lines = {line.split()[0]: line for line in table.splitlines() if line}
    assert "Stiefel(scale='rms') × RmsToRms()" in lines["layers"]
    assert "steepest, scale_by_modular_budget, retract" in lines["layers"]
    assert "8 × 10" not in lines["embed"]
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


def test_project_parameters_leaves_free_ones_alone() -> None:
    module = network()
    params = gaussian(SHAPES)
    found = project_parameters(module, params)
    for path in SHAPES:
        if path != "layers":
            np.testing.assert_array_equal(found[path], params[path])
    axes = axes_of_atoms(ATOMS[3:4])
    own = {"layers": found["layers"]}
    residual = mo.diagnostics.residual(own, mo.Stiefel("rms"), axes=axes)["layers"]
    assert float(jnp.max(residual)) < 1e-5  # a few rounding units of 1e-7


def test_weights_off_their_manifold_are_named() -> None:
    with pytest.raises(ValueError, match=r"'layers' is not on Stiefel.*mo\.project"):
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
