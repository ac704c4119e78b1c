# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own optimizer
#
# Every optimizer of the library is a chain of small parts. We take Muon apart, build an
# optimizer on a manifold, add a norm that the library does not have, and watch what the
# steps are like.

# %%
import dataclasses
import importlib.metadata
import os
import subprocess
import sys

if "google.colab" in sys.modules:
    kept = ["jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"]
    kept = [f"{name}=={importlib.metadata.version(name)}" for name in kept]
    install = ["uv", "pip", "install", "--python", sys.executable, "--quiet"]
    subprocess.run([*install, "manifold-optax[experiments]", *kept], check=True)

FAST = "MANIFOLD_OPTAX_FULL" not in os.environ  # False: longer runs
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # small matrices want one thread

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import manifold_optax as mo

plt.rcParams.update({"figure.dpi": 90, "figure.facecolor": "white"})
print(f"Python {sys.version.split()[0]}, jax {jax.__version__}, mo {mo.__version__}")

# %% [markdown]
# ## Muon, taken apart
#
# Four links: an average of the gradients, the direction, a factor for the shape, and
# the learning rate. Chained by hand they give the same updates as `mo.muon`.

# %%
params = {
    "up": jax.random.normal(jax.random.key(0), (64, 128)) / 8,
    "down": jax.random.normal(jax.random.key(1), (128, 64)) / 11,
}
gradients = jax.tree.map(lambda w: jnp.sin(40 * w), params)
by_hand = optax.chain(
    mo.momentum(0.95, nesterov=True, debias=True),
    mo.orthogonalize_via_newton_schulz(),
    mo.scale_by_shape("width"),
    optax.scale_by_learning_rate(0.02),
)


def first_update(tx):
    return jax.jit(tx.update)(gradients, tx.init(params), params)[0]


chained, preset = first_update(by_hand), first_update(mo.muon(0.02))
for name in params:
    np.testing.assert_allclose(chained[name], preset[name], atol=1e-7)
print("the chain and mo.muon agree")

# %% [markdown]
# ## An optimizer on a manifold
#
# Change the direction, add a retraction, and you have another optimizer. The retraction
# must be the last link: what comes after it would leave the manifold again. Here the
# weights stay on the Stiefel manifold, and the norm is the Frobenius norm. No preset
# has this pair.

# %%
stiefel = mo.Stiefel(scale="rms")  # all singular values √(fan_out / fan_in)
on_stiefel = optax.chain(
    mo.momentum(0.9),
    mo.steepest(stiefel, mo.Frobenius()),
    optax.scale_by_learning_rate(0.1),
    mo.retract(stiefel),
)
points = mo.project(params, stiefel)
updates, _ = jax.jit(on_stiefel.update)(gradients, on_stiefel.init(points), points)
landed = optax.apply_updates(points, updates)
print("distance from the manifold:", mo.diagnostics.residual(landed, stiefel))
assert max(jax.tree.leaves(mo.diagnostics.residual(landed, stiefel))) < 1e-5

# %% [markdown]
# ## A norm of your own
#
# A norm is a frozen dataclass with three methods. `value` is the norm, `dual_value` its
# dual, and `steepest` the matrix of norm 1 that follows the gradient best. We add the
# Schatten norms: the p-norm of the singular values. With p = 2 it is the Frobenius
# norm, and a large p comes near the spectral norm. So p leads from the normalised
# gradient to Muon.


# %%
@dataclasses.dataclass(frozen=True)
class Schatten(mo.Norm):
    p: float

    @property
    def dual_p(self):
        return self.p / (self.p - 1)

    def value(self, x, *, axis_name=None):
        return jnp.linalg.norm(singular_values(x), self.p, axis=-1)

    def dual_value(self, gradient, *, axis_name=None):
        return jnp.linalg.norm(singular_values(gradient), self.dual_p, axis=-1)

    def steepest(self, gradient, *, axis_name=None):
        u, values, v = jnp.linalg.svd(gradient, full_matrices=False)
        length = jnp.linalg.norm(values, self.dual_p, axis=-1, keepdims=True)
        share = values / jnp.where(length > 0, length, 1.0)
        return (u * share ** (self.dual_p - 1)) @ v


def singular_values(x):
    return jnp.linalg.svd(x, compute_uv=False)


norm = Schatten(4.0)
slope = gradients["up"]
best = norm.steepest(slope)
print(f"norm of the direction {norm.value(best):.6f}")
print(f"⟨direction, gradient⟩ = {jnp.vdot(best, slope):.4f}", end=", ")
print(f"dual norm of the gradient = {norm.dual_value(slope):.4f}")
np.testing.assert_allclose(norm.value(best), 1, rtol=1e-5)
np.testing.assert_allclose(jnp.vdot(best, slope), norm.dual_value(slope), rtol=1e-5)
np.testing.assert_allclose(
    Schatten(2.0).steepest(slope), mo.Frobenius().steepest(slope), atol=1e-6
)

# %% [markdown]
# The two equations are all that a norm must satisfy. Without a constraint the norm now
# works in every chain, for whole trees, heads, stacks and shards:
# `mo.steepest(mo.Euclidean(), norm)`. With a manifold each pair is a problem of its
# own, and an unknown pair is an error that prints the table.

# %%
try:
    mo.steepest(mo.Stiefel(), norm)
except ValueError as error:
    print(str(error).splitlines()[0])
else:
    raise AssertionError("expected an error")

# %% [markdown]
# ## Train, and watch the steps
#
# `mo.monitor` stands around an optimizer and measures its steps. The updates pass
# unchanged. The numbers lie in the state, and `mo.diagnostics.collect` finds them. We
# train a perceptron on digits with three norms.

# %%
digits = load_digits()
images = jnp.asarray(digits.data / 16 - 0.3, jnp.float32)
labels = jnp.asarray(digits.target, jnp.int32)
start = {
    "first": {
        "kernel": jax.random.normal(jax.random.key(2), (64, 128)) / 8,
        "bias": jnp.zeros(128),
    },
    "second": {
        "kernel": jax.random.normal(jax.random.key(3), (128, 64)) / 11,
        "bias": jnp.zeros(64),
    },
    "readout": {
        "kernel": jax.random.normal(jax.random.key(4), (64, 10)) / 8,
        "bias": jnp.zeros(10),
    },
}
steps = 80 if FAST else 800
roles = mo.roles()


def loss(params, rows):
    x = images[rows]
    for name in ("first", "second", "readout"):
        x = x @ params[name]["kernel"] + params[name]["bias"]
        x = x if name == "readout" else jax.nn.relu(x)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    return cross_entropy(x, labels[rows]).mean()


def optimizer(norm, rate):
    matrices = optax.chain(
        mo.momentum(0.9),
        mo.steepest(mo.Euclidean(), norm, axes=roles),
        optax.scale_by_learning_rate(optax.linear_schedule(rate, 0.0, steps)),
    )
    whole = mo.hybrid(matrices, others=optax.adamw(1e-2), labels=roles)
    return mo.monitor(whole, axes=roles, every=1)


def train(tx):
    def step(carry, number):
        params, state = carry
        key = jax.random.fold_in(jax.random.key(5), number)
        rows = jax.random.randint(key, (128,), 0, len(labels))
        value, slope = jax.value_and_grad(loss)(params, rows)
        updates, state = tx.update(slope, state, params)
        seen = mo.diagnostics.collect(state)
        return (optax.apply_updates(params, updates), state), (value, updates, seen)

    carry = (start, tx.init(start))
    return jax.jit(lambda: jax.lax.scan(step, carry, jnp.arange(steps)))()[1]


rates = {mo.Frobenius(): 0.4, Schatten(4.0): 0.15, mo.Spectral(): 0.05}
runs = {norm: train(optimizer(norm, rate)) for norm, rate in rates.items()}
path = "first/kernel"
print(f"{'norm':14}   loss  orthogonality error  angle  applied  skipped")
for norm, (values, _, seen) in runs.items():
    row = [float(seen[name][path][-1]) for name in ("orthogonality_error", "angle")]
    counts = [int(seen[name][path][-1]) for name in ("applied", "skipped")]
    print(f"{norm!r:14}{values[-1]:8.3f}{row[0]:21.2f}{row[1]:7.0f}", end="")
    print(f"{counts[0]:9}{counts[1]:9}")
    assert values[-1] < 0.3 * values[0]
    assert counts == [steps, 0]

# %% [markdown]
# `applied` counts the updates that arrived: the proof that the method was in use at
# every step. `orthogonality_error` is 0 when all singular values of an update are
# equal. It falls with p, as it should. `angle` is measured against the gradient of the
# last batch: below 90 degrees the step descends.

# %%
errors = [
    float(np.mean(seen["orthogonality_error"][path])) for _, _, seen in runs.values()
]
assert errors[0] > errors[1] > errors[2]

figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
for norm, (values, updates, seen) in runs.items():
    moved = np.asarray(updates["first"]["kernel"][steps // 2])
    moved = np.linalg.svd(moved, compute_uv=False)
    axes[0].plot(moved / moved[0], label=repr(norm))
    axes[1].plot(seen["angle"][path])
    axes[2].plot(values)
axes[0].set(title="an update of first/kernel", xlabel="index", yscale="log")
axes[0].set(ylabel="singular value / largest", ylim=(1e-3, 2))
axes[0].legend(fontsize=8, loc="lower left")
axes[1].axhline(90, color="k", ls=":", lw=1)
axes[1].set(title="step and gradient", xlabel="step", ylabel="angle, degrees")
axes[2].set(title="training", xlabel="step", ylabel="loss", yscale="log")
plt.show()

# %% [markdown]
# The optimizer is an ordinary Optax transformation. It goes through `optax.chain`,
# `optax.MultiSteps` and `optax.inject_hyperparams`, and its state is arrays that any
# checkpoint library saves.
