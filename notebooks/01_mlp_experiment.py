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
# # The published experiment
#
# A small perceptron without biases, several optimizers, several learning rates. That is
# the experiment of [Modular Manifolds](https://thinkingmachines.ai/blog/modular-manifolds/)
# (J. Bernstein, 2025). We ask four questions. How accurate does each optimizer get? How
# much does its learning rate matter? What do its weights look like? What does a step
# cost?
#
# In fast mode the data are scikit-learn's digits, which need no network. With
# `MANIFOLD_OPTAX_FULL=1` in the environment they are CIFAR-10, and the network is the
# published one. Its files are read from the directory `CIFAR10_DIR`, or downloaded into
# it (162 MB).

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
import matplotlib.pyplot as plt
import numpy as np

import manifold_optax as mo
from manifold_optax.experiments.mlp import MlpConfig, MlpExperiment
from manifold_optax.experiments.mlp.config import LearningRates

plt.rcParams.update({"figure.dpi": 90, "figure.facecolor": "white"})
print(f"Python {sys.version.split()[0]}, jax {jax.__version__} on {jax.devices()}")
print(f"mo {mo.__version__}, {'digits' if FAST else 'CIFAR-10'}")

# %% [markdown]
# ## The settings
#
# The library has the experiment in `manifold_optax.experiments`. A configuration says
# what is run. A part of the training images is held out, and chooses the learning
# rates. The test images choose nothing.

# %%
if FAST:
    config = MlpConfig(
        data="digits",
        optimizers=(
            "adamw",
            "muon",
            "hyperspherical_kept",
            "manifold_muon",
            "manifold_muon_scaled",
        ),
        validation_examples=287,
    )
else:
    config = MlpConfig(
        data="cifar10",
        data_dir=os.environ.get("CIFAR10_DIR", "cifar10"),
        optimizers=("adamw", "muon", "hyperspherical_kept", "manifold_muon"),
        learning_rates=LearningRates(
            adamw=(0.0003, 0.001, 0.003, 0.005, 0.01),
            muon=(0.01, 0.02, 0.03, 0.05, 0.1),
            hyperspherical_kept=(0.03, 0.05, 0.1, 0.2, 0.3),
            manifold_muon=(0.02, 0.05, 0.1, 0.2, 0.3),
        ),
        batch_size=1024,
        validation_examples=5000,
    )
experiment = MlpExperiment.prepare(config)
images = experiment.splits.train.images
print(f"{len(images)} images of {images.shape[1]} numbers to train on")
print(f"{experiment.rounds} epochs of {experiment.steps_per_round} steps")

# %% [markdown]
# | name | what it is |
# |---|---|
# | `adamw` | the usual optimizer |
# | `muon` | `mo.muon`: steps whose singular values are all alike |
# | `hyperspherical_kept` | hyperspherical descent: matrices keep their Frobenius norm |
# | `manifold_muon` | `mo.manifold_muon`: all singular values stay 1 |
# | `manifold_muon_scaled` | the same, but those of the last matrix stay 8 |
#
# ## All runs
#
# An experiment starts a run, advances it by an epoch, and says what the finished run
# measured. The learning rate is an argument of the compiled program. So each optimizer
# compiles once for all its rates.


# %%
def run(optimizer, rate, seed=42):
    settings = experiment.settings(optimizer, rate, seed)
    inputs, state = experiment.start(settings)
    started = time.perf_counter()
    for _ in range(experiment.rounds):
        state = experiment.advance(settings, inputs, state)
    return experiment.finish(settings, state, time.perf_counter() - started)


results = {
    optimizer: [run(optimizer, rate) for rate in config.learning_rates.of(optimizer)]
    for optimizer in config.optimizers
}
best = {
    optimizer: max(runs, key=lambda one: one.percent("validation"))
    for optimizer, runs in results.items()
}
print("optimizer             best rate  validation    test   train")
for optimizer, one in best.items():
    percents = [one.percent(split) for split in ("validation", "test", "train")]
    numbers = "".join(f"{percent:8.1f}" for percent in percents)
    print(f"{optimizer:20}{one.settings.learning_rate:11g}    {numbers}")

# %% [markdown]
# ## Accuracy and learning rate
#
# Learning rates of different optimizers do not compare: each has a unit of its own. So
# we plot accuracy against the rate divided by the best one. A flat curve means that the
# choice hardly matters.

# %%
colors = {name: f"C{number}" for number, name in enumerate(config.optimizers)}
figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for optimizer, runs in results.items():
    rates = np.array([one.settings.learning_rate for one in runs])
    scores = [one.percent("validation") for one in runs]
    style = {"color": colors[optimizer], "label": optimizer}
    axes[0].plot(rates / best[optimizer].settings.learning_rate, scores, "o-", **style)
    axes[1].plot(best[optimizer].loss, linewidth=1, **style)
floor = 80 if FAST else 35
axes[0].set(
    xlabel="learning rate / best learning rate",
    ylabel="validation accuracy, %",
    xscale="log",
    ylim=(floor, None),
)
axes[1].set(xlabel="step", ylabel="training loss at the best rate", yscale="log")
axes[1].legend()
plt.show()

# %% [markdown]
# We put "hardly matters" into a number: how much accuracy an optimizer loses at the
# worst of those rates that are within a factor of 4 of its best one.


# %%
def loss_nearby(optimizer):
    peak = best[optimizer].settings.learning_rate
    nearby = [
        one.percent("validation")
        for one in results[optimizer]
        if 0.249 < one.settings.learning_rate / peak < 4.001
    ]
    return best[optimizer].percent("validation") - min(nearby)


lost = {optimizer: loss_nearby(optimizer) for optimizer in results}
for optimizer, points in lost.items():
    print(f"{optimizer:20} loses {points:5.1f} points")
if FAST:
    assert lost["manifold_muon"] < 3 < lost["adamw"]
    assert lost["manifold_muon_scaled"] < 3 < lost["muon"]
    scaled = best["manifold_muon_scaled"].percent("test")
    assert scaled > best["manifold_muon"].percent("test")
else:
    assert best["manifold_muon"].percent("test") > best["adamw"].percent("test")
    assert best["muon"].percent("test") > best["adamw"].percent("test")

# %% [markdown]
# On digits, plain manifold Muon stops at a lower accuracy. The logits are the output of
# a matrix whose singular values are 1, so they stay small, and the loss cannot fall
# further. A readout on a Stiefel manifold of scale 8 mends that.
#
# This is one seed. Differences of a point between optimizers are noise here: 360 test
# images have a sampling error of one point. The command at the end repeats everything
# with several seeds, and compares pairs.
#
# ## Singular values
#
# The best picture of the idea: the singular values of each layer at the end of
# training.

# %%
layers = len(best["adamw"].singular_values)
figure, axes = plt.subplots(
    1, layers, figsize=(11, 3.6), sharey=True, layout="constrained"
)
for layer in range(layers):
    for number, (optimizer, one) in enumerate(best.items()):
        values = one.singular_values[layer]
        axes[layer].plot(
            range(1, len(values) + 1),
            values,
            "--" if number % 2 else "-",
            color=colors[optimizer],
            label=optimizer,
            zorder=2 + number % 2,  # dashes above lines, so that both are seen
        )
    axes[layer].set(title=f"layer {layer + 1}", xlabel="index", yscale="log")
axes[0].set_ylabel("singular value")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
plt.show()

# %%
stiefel = np.concatenate(best["manifold_muon"].singular_values)
residual = best["manifold_muon"].residual
print(f"manifold Muon: all {len(stiefel)} singular values in ", end="")
print(f"[{stiefel.min():.7f}, {stiefel.max():.7f}]")
print(f"largest distance from the manifold after any step: {residual:.1e}")
assert abs(stiefel - 1).max() < 1e-5
assert residual < 1e-5
assert best["adamw"].singular_values[0][0] > 2  # AdamW lets them grow

# %% [markdown]
# ## Time per step
#
# CPU time, median over three epochs, with the optimizers taking turns. On matrices this
# small the dual problem of manifold Muon costs more than the network. In a network of
# useful width the forward and backward pass hide most of it.

# %%
programs = {name: experiment.timed_round(name) for name in config.optimizers}
times = {name: [] for name in programs}
for turn in range(4):
    for name, program in programs.items():
        started = time.process_time()
        jax.block_until_ready(program())
        if turn:  # the first one compiles
            times[name].append(time.process_time() - started)
step = {
    name: 1e3 * np.median(all_times) / experiment.steps_per_round
    for name, all_times in times.items()
}

figure, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
bars = axes.barh(list(step), list(step.values()), color=list(colors.values()))
axes.bar_label(bars, fmt="%.2g ms", padding=3)
axes.set(xlabel="CPU time per step, ms", xlim=(0, 1.2 * max(step.values())))
axes.invert_yaxis()
plt.show()
assert step["adamw"] < step["muon"] < step["manifold_muon"]

# %% [markdown]
# ## All of it by one command
#
# ```
# python -m manifold_optax.experiments mlp
# ```
#
# It runs the same experiment with three seeds, chooses the best rates, repeats them
# with fresh seeds, and writes a report with a table, figures and a pairwise test. With
# `--data cifar10 --data-dir DIR` it runs the published settings.
