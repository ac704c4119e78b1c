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
# # MuonClip: attention logits that stay bounded
#
# The logits of attention are products of queries and keys, and those are products of
# weights. Nothing in the loss bounds them. At a large learning rate Muon lets them grow
# until attention looks at one position alone. QK-clip rescales the query and key
# weights of a head whose largest logit crossed a threshold. We look at the clip alone
# first, and then train a small language model with and without it.

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

import manifold_optax as mo
from manifold_optax.experiments.lm import LmConfig, LmExperiment
from manifold_optax.experiments.lm.config import ModelConfig, TrainingConfig

plt.rcParams.update({"figure.dpi": 90, "figure.facecolor": "white"})
print(f"Python {sys.version.split()[0]}, jax {jax.__version__} on {jax.devices()}")
print(f"mo {mo.__version__}")

# %% [markdown]
# ## The clip alone
#
# Four heads, with queries and keys of kernels `[embed, heads, head_dim]`. We make two
# heads too large. `mo.attention.dot_product_attention` returns the largest logit of
# each head beside its output. It never forms the matrix of all logits.

# %%
embed, heads, head_dim = 32, 4, 8
keys = jax.random.split(jax.random.key(0), 3)
size = jnp.array([1.0, 5.0, 1.5, 2.5])[:, None]
params = {
    "query": {"kernel": jax.random.normal(keys[0], (embed, heads, head_dim)) * size},
    "key": {"kernel": jax.random.normal(keys[1], (embed, heads, head_dim)) * size},
}
x = jax.random.normal(keys[2], (16, 24, embed)) / embed**0.5


def largest_logits(params):
    query, key = (
        jnp.einsum("bte,ehd->bthd", x, params[name]["kernel"])
        for name in ("query", "key")
    )
    return mo.attention.dot_product_attention(query, key, key, is_causal=True)[1]


threshold = 30.0
attention = mo.Attention(heads, query="query/kernel", key="key/kernel")
before = largest_logits(params)
clipped = mo.apply_qk_clip(params, {"": before}, {"": attention}, threshold=threshold)
after = largest_logits(clipped)
print("before", np.asarray(before).round(2))
print("after ", np.asarray(after).round(2))

# %% [markdown]
# Each head that was above the threshold lands on it. Each head that was below keeps its
# weights, bit by bit. Queries and keys share the clip: both are multiplied by
# √(threshold / logit).

# %%
np.testing.assert_allclose(after, np.minimum(before, threshold), rtol=1e-4)
below = np.flatnonzero(before <= threshold)
for name in params:
    old, new = params[name]["kernel"], clipped[name]["kernel"]
    assert (old[:, below] == new[:, below]).all()
ratio = float(clipped["query"]["kernel"][0, 1, 0] / params["query"]["kernel"][0, 1, 0])
print(f"queries of head 1 times {ratio:.4f} = √({threshold:g} / {before[1]:.2f})")
assert abs(ratio - (threshold / before[1]) ** 0.5) < 1e-5

# %% [markdown]
# ## A language model
#
# The library has a small transformer over characters in
# `manifold_optax.experiments`. Its text is the source code of Python's own library, so
# no file is needed. We choose a learning rate that is too large on purpose, and a
# threshold of 20.
#
# `mo.muon_clip` is Muon for the hidden matrices, AdamW for all else, and the clip as
# the last link of the whole chain. `muon` is the same without the clip.

# %%
short = {"warmup_steps": 10, "threshold": 20.0}
if FAST:
    model = ModelConfig(layers=2, width=48, heads=4, head_size=12, hidden=96)
    training = TrainingConfig(
        steps=160, batch_size=8, context=64, evaluate_every=20, **short
    )
else:
    model = ModelConfig()
    training = TrainingConfig(steps=400, evaluate_every=50, **short)
config = LmConfig(model=model, training=training, sample_characters=0)
experiment = LmExperiment.prepare(config)
print(f"{len(experiment.text.parts.train):,} characters of Python to train on")


def run(optimizer, rate):
    settings = experiment.settings(optimizer, rate, seed=42)
    inputs, state = experiment.start(settings)
    started = time.perf_counter()
    for _ in range(experiment.rounds):
        state = experiment.advance(settings, inputs, state)
    return experiment.finish(settings, state, time.perf_counter() - started)


runs = {
    "Muon, too large a rate": run("muon", 0.128),
    "MuonClip, the same rate": run("muon_clip", 0.128),
    "Muon, a good rate": run("muon", 0.016),
}
print("                          validation loss  largest logit  steps above 20")
for name, one in runs.items():
    print(
        f"{name:26}{one.validation_loss[-1]:15.3f}{max(one.largest_logits):15.1f}"
        f"{one.steps_above_threshold:16}"
    )

# %%
colors = dict(zip(runs, ["C1", "C2", "C0"], strict=True))
figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
every = training.evaluate_every
for name, one in runs.items():
    all_heads = np.array(one.max_logits, float).reshape(training.steps, -1)
    axes[0].plot(all_heads, color=colors[name], lw=0.5, alpha=0.4)
    axes[0].plot(one.largest_logits, color=colors[name], lw=1.8, label=name)
    axes[1].plot(one.loss, color=colors[name], lw=0.5, alpha=0.5)
    evaluated = range(every, training.steps + 1, every)
    axes[1].plot(evaluated, one.validation_loss, "o-", color=colors[name], label=name)
axes[0].axhline(training.threshold, color="k", ls="--", lw=1, label="threshold")
axes[0].set(xlabel="step", ylabel="largest logit of each head", yscale="log")
axes[1].set(xlabel="step", ylabel="loss, nats per character (dots: validation)")
axes[1].set_ylim(None, 5)
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
plt.show()

# %% [markdown]
# The thin lines are the heads, the thick one is the largest. Without the clip the
# logits pass the threshold and go on. With it they stay near it: a step and a new batch
# lift them above, usually a little and now and then more, and the next clip takes them
# back. The numbers are those before each clip. At a good learning rate the logits do
# not need the clip, and nobody should expect a lower loss from it there.

# %%
large, clip, good = runs.values()
late = clip.largest_logits[training.steps // 2 :]
print(f"second half with the clip: logits up to {max(late):.1f}")
assert max(large.largest_logits) > 3 * training.threshold
assert max(late) < 1.5 * training.threshold
assert clip.validation_loss[-1] < large.validation_loss[-1]

# %% [markdown]
# ## What to write in your own training
#
# One spec says where the heads lie, and `update` takes the largest logits as one more
# argument. This is the whole optimizer of the second run.

# %%
roles = mo.roles(
    {
        "attention/(query|key|value)/kernel": mo.HEADS,  # [embed, heads, head_dim]
        "attention/output/kernel": mo.HEADS_OUT,  # [heads, head_dim, embed]
    }
)
spec = mo.Attention(model.heads, query="query/kernel", key="key/kernel")
tx = mo.muon_clip(0.016, {r"blocks/\d+/attention": spec}, roles=roles, threshold=20.0)
weights = experiment.problem.initial_params("muon_clip", seed=0)
print(mo.describe(tx, weights))

# %% [markdown]
# The column `links` shows what each link changes; `qk_clip` has the queries and the
# keys alone. The page "MuonClip" of the documentation has a Flax training step that
# collects the logits, and a spec for each layout of heads.
