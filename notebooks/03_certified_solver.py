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
# # A solver that proves how good it is
#
# Manifold Muon needs, at every step and for every matrix, the solution of a convex
# problem without a formula. How good is the direction that it gets? The duality gap
# answers that for each matrix, and the state of the optimizer keeps it. We read the
# gap, choose it, compare it with the published method, and watch it while a network
# trains.

# %%
import importlib.metadata
import os
import subprocess
import sys
import time

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
# ## The problem, and one certified solution
#
# The weights $W$ have orthonormal columns. Of all tangent directions $A$ of spectral
# norm 1 we want the one that follows the gradient $G$ best:
#
# $$\max_A \langle A, G\rangle \quad\text{over}\quad W^\top A + A^\top W = 0,\quad
# \|A\|_2 \le 1.$$
#
# `mo.dual_ascent_spectral` is this direction as a link of a chain. With `certify=True`
# its state has two numbers for each matrix. `gap` bounds the relative loss against the
# best direction. `tangency` says how far the direction is from tangent.

# %%
rows, columns = 128, 64
stiefel = mo.Stiefel()
params = {"w": stiefel.random_point(jax.random.key(0), (rows, columns))}
gradient = {"w": jax.random.normal(jax.random.key(1), (rows, columns))}

tx = mo.dual_ascent_spectral(certify=True)
direction, state = jax.jit(tx.update)(gradient, tx.init(params), params)
print(mo.diagnostics.collect(state))
assert state.gap["w"] < 1e-3
assert state.tangency["w"] < 1e-5

# %% [markdown]
# ## Check it without the library
#
# A certificate is worth something if it can be checked. So we check feasibility in
# float64 with NumPy. Then we look for a better direction: projected ascent from a
# random start must not beat the proved bound.

# %%
w, g = (np.asarray(tree["w"], np.float64) for tree in (params, gradient))
a = np.asarray(direction["w"], np.float64)
symmetric = w.T @ a + a.T @ w
print(f"spectral norm {np.linalg.norm(a, 2):.7f}")
print(f"not tangent by {np.linalg.norm(symmetric) / np.linalg.norm(a):.1e}")


def make_feasible(x):
    for _ in range(3):  # clip the singular values, then return to the tangent space
        u, values, v = np.linalg.svd(x, full_matrices=False)
        x = (u * np.minimum(values, 1)) @ v
        x = x - w @ (w.T @ x + x.T @ w) / 2
    return x / max(1.0, np.linalg.norm(x, 2))


def ascend(x, steps):
    gains = []
    for number in range(steps):
        x = make_feasible(x + g / (1 + number))
        gains.append(np.vdot(x, g))
    return np.array(gains)


steps = 100 if FAST else 1000
gain, gap = np.vdot(a, g), float(state.gap["w"])
random = np.random.default_rng(0).normal(size=w.shape)
searched = ascend(random, steps)
print(f"gain of the library   {gain:.3f}")
print(f"proved upper bound    {gain / (1 - gap):.3f}")
print(f"found by searching    {searched.max():.3f} after {steps} steps")
assert np.linalg.norm(a, 2) < 1 + 1e-5
assert searched.max() <= gain / (1 - gap) * (1 + 1e-6)

# %% [markdown]
# ## As good as you like
#
# `tolerance` is the gap at which the solver stops. Smaller ones take more steps. We
# time each, and compare with two cheap directions that have no certificate: the polar
# factor of the tangent part, and the tangent part of the polar factor.


# %%
def timed(function):
    function = jax.jit(function)
    jax.block_until_ready(function(params["w"], gradient["w"]))
    times = []
    for _ in range(10):
        started = time.perf_counter()
        jax.block_until_ready(function(params["w"], gradient["w"]))
        times.append(time.perf_counter() - started)
    return function(params["w"], gradient["w"]), 1e3 * min(times)


def quality(found):
    found = make_feasible(np.asarray(found, np.float64))
    return 1 - np.vdot(found, g) / (gain / (1 - gap))


solve = mo.geometry.stiefel_spectral_direction
print("direction                   lost at most        ms")
lost, cost = {}, {}
for tolerance in [1e-2, 1e-3, 1e-4]:
    found, cost[tolerance] = timed(lambda w, g, t=tolerance: solve(w, g, tolerance=t))
    lost[tolerance] = float(found.gap)
    print(f"tolerance {tolerance:<16g}{lost[tolerance]:14.1e}{cost[tolerance]:10.2f}")
    assert found.gap <= tolerance

polar = mo.linalg.polar
cheap = {
    "polar of tangent part": lambda w, g: polar(stiefel.to_tangent(w, g)),
    "tangent part of polar": lambda w, g: stiefel.to_tangent(w, polar(g)),
}
for name, function in cheap.items():
    found, cost[name] = timed(function)
    lost[name] = quality(found)
    print(f"{name:26}{lost[name]:14.1e}{cost[name]:10.2f}")
    assert lost[name] > lost[1e-3]

# %% [markdown]
# ## The published method, step by step
#
# The published implementation makes 100 steps of gradient ascent on the dual problem.
# Its step length is fixed, 0.01, so its result depends on the size of the gradient. We
# write it in a few lines and measure it at five sizes. (Its direction is not quite
# feasible, so `quality` makes it feasible first.) The library divides by the size
# first, so its result does not depend on it.


# %%
@jax.jit
def published(w, g, steps=100, length=0.01):
    def ascend(number, multiplier):
        x = polar(g + 2 * w @ multiplier)
        off_tangent = w.T @ x + x.T @ w
        return multiplier - length * (1 - number / steps) * off_tangent

    start = -0.25 * (w.T @ g + g.T @ w)
    return polar(g + 2 * w @ jax.lax.fori_loop(0, steps, ascend, start))


unit = gradient["w"] / jnp.linalg.norm(gradient["w"])
certified = jax.jit(lambda w, g: solve(w, g, certify=True))
sizes = [0.01, 0.1, 1.0, 10.0, 100.0]
theirs = [quality(published(params["w"], size * unit)) for size in sizes]
ours = [float(certified(params["w"], size * unit).gap) for size in sizes]
for size, one, other in zip(sizes, theirs, ours, strict=True):
    print(f"‖G‖ = {size:5g}: published {one:.1e}, library {other:.1e}")
assert max(ours) < 1e-3 < min(theirs)
assert max(ours) < 1.5 * min(ours)

# %% [markdown]
# ## While a network trains
#
# Gradients of real networks are harder than random ones: they are nearly
# rank-deficient. We train a perceptron on digits, with a readout on the manifold, too.
# We keep the gap of each matrix at each step. The chain below is `mo.manifold_muon`,
# written out with a certificate.

# %%
digits = load_digits()
images = jnp.asarray(digits.data / 16 - 0.3, jnp.float32)
labels = jnp.asarray(digits.target, jnp.int32)

steps = 60 if FAST else 600
tx = optax.named_chain(
    ("direction", mo.dual_ascent_spectral(certify=True)),
    ("scale_by_learning_rate", optax.scale_by_learning_rate(0.1)),
    ("retraction", mo.retract_polar()),
)
shapes = {"first": (64, 128), "second": (128, 64), "readout": (64, 10)}
weights = {
    name: stiefel.random_point(jax.random.key(number), shape)
    for number, (name, shape) in enumerate(shapes.items())
}


def loss(weights, images, labels):
    hidden = jax.nn.relu(jax.nn.relu(images @ weights["first"]) @ weights["second"])
    logits = 8 * hidden @ weights["readout"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@jax.jit
def train_step(weights, state, rows):
    value, slope = jax.value_and_grad(loss)(weights, images[rows], labels[rows])
    updates, state = tx.update(slope, state, weights)
    return optax.apply_updates(weights, updates), state, value


state, values, gaps = tx.init(weights), [], []
for number in range(steps):
    rows = np.random.default_rng(number).integers(0, len(labels), 128)
    weights, state, value = train_step(weights, state, rows)
    values.append(float(value))
    gaps.append(mo.diagnostics.collect(state)["gap"])
worst = {name: max(float(gap[name]) for gap in gaps) for name in shapes}
print(f"loss from {values[0]:.2f} to {values[-1]:.2f}")
print("largest gap of any step:", {name: f"{gap:.1e}" for name, gap in worst.items()})
assert values[-1] < 0.3 * values[0]
assert max(worst.values()) < 2e-2

# %% [markdown]
# The three results in one figure.

# %%
figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
tolerances = [key for key in lost if isinstance(key, float)]
axes[0].plot([cost[key] for key in tolerances], [lost[key] for key in tolerances], "o-")
for key in tolerances:
    axes[0].annotate(
        f"{key:g}", (cost[key], lost[key]), (6, 4), textcoords="offset points"
    )
for color, name in zip(["C1", "C3"], cheap, strict=True):
    axes[0].plot(cost[name], lost[name], "s", color=color, label=name)
axes[0].set(
    title="loss against time, by tolerance",
    xlabel="ms, this machine",
    ylabel="relative loss of the direction",
    yscale="log",
    xlim=(0, 1.25 * max(cost.values())),
)
axes[0].legend(fontsize=8, loc="lower left")

axes[1].plot(sizes, theirs, "s-", color="C3", label="published, 100 steps")
axes[1].plot(sizes, ours, "o-", color="C0", label="library")
axes[1].set(title="size of the gradient", xlabel="‖G‖", xscale="log", yscale="log")
axes[1].set_ylabel("relative loss of the direction")
axes[1].legend(fontsize=8)

for name in shapes:
    axes[2].plot([float(gap[name]) for gap in gaps], label=f"{name} {shapes[name]}")
axes[2].set(
    title="certified gap in training", xlabel="step", ylabel="gap", yscale="log"
)
axes[2].legend(fontsize=8)
plt.show()

# %% [markdown]
# The state keeps the gap like any other number, so a training loop can log it. What to
# do with it? A gap of 0.01 says that the direction follows the gradient at least 99 %
# as well as the best one could. Nobody will see that in a loss curve. A gap of 0.5
# would be worth a look, and `tolerance=` mends it. The gap is largest for `first`: a
# matrix twice as long as wide is the hardest shape, and its gradient has no full rank,
# because some pixels are always empty.
