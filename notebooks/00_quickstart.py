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
# # Quickstart
#
# We take an ordinary Flax model with biases, train it with Muon, and then with
# manifold Muon. At the end we look at what each of them did to the weights.
#
# The first cell prints versions. On Colab it installs the library and leaves
# what is there as it is.

# %%
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

import flax
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import manifold_optax as mo

plt.rcParams.update({"figure.dpi": 90, "figure.facecolor": "white"})
print(f"Python {sys.version.split()[0]}, jax {jax.__version__} on {jax.devices()}")
print(f"flax {flax.__version__}, optax {optax.__version__}, mo {mo.__version__}")

# %% [markdown]
# ## An ordinary model
#
# The data are the 1,797 handwritten digits that scikit-learn brings along: images
# of 8 × 8 pixels. The model has two hidden layers and a readout, all with biases.

# %%
digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
images = jnp.asarray(digits.data[order] / 16 - 0.3, jnp.float32)
labels = jnp.asarray(digits.target[order], jnp.int32)
train_images, test_images = images[:1400], images[1400:]
train_labels, test_labels = labels[:1400], labels[1400:]


class Model(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(64, 128, rngs=rngs)
        self.second = nnx.Linear(128, 64, rngs=rngs)
        self.readout = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        return self.readout(nnx.relu(self.second(nnx.relu(self.first(x)))))


# %% [markdown]
# ## What is each parameter?
#
# Muon is for matrices. Biases, embeddings and readouts do better with AdamW. So the
# first question is which parameter is which. `mo.roles()` answers it from names and
# shapes, and `mo.describe` prints the answer.

# %%
model = Model(nnx.Rngs(0))
roles = mo.roles()
print(mo.describe(roles, nnx.state(model, nnx.Param)))

# %% [markdown]
# Flax stores a kernel as `[inputs, outputs]`. So the kernel of shape (64, 128) is the
# matrix 128 × 64 that takes 64 inputs to 128 outputs.
#
# `roles` is strict: a parameter whose name and shape do not tell what it is raises an
# error, and the error shows the line to add. You can look at the answer as data, too.

# %%
found = roles(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
print(found)
assert found["first"] == {"kernel": "matrix", "bias": "vector"}
assert found["readout"]["kernel"] == "readout"

# %% [markdown]
# ## Train with Muon
#
# `mo.hybrid` gives the matrices to one optimizer and all the rest to another. The
# result is an Optax transformation, and `nnx.Optimizer` takes it like any other.
# `describe` shows for each parameter what will change it. Read it before a long run.

# %%
steps = 200 if FAST else 1000
to_zero = lambda peak: optax.linear_schedule(peak, 0.0, steps)
muon = mo.hybrid(mo.muon(to_zero(0.02)), others=optax.adamw(1e-2), labels=roles)
print(mo.describe(muon, nnx.state(model, nnx.Param)))

# %% [markdown]
# The training step is the one of any Flax tutorial. Nothing in it is about matrices.


# %%
@nnx.jit
def train_step(model, optimizer, images, labels):
    def loss(model):
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels
        return cross_entropy(model(images), labels).mean()

    value, gradients = nnx.value_and_grad(loss)(model)
    optimizer.update(model, gradients)
    return value


def train(model, transformation):
    optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)
    batches = np.random.default_rng(0).integers(0, len(train_labels), (steps, 128))
    return np.array(
        [
            train_step(model, optimizer, train_images[rows], train_labels[rows])
            for rows in batches
        ]
    )


def accuracy(model):
    return float((model(test_images).argmax(-1) == test_labels).mean())


muon_model = Model(nnx.Rngs(0))
muon_losses = train(muon_model, muon)
print(f"Muon: loss {muon_losses[-1]:.3f}, test accuracy {accuracy(muon_model):.1%}")
assert accuracy(muon_model) > 0.9

# %% [markdown]
# ## Train with manifold Muon
#
# Now the hidden matrices shall stay on the Stiefel manifold: all their singular values
# are 1, before the first step and after every step. Two lines change. We project the
# weights, and we choose the other optimizer. `mo.project` takes the same roles, so it
# leaves biases and the readout as they are.

# %%
manifold_model = Model(nnx.Rngs(0))
start = nnx.state(manifold_model, nnx.Param)
nnx.update(manifold_model, mo.project(start, mo.Stiefel(), axes=roles))

manifold_muon = mo.hybrid(
    mo.manifold_muon(to_zero(0.1)), others=optax.adamw(1e-2), labels=roles
)
manifold_losses = train(manifold_model, manifold_muon)
print(
    f"manifold Muon: loss {manifold_losses[-1]:.3f}, "
    f"test accuracy {accuracy(manifold_model):.1%}"
)
assert accuracy(manifold_model) > 0.9

# %% [markdown]
# ## What changed in the weights?
#
# We compare the singular values of the first two kernels: at the start, after Muon,
# and after manifold Muon.


# %%
def kernels(model):
    return [np.asarray(layer.kernel[...]) for layer in (model.first, model.second)]


def singular_values(model):
    return [np.linalg.svd(kernel, compute_uv=False) for kernel in kernels(model)]


models = {
    "at the start": Model(nnx.Rngs(0)),
    "after Muon": muon_model,
    "after manifold Muon": manifold_model,
}
figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
axes[0].plot(muon_losses, color="C1", label="Muon")
axes[0].plot(manifold_losses, color="C2", label="manifold Muon")
axes[0].set(xlabel="step", ylabel="training loss", yscale="log")
axes[0].legend()
for layer, name in enumerate(["first", "second"]):
    for color, (label, one) in zip(["C7", "C1", "C2"], models.items(), strict=True):
        axes[1 + layer].plot(singular_values(one)[layer], color=color, label=label)
    axes[1 + layer].set(title=f"{name}/kernel", xlabel="index", ylim=(0, None))
axes[1].set_ylabel("singular value")
axes[2].legend()
plt.show()

# %% [markdown]
# Muon moves all singular values, because its steps have singular values near 1. The
# large ones grow most. Manifold Muon turns the matrix and stretches nothing: its
# singular values form the flat line at 1. The price is a higher training loss. The
# assertions say so in numbers.

# %%
spread = [values.max() / values.min() for values in singular_values(muon_model)]
off = max(abs(values - 1).max() for values in singular_values(manifold_model))
turned = [
    np.linalg.norm(after - before) / np.linalg.norm(before)
    for before, after in zip(
        kernels(Model(nnx.Rngs(0))), kernels(manifold_model), strict=True
    )
]
print(f"Muon: largest over smallest singular value, by layer {np.round(spread, 1)}")
print(f"manifold Muon: largest distance of a singular value from 1 {off:.1e}")
print(f"manifold Muon: relative change of the kernels {np.round(turned, 2)}")
assert min(spread) > 3
assert off < 1e-5  # float32 rounding
assert manifold_losses[-1] > muon_losses[-1]
assert min(turned) > 0.1  # the matrices moved all the same

# %% [markdown]
# The biases were trained as well, by AdamW, in the same step.

# %%
bias = np.asarray(manifold_model.first.bias[...])
print(f"largest entry of first/bias: {abs(bias).max():.3f}")
assert abs(bias).max() > 0

# %% [markdown]
# **Where next?** `01_mlp_experiment` compares optimizers properly, with learning rates
# chosen on held-out data. `02_manifolds_and_norms` draws what a step on a manifold is.
# `07_your_own_optimizer` takes these optimizers apart.
