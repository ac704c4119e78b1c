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
# # Manifolds and norms, in pictures
#
# A step of an optimizer answers a question: of all allowed directions of length 1,
# which one follows the gradient best? The manifold says what is allowed. The norm says
# what length is. We draw both in cases small enough to see.

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

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import scipy.optimize

import manifold_optax as mo

plt.rcParams.update({"figure.dpi": 90, "figure.facecolor": "white"})
print(f"Python {sys.version.split()[0]}, jax {jax.__version__}, mo {mo.__version__}")

# %% [markdown]
# ## One step on a sphere
#
# The matrices of shape 1 × 3 with Frobenius norm 1 are an ordinary sphere. A step has
# three moves. First we take the part of the gradient that is tangent. Then we go
# against it by the learning rate, and so leave the sphere a little. The retraction
# brings us back.

# %%
sphere = mo.Sphere(1.0)
point = sphere.project(jnp.array([[0.9, -0.4, 0.5]]))
gradient = jnp.array([[0.5, -1.1, -0.6]])

tangent = sphere.to_tangent(point, gradient)
direction = mo.steepest_direction(sphere, mo.Frobenius())(point, gradient)
step = -0.8 * direction
landed = sphere.retract(point, step)

print("the tangent part is at a right angle to the point:", jnp.vdot(tangent, point))
print("the direction has length", mo.Frobenius().value(direction))
print("after the step:", jnp.linalg.norm(point + step), " and back:", end=" ")
print(jnp.linalg.norm(landed))
assert abs(jnp.vdot(tangent, point)) < 1e-6
assert abs(mo.Frobenius().value(direction) - 1) < 1e-6
assert sphere.residual(landed) < 1e-6

# %% [markdown]
# ## Steps on a torus
#
# The 2 × 2 matrices whose columns have length 1 are a torus: an angle for each column.
# The library calls the manifold `Oblique`. We descend on it from the same start under
# two norms. `Frobenius` measures both columns together. `ColumnRms` gives each column
# a step of its own.
#
# The loss is the squared distance to a target on the torus.

# %%
torus = mo.Oblique(of="columns")


def matrix(angles):
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)])


def angles_of(matrix):
    return jnp.arctan2(matrix[1], matrix[0])


target = matrix(jnp.array([0.2, 2.6]))
loss = lambda matrix: jnp.sum(jnp.square(matrix - target))


def descend(norm, rate, steps=24):
    direction = mo.steepest_direction(torus, norm)

    def step(point, number):
        length = rate * (1 - number / steps)
        move = -length * direction(point, jax.grad(loss)(point))
        return torus.retract(point, move), point

    start = matrix(jnp.array([-2.0, -0.2]))
    return jax.jit(lambda: jax.lax.scan(step, start, jnp.arange(steps)))()[1]


paths = {
    "Frobenius": descend(mo.Frobenius(), 0.3),
    "ColumnRms": descend(mo.ColumnRms(), 0.18),
}
for name, path in paths.items():
    print(f"{name}: loss from {loss(path[0]):.2f} to {loss(path[-1]):.4f}")
    assert loss(path[-1]) < 0.01
    assert torus.residual(path).max() < 1e-6

# %% [markdown]
# We draw the step on the sphere, and the two paths: on the torus, and on its map, where
# the two angles are the coordinates.


# %%
def on_torus(angles, lift=0.0):
    first, second = angles[..., 0], angles[..., 1]
    tube = (1.0 + lift) * 0.9
    ring = 2.0 + tube * np.cos(second)
    return ring * np.cos(first), ring * np.sin(first), tube * np.sin(second)


figure = plt.figure(figsize=(12, 4.2), dpi=75, layout="constrained")
axes = figure.add_subplot(131, projection="3d", computed_zorder=False)
turn, rise = np.meshgrid(np.linspace(0, 2 * np.pi, 41), np.linspace(0, np.pi, 21))
axes.plot_surface(
    np.cos(turn) * np.sin(rise),
    np.sin(turn) * np.sin(rise),
    np.cos(rise),
    color="C0",
    alpha=0.15,
    linewidth=0,
)
start, end = np.ravel(point), np.ravel(point + step)
across = np.cross(start, np.ravel(direction))  # with the direction it spans the plane
sides = np.linspace(-0.7, 0.7, 2)
frame = np.stack([np.ravel(direction), across])
plane = start + np.stack(np.meshgrid(sides, sides), -1) @ frame
axes.plot_surface(*np.moveaxis(plane, -1, 0), color="C1", alpha=0.2, linewidth=0)
arrows = {"− gradient": -gradient, "− tangent part": -tangent, "step": step}
for color, (name, arrow) in zip(["C7", "C1", "C2"], arrows.items(), strict=True):
    axes.quiver(
        *start, *np.ravel(arrow), color=color, label=name, arrow_length_ratio=0.12, lw=2
    )
back = np.stack([end, np.ravel(landed)])
axes.plot(*back.T, "C3--", lw=2, label="retraction")
axes.plot(*start, "ko")
axes.plot(*back[1], "C3o")
axes.set(title="one step on the sphere", xlim=(-1, 1), ylim=(-1, 1), zlim=(-1, 1))
axes.view_init(elev=25, azim=30)
axes.set_box_aspect((1, 1, 1), zoom=1.15)
axes.legend(fontsize=8, loc="lower left")
axes.set_axis_off()

axes = figure.add_subplot(132, projection="3d", computed_zorder=False)
grid = np.stack(np.meshgrid(*[np.linspace(-np.pi, np.pi, 49)] * 2), -1)
height = np.asarray(jax.vmap(jax.vmap(lambda one: loss(matrix(one))))(grid))
shades = plt.cm.viridis_r(height / height.max())
axes.plot_surface(
    *on_torus(grid), facecolors=shades, alpha=0.25, linewidth=0, shade=False
)
for color, (name, path) in zip(["C3", "k"], paths.items(), strict=True):
    way = np.asarray(jax.vmap(angles_of)(path))
    axes.plot(*on_torus(way, 0.04), ".-", color=color, label=name)
axes.set(title="two paths on the torus", xlim=(-3, 3), ylim=(-3, 3), zlim=(-1, 1))
axes.view_init(elev=55, azim=-70)
axes.set_box_aspect((3, 3, 1), zoom=1.35)
axes.set_axis_off()

axes = figure.add_subplot(133)
degrees = np.degrees(grid)
axes.contour(degrees[..., 0], degrees[..., 1], height, 12, cmap="viridis_r", alpha=0.6)
for color, (name, path) in zip(["C3", "k"], paths.items(), strict=True):
    way = np.degrees(jax.vmap(angles_of)(path))
    axes.plot(*way.T, ".-", color=color, label=name)
axes.plot(*np.degrees(angles_of(target)), "*", color="C1", ms=14, label="target")
line = np.linspace(-180, 180, 2)
for number, shift in enumerate([-270, -90, 90, 270]):
    label = None if number else "orthogonal matrices"
    axes.plot(line, line + shift, ":", color="C7", label=label)
axes.set(
    title="its map",
    xlabel="angle of column 1, degrees",
    ylabel="angle of column 2, degrees",
    xlim=(-180, 180),
    ylim=(-180, 180),
    xticks=range(-180, 181, 90),
    yticks=range(-180, 181, 90),
)
axes.legend(fontsize=8, loc="lower right")
plt.show()

# %% [markdown]
# Under `Frobenius` the path follows the slope. Under `ColumnRms` both columns turn by
# the same angle in each step, so the path starts along a diagonal of the map. When one
# column has arrived, it swings about its goal until the rate is small.
#
# The dotted lines are the matrices with orthogonal columns: the Stiefel manifold of
# 2 × 2 matrices. It lies on the torus as two closed curves, rotations and reflections,
# and no step crosses from one to the other.
#
# ## A norm is a shape
#
# Now the norm alone, without a manifold. We look at the matrices `[[a, b], [b, a]]`.
# All matrices of norm 1 are a curve in this plane. The steepest direction is the point
# of the curve that lies farthest along the gradient.

# %%
norms = {"Frobenius": mo.Frobenius(), "Spectral": mo.Spectral(), "Max": mo.Max()}
inside = lambda a, b: jnp.array([[a, b], [b, a]])
slope = inside(0.9, 0.5)

figure, all_axes = plt.subplots(1, 3, figsize=(11, 3.8), layout="constrained")
ticks = np.linspace(-1.3, 1.3, 161)
a, b = np.meshgrid(ticks, ticks)
for axes, (name, norm) in zip(all_axes, norms.items(), strict=True):
    values = jax.vmap(lambda a, b, norm=norm: norm.value(inside(a, b)))(
        a.ravel(), b.ravel()
    )
    axes.contourf(a, b, np.reshape(values, a.shape), [0, 1], colors=["C0"], alpha=0.2)
    axes.contour(a, b, np.reshape(values, a.shape), [1], colors=["C0"])
    best = norm.steepest(slope)
    style = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.014}
    axes.quiver(0, 0, *slope[0], color="C7", label="gradient", **style)
    axes.quiver(0, 0, *best[0], color="C3", label="steepest direction", **style)
    axes.set(title=name, xlabel="a", aspect="equal")
    gained = jnp.vdot(best, slope)
    print(f"{name}: ⟨direction, gradient⟩ = {gained:.4f} = ", end="")
    print(f"dual norm of the gradient = {norm.dual_value(slope):.4f}")
    assert abs(norm.value(best) - 1) < 1e-5
    assert abs(gained - norm.dual_value(slope)) < 1e-5
all_axes[0].set_ylabel("b")
all_axes[0].legend(fontsize=8, loc="lower left")
plt.show()

# %% [markdown]
# The shapes have corners, and corners attract. Under `Max` the direction is the sign of
# each entry: sign descent. Under `Spectral` it is the polar factor, whose singular
# values are all 1: Muon. Here that is the identity.
#
# ## The table
#
# A manifold and a norm together make an optimizer. Which pairs are solved, and how?
# `mo.steepest_direction(manifold, norm)` is this table as a function. An unknown pair
# is an error that prints the table.

# %%
print(mo.geometry.pair_table())

# %% [markdown]
# We check some rows by brute force: no random tangent direction of norm 1 gains more.

# %%
pairs = [
    (mo.Sphere(1.0), mo.Frobenius()),
    (mo.Sphere(1.0), mo.Spectral()),
    (mo.Stiefel(), mo.Frobenius()),
    (mo.Stiefel(), mo.Spectral()),
    (mo.Oblique(of="columns"), mo.ColumnRms()),
    (mo.Oblique(of="columns"), mo.Spectral()),
    (mo.SpectralSphere(1.0), mo.Spectral()),
]
shape, trials = (3, 2), 2000 if FAST else 100_000
slope = jax.random.normal(jax.random.key(0), shape)
for manifold, norm in pairs:
    point = manifold.random_point(jax.random.key(1), shape)
    best = jax.jit(mo.steepest_direction(manifold, norm))(point, slope)
    random = jax.random.normal(jax.random.key(2), (trials, *shape))
    random = jax.vmap(lambda one, m=manifold, p=point: m.to_tangent(p, one))(random)
    gains = jnp.einsum("kij,ij->k", random, slope) / jax.vmap(norm.value)(random)
    gain = jnp.vdot(best, slope)
    print(f"{manifold!r:24} {norm!r:12} gains {gain:.3f}, at random {gains.max():.3f}")
    assert norm.value(best) < 1 + 1e-4
    assert gain > 0.999 * gains.max()

# %% [markdown]
# ## The dual of Stiefel × spectral
#
# On the Stiefel manifold under the spectral norm there is no formula. We want
#
# $$\max_A \langle A, G\rangle \quad\text{over}\quad W^\top A + A^\top W = 0,\quad
# \|A\|_2 \le 1.$$
#
# Every symmetric matrix $\Lambda$ gives an upper bound, because
# $\langle A, W\Lambda\rangle = 0$ for every tangent $A$:
#
# $$\langle A, G\rangle = \langle A, G + W\Lambda\rangle \le \|G + W\Lambda\|_*.$$
#
# The right side is the dual function. Its smallest value is the largest gain. Manifold
# Muon searches for it. For a 4 × 2 matrix $\Lambda$ has three numbers, so we can find
# the minimum by brute force and compare.

# %%
stiefel = mo.Stiefel()
point = np.asarray(stiefel.random_point(jax.random.key(8), (4, 2)), np.float64)
slope = np.asarray(jax.random.normal(jax.random.key(108), (4, 2)), np.float64)


def dual(numbers):
    multiplier = np.array([[numbers[0], numbers[1]], [numbers[1], numbers[2]]])
    shifted = slope + point @ multiplier
    return np.linalg.svd(shifted, compute_uv=False).sum()


lowest = scipy.optimize.minimize(
    dual, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-10}
)
found = mo.geometry.stiefel_spectral_direction(
    jnp.float32(point), jnp.float32(slope), certify=True
)
best = np.asarray(found.direction)
gain = np.vdot(best, slope)

# A cheap direction: the polar factor of the tangent part, made feasible.
tangent = np.asarray(stiefel.to_tangent(jnp.float32(point), jnp.float32(slope)))
polar = np.asarray(mo.linalg.polar(jnp.float32(tangent)))
cheap = np.asarray(stiefel.to_tangent(jnp.float32(point), jnp.float32(polar)))
cheap = cheap / max(1.0, np.linalg.norm(cheap, 2))
print(f"smallest dual value   {lowest.fun:.5f}")
print(
    f"gain of the direction {gain:.5f}, certified within {float(found.gap):.1e} of it"
)
print(f"gain of project, then polar factor, then project {np.vdot(cheap, slope):.5f}")
assert abs(gain - lowest.fun) < 1e-3 * lowest.fun
assert np.vdot(cheap, slope) < gain

# %%
reach = np.linspace(-0.6, 0.6, 81)
figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
first, last = np.meshgrid(lowest.x[0] + reach, lowest.x[2] + reach)
values = np.vectorize(lambda a, c: dual([a, lowest.x[1], c]))(first, last)
drawn = axes[0].contourf(first, last, values, 16, cmap="Blues_r")
figure.colorbar(drawn, ax=axes[0], label="dual function")
axes[0].plot(lowest.x[0], lowest.x[2], "*", color="C1", ms=14, label="minimum")
axes[0].set(
    title="the dual function", xlabel="$\\Lambda_{11}$", ylabel="$\\Lambda_{22}$"
)
axes[0].legend()
for number, name in enumerate(["11", "12", "22"]):
    line = [dual(lowest.x + move * np.eye(3)[number]) for move in reach]
    axes[1].plot(reach, line, label=f"dual, along $\\Lambda_{{{name}}}$")
axes[1].axhline(gain, color="C3", ls="--", label="gain of the direction")
axes[1].axhline(
    np.vdot(cheap, slope), color="C7", ls=":", label="gain of the cheap one"
)
axes[1].set(title="from above and from below", xlabel="distance from the minimum")
axes[1].set_ylabel("⟨A, G⟩ and its bounds")
axes[1].legend(fontsize=8, loc="upper center")
plt.show()

# %% [markdown]
# Every point of the curves is a bound from above. Every feasible direction is a bound
# from below. Where they touch, nothing better exists: that is the certificate of
# `03_certified_solver`.
