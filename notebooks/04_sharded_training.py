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
# # Sharded training on eight devices
#
# Muon needs whole matrices, and on a mesh each device has a piece. A naive program
# communicates in every iteration of Newton–Schulz. The library moves each matrix to one
# owner and back, once per step. We build a small model on eight devices, read the plan
# before anything runs, and count what the compiled program sends.
#
# No accelerator is needed: XLA can split one CPU into eight devices. That must be said
# before JAX is imported, so it stands in the first cell.

# %%
import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ["JAX_PLATFORMS"] = "cpu"

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
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import manifold_optax as mo

plt.rcParams.update({"figure.dpi": 90, "figure.facecolor": "white"})
print(f"Python {sys.version.split()[0]}, jax {jax.__version__}, mo {mo.__version__}")
print(f"{jax.device_count()} devices of kind {jax.devices()[0].platform}")
assert jax.device_count() == 8

# %% [markdown]
# ## A model on a mesh
#
# Eight devices, two ways to cut: `data` cuts the batch, `fsdp` cuts the batch and every
# weight. The model is a residual perceptron of four blocks, with biases. Weights are
# plain arrays, so that we see all of it.

# %%
mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
width, blocks = (128, 4) if FAST else (512, 12)
on = lambda *names: NamedSharding(mesh, P(*names))


def initialize(key):
    def block(key):
        up, down = jax.random.split(key)
        return {
            "up": {
                "kernel": jax.random.normal(up, (width, 4 * width)) / width**0.5,
                "bias": jnp.zeros(4 * width),
            },
            "down": {
                "kernel": jax.random.normal(down, (4 * width, width)) / width**0.5 / 2,
                "bias": jnp.zeros(width),
            },
        }

    return {
        f"block{n}": block(key) for n, key in enumerate(jax.random.split(key, blocks))
    }


layout = jax.tree.map(
    lambda leaf: on("fsdp", None) if leaf.ndim == 2 else on(),
    jax.eval_shape(initialize, jax.random.key(0)),
)
params = jax.jit(initialize, out_shardings=layout)(jax.random.key(0))
kernel = params["block0"]["up"]["kernel"]
print(f"{kernel.shape} as {kernel.addressable_shards[0].data.shape} on each device")

# %% [markdown]
# ## The plan
#
# On this mesh one argument says how the matrices lie: `placement`. (On meshes with
# Explicit axes, which `jax.make_mesh` makes by default, not even that is needed.)
# `describe` prints what each parameter is, who computes what, and what each device
# sends. It needs shapes alone, so it can be read before a large run.

# %%
roles = mo.roles()
placement = mo.sharding.auto(mesh, params)
print(mo.describe(roles, params, placement=placement))

# %% [markdown]
# Both kinds of kernels are matrices of one shape, one way round or the other. So they
# share a stack of eight, and each device owns one. Nobody repeats the work of another.
#
# ## Train
#
# `state_shardings` says where the state of the optimizer lies: momentum like its
# parameter. Without it the compiler may keep the whole momentum on every device.

# %%
tx = mo.hybrid(
    mo.muon(0.02, placement=placement), others=optax.adamw(3e-3), labels=roles
)
state_layout = mo.sharding.state_shardings(tx, params)
state = jax.jit(tx.init, out_shardings=state_layout)(params)


def forward(params, x):
    for block in params.values():
        inner = jax.nn.relu(x @ block["up"]["kernel"] + block["up"]["bias"])
        x = x + (inner @ block["down"]["kernel"] + block["down"]["bias"]) / blocks
    return x


def loss(params, x, y):
    return jnp.mean(jnp.square(forward(params, x) - y))


def train_step(params, state, x, y):
    value, gradients = jax.value_and_grad(loss)(params, x, y)
    updates, state = tx.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, value


x = jax.random.normal(jax.random.key(1), (512, width))
y = jnp.roll(x, 1, axis=1)
batch = jax.device_put((x, y), on(("data", "fsdp"), None))
sharded_step = jax.jit(train_step, out_shardings=(layout, state_layout, None))
trained, trained_state, losses = params, state, []
for _ in range(20 if FAST else 200):
    trained, trained_state, value = sharded_step(trained, trained_state, *batch)
    losses.append(float(value))
print(f"loss from {losses[0]:.3f} to {losses[-1]:.3f}")
assert losses[-1] < 0.7 * losses[0]

# %% [markdown]
# ## The same numbers as on one device
#
# We take one step on a single device, from the same weights, and compare.

# %%
alone = jax.devices()[0]
tx_alone = mo.hybrid(mo.muon(0.02), others=optax.adamw(3e-3), labels=roles)
single = jax.device_put(params, alone)
gradients = jax.jit(jax.grad(loss))(single, *jax.device_put((x, y), alone))
expected, _ = jax.jit(tx_alone.update)(gradients, tx_alone.init(single), single)

placed = jax.device_put(gradients, layout)
update = jax.jit(tx.update, out_shardings=(layout, state_layout))
found, _ = update(placed, state, params)
difference = max(
    float(np.abs(np.asarray(one) - np.asarray(other)).max() / np.abs(other).max())
    for one, other in zip(
        jax.tree.leaves(found), jax.tree.leaves(jax.device_get(expected)), strict=True
    )
)
print(f"largest difference, relative to the largest entry: {difference:.1e}")
assert difference < 5e-5  # float32, summed in another order

# %% [markdown]
# ## What the program sends
#
# `mo.programs.collectives` reads a compiled program and counts its collectives: the
# number, the bytes that one device sends, and whether they are inside a loop. We
# compile the update alone, because the model communicates for itself.

# %%
compiled = update.lower(placed, state, params).compile()
ours = mo.programs.collectives(compiled)
print(ours)
assert ours.inside_loops == 0
assert ours.count("all-to-all") == 2  # to the owners, and back

# %% [markdown]
# These are the bytes of the plan. Two all-to-alls take all matrices to their owners and
# back. One all-gather hands the results to the devices along `data`, which hold copies.
#
# For comparison we compile two more. `sliced` leaves the pieces where they are and adds
# small products across devices. Optax's own Muon on the same mesh is left to the
# compiler.


# %%
def sent(transformation):
    state = jax.jit(transformation.init)(params)
    update = jax.jit(transformation.update, out_shardings=(layout, None))
    return mo.programs.collectives(update.lower(placed, state, params).compile())


def matrices_only(params):
    spec = optax.contrib.MuonDimensionNumbers()
    return jax.tree.map(lambda leaf: spec if leaf.ndim == 2 else None, params)


sliced = mo.muon(0.02, placement=mo.sharding.sliced(mesh, params))
programs = {
    "library, owned": ours,
    "library, sliced": sent(mo.hybrid(sliced, others=optax.adamw(3e-3), labels=roles)),
    "optax.contrib.muon": sent(
        optax.contrib.muon(0.02, muon_weight_dimension_numbers=matrices_only)
    ),
}
for name, found in programs.items():
    print(f"{name:20}{found.count():4} collectives, {found.wire() / 1e6:6.2f} MB sent")
assert programs["optax.contrib.muon"].wire() > 5 * ours.wire()

# %% [markdown]
# The figure shows where a kernel lies, and what one device sends for one update.

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 3.2), layout="constrained")
owner = np.zeros(kernel.shape)
names = {}
for shard in kernel.addressable_shards:
    owner[shard.index] = shard.index[0].start // (width // 4)
    names.setdefault(shard.index[0].start, []).append(str(shard.device.id))
axes[0].imshow(owner, cmap="Pastel1", vmax=8, aspect="auto", interpolation="none")
for start, devices in names.items():
    text = "devices " + " and ".join(devices)
    axes[0].text(
        2 * width, start + width / 8, text, ha="center", va="center", color="k"
    )
axes[0].set(title="block0/up/kernel", xlabel="outputs", ylabel="inputs, cut by fsdp")
kinds = ["all-to-all", "all-gather", "all-reduce"]
left = np.zeros(len(programs))
for kind in kinds:
    wire = np.array([found.wire(kind) for found in programs.values()]) / 1e6
    axes[1].barh(list(programs), wire, left=left, label=kind)
    left += wire
axes[1].set(title="one update", xlabel="MB that one device sends")
axes[1].invert_yaxis()
axes[1].legend()
plt.show()

# %% [markdown]
# The page "Sharded training" of the documentation has a Flax model, Explicit axes,
# experts, several processes, and checkpoints that go to another mesh.
