"""The optimizer of a network that was read: lengths and directions of its steps."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.linalg import solve_continuous_lyapunov

import manifold_optax as mo
from manifold_optax.linalg import JORDAN
from manifold_optax.modular._algebra._module import Atom
from manifold_optax.modular._budgets._atom_axes import axes_of_atoms
from manifold_optax.modular._budgets._budget import Budget, budget
from manifold_optax.modular._budgets._optimizer import (
    modular_optimizer,
    project_parameters,
)
from modular.handmade import gaussian, Handmade, handmade
from modular.sample_network import (
    ATOMS,
    CHEAP,
    FREE,
    gradients,
    network,
    RATE,
    SHAPES,
    SPHERE,
    start,
    step,
    Tree,
)

# What the theory promises; the norms of exact directions are off by a few 1e-7.
LENGTH = 1e-5


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A network with all kinds of atoms, and its optimizer, compiled once."""

    module: Handmade
    shared: Budget
    tx: Any
    update: Any

    def step(self, gradient: Tree) -> Tree:
        params = start(self.module)
        return self.update(gradient, self.tx.init(params), params)[0]


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    module = network()
    shared = budget(module, vectors=True)
    tx = modular_optimizer(module, RATE, budget=shared)
    return Compiled(module, shared, tx, jax.jit(tx.update))


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
            spectral = np.linalg.norm(own, 2, axis=(-2, -1))
            found[atom.path] = scale * spectral
    return found


def relative(module: Handmade, shared: Budget, updates: Tree) -> dict[str, np.ndarray]:
    """‖ΔW‖/share, which is the learning rate."""
    lengths = norms(module, updates)
    return {path: lengths[path] / np.array(s) for path, s in shared.shares.items()}


def test_the_first_step_has_the_length_of_the_learning_rate(
    compiled: Compiled,
) -> None:
    updates = compiled.step(gradients(compiled.module))
    found = relative(compiled.module, compiled.shared, updates)
    for path in FREE:
        np.testing.assert_allclose(found[path], RATE, rtol=LENGTH, err_msg=path)


def test_parameters_in_bfloat16() -> None:
    module = network(CHEAP)
    shared = budget(module, vectors=True)
    tx = modular_optimizer(module, RATE, budget=shared)
    dtype = jnp.bfloat16
    updates = step(tx, start(module, dtype), gradients(module, dtype=dtype))
    assert all(leaf.dtype == dtype for leaf in updates.values())
    found = relative(module, shared, updates)
    for path in {atom.path for atom in CHEAP} & set(FREE):
        # Rounded after the direction, the share and the learning rate.
        rtol = 1.5 * float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(found[path], RATE, rtol=rtol, err_msg=path)


def test_the_step_on_a_sphere_has_that_length_too(compiled: Compiled) -> None:
    params = start(compiled.module)["layers"]
    updates = compiled.step(gradients(compiled.module))["layers"]
    shares = compiled.shared.share("layers")
    for k, share in enumerate(shares):
        # The tangent step A at w lands at an angle of atan(‖A‖/2) on the radius 2.
        w, u = (np.asarray(x[k], np.float64) for x in (params, updates))
        cosine = np.sum(w * (w + u)) / np.linalg.norm(w) / np.linalg.norm(w + u)
        length = 2 * np.tan(np.arccos(cosine))
        # float32 weights of size 2 and a step of 0.01: 1e-7 over 5e-3.
        np.testing.assert_allclose(length, RATE * share, rtol=5e-5)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["rms", 2.0])
def test_the_step_on_stiefel_has_that_length_too(size: Any) -> None:
    stiefel = mo.Stiefel(size)
    atom = dataclasses.replace(ATOMS[3], manifold=stiefel, norm=mo.RmsToRms())
    module = network([atom])
    params = start(module)
    updates = step(modular_optimizer(module, RATE), params, gradients(module))
    moved: Any = optax.apply_updates(params, updates)
    shares = budget(module).share("layers")
    for k in range(2):
        w, new = (np.asarray(t["layers"][k], np.float64).T for t in (params, moved))
        scale = np.linalg.norm(w, 2)
        tangent = scale * _tangent(w / scale, new / scale)
        length = np.linalg.norm(tangent, 2) * np.sqrt(w.shape[1] / w.shape[0])
        # The tangent step is a quotient of small differences: 1e-7 over 5e-3.
        np.testing.assert_allclose(length, RATE * shares[k], rtol=5e-5)
    axes = axes_of_atoms(module.atoms)
    residual = mo.diagnostics.residual(moved, stiefel, axes=axes)["layers"]
    assert float(jnp.max(residual)) < 1e-5  # a few rounding units of 1e-7


def _tangent(w: np.ndarray, new: np.ndarray) -> np.ndarray:
    """The tangent A at w with polar(w + A) = new: A = new·S − w, S symmetric.

    wᵀA must be skew: wᵀ·new·S + S·newᵀ·w = 2·I, a Lyapunov equation.
    """
    b = w.T @ new
    s = solve_continuous_lyapunov(b, 2 * np.eye(w.shape[1]))
    return new @ s - w


def test_a_schedule_multiplies_all_steps() -> None:
    module = network(CHEAP)
    params, gradient = start(module), gradients(module)
    rates = optax.piecewise_constant_schedule(RATE, {1: 0.5})
    shared = budget(module, vectors=True)
    tx = modular_optimizer(module, rates, momentum=None, budget=shared)
    update = jax.jit(tx.update)
    first, state = update(gradient, tx.init(params), params)
    second, _ = update(gradient, state, params)
    for path in {atom.path for atom in CHEAP} & set(FREE):
        # Half, which is exact in binary.
        np.testing.assert_array_equal(second[path], first[path] / 2)


def test_vectors_and_what_is_left_out_belong_to_others() -> None:
    module = network(CHEAP)
    masses = {"table": None, "layers": 0.0}
    tx = modular_optimizer(
        module, RATE, others=optax.sgd(1.0), budget=budget(module, masses=masses)
    )
    params, gradient = start(module), gradients(module)
    updates = step(tx, params, gradient)
    for path in ("bias", "table"):
        np.testing.assert_array_equal(updates[path], -gradient[path])
    # Mass 0 freezes, but for the rounding of the retraction.
    np.testing.assert_allclose(updates["layers"], 0.0, atol=1e-6)


def test_zero_gradients_move_nothing(compiled: Compiled) -> None:
    zeros = jax.tree.map(jnp.zeros_like, gradients(compiled.module))
    for path, leaf in compiled.step(zeros).items():
        # Nothing but the rounding of the retraction, of weights below 1.
        np.testing.assert_allclose(leaf, 0.0, atol=0 if path in FREE else 1e-6)


def test_a_nan_stays_in_its_matrix(compiled: Compiled) -> None:
    gradient = gradients(compiled.module)
    for path, index in {"layers": (1, 0, 0), "up": (0, 0), "bias": (0,)}.items():
        gradient[path] = gradient[path].at[index].set(jnp.nan)
    updates = compiled.step(gradient)
    bad = {path: np.isnan(np.asarray(leaf)) for path, leaf in updates.items()}
    assert bad["layers"][1].all()
    assert not bad["layers"][0].any()
    assert bad["up"].all()
    assert bad["bias"].tolist() == [True, *[False] * 7]
    assert not any(bad[path].any() for path in ("embed", "head", "table"))


def test_newton_schulz_in_place_of_exact_directions() -> None:
    module = network(ATOMS[-1:])
    tx = modular_optimizer(module, RATE, schedule=JORDAN)
    length = norms(module, step(tx, start(module), gradients(module)))["up"] / RATE
    # JORDAN's singular values end in [0.68, 1.14] (orthogonalize_via_newton_schulz).
    assert 0.68 < 4 * length < 1.14
    assert 4 * length != pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("momentum", "copies"), [(0.95, 1), (None, 0)])
def test_the_state_is_that_of_the_momentum(momentum: Any, copies: int) -> None:
    module = network()
    others = optax.sgd(1.0)
    tx = modular_optimizer(module, RATE, momentum=momentum, others=others)
    state = jax.eval_shape(tx.init, start(module))
    size = sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim)
    own = [shape for path, shape in SHAPES.items() if path != "bias"]
    assert size == copies * sum(np.prod(shape) for shape in own)


@pytest.mark.promise(
    "Certificates",
    "A step of the modular optimizer changes the output by no more than the "
    "learning rate",
    on="first order; a perceptron of two layers",
)
@pytest.mark.slow
def test_the_output_changes_by_at_most_the_learning_rate(
    measured: Callable[..., None],
) -> None:
    shapes = {"down": (16, 8), "up": (8, 16)}
    orthogonal = jax.nn.initializers.orthogonal()
    params = {p: orthogonal(jax.random.key(0), s) for p, s in shapes.items()}
    params["up"] = params["up"] * math.sqrt(2)  # norm 1 from RMS to RMS
    params["down"] = params["down"] / math.sqrt(2)
    module = handmade(params, [Atom("down"), Atom("up")])
    inputs = gaussian((32, 8), 1)
    inputs = inputs / jnp.sqrt(jnp.mean(inputs**2, axis=-1, keepdims=True))

    def forward(params: Tree) -> jax.Array:
        return jnp.abs(inputs @ params["up"]) @ params["down"]

    gradient = jax.grad(lambda params: jnp.sum(forward(params)[:, 0]))(params)
    updates = step(modular_optimizer(module, 0.01), params, gradient)
    moved = forward(optax.apply_updates(params, updates)) - forward(params)
    change = np.sqrt(np.square(moved).mean(-1)).max() / 0.01
    # The second order is half of the learning rate squared here.
    assert change > 0.2
    measured(change, at_most=1.01)


def test_project_parameters_leaves_free_ones_alone() -> None:
    module = network()
    params = gaussian(SHAPES)
    found = project_parameters(module, params)
    for path in SHAPES:
        if path != "layers":
            np.testing.assert_array_equal(found[path], params[path])
    axes = axes_of_atoms(ATOMS[3:4])
    own = {"layers": found["layers"]}
    residual = mo.diagnostics.residual(own, SPHERE, axes=axes)["layers"]
    assert float(jnp.max(residual)) < 1e-5  # a few rounding units of 1e-7
