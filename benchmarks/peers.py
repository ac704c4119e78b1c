"""The optimizers that are compared: ours, Optax's and PyTorch's."""

import importlib
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import manifold_optax as mo

OPTAX = "optax.contrib.muon"
ADAMW = "optax.adamw"
OURS = "mo.hybrid(mo.muon) f32"
OURS_BF16 = "mo.hybrid(muon) bf16"
DIRECT = "mo.hybrid(muon) f32, direct form"
DIRECT_BF16 = "mo.hybrid(muon) bf16, direct form"
TORCH = "torch.optim.Muon bf16"
# One rate for all of a table; no cost depends on it.
RATE = 0.02


def bf16_muon(
    *,
    form: Literal["auto", "direct", "gram"] = "auto",
    dtype: Any = jnp.bfloat16,
    axes: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """`mo.muon` with products of this dtype: its chain, written out.

    `form="direct"` is the algorithm of the peers; `"auto"` works on the Gram matrix
    where that has fewer FLOPs. `axes` as for `mo.muon`.
    """
    return optax.chain(
        mo.momentum(0.95, nesterov=True, debias=True),
        mo.orthogonalize_via_newton_schulz(form=form, compute_dtype=dtype, axes=axes),
        mo.scale_by_shape("width", axes=axes),
        optax.scale_by_learning_rate(RATE),
    )


def whole_model(
    matrices: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """`hybrid` with the vectors treated as `optax.contrib.muon` treats them."""
    others = optax.adamw(RATE, weight_decay=0.0, nesterov=True)
    # The rank does not tell a stack of experts from a convolution: names do.
    labels = mo.roles({r"w\w*": "matrix"}, default="other")
    return mo.hybrid(matrices, others=others, labels=labels)


def muons() -> dict[str, optax.GradientTransformation]:
    """Muon for a whole model, in JAX."""
    return {
        OPTAX: optax.contrib.muon(RATE),
        OURS: whole_model(mo.muon(RATE)),
        DIRECT: whole_model(bf16_muon(form="direct", dtype=None)),
        OURS_BF16: whole_model(bf16_muon()),
        DIRECT_BF16: whole_model(bf16_muon(form="direct")),
    }


def load_torch() -> Any:
    """PyTorch on one thread; None, with a line saying so, where it is missing."""
    try:
        torch = importlib.import_module("torch")
    except ModuleNotFoundError:
        print(
            "PyTorch is missing and its rows are left out; this installs it: "
            ".venv/bin/python -m pip install --group peers"
        )
        return None
    torch.set_num_threads(1)
    return torch


class TorchStep:
    """A step of `torch.optim.Muon` (matrices) and `torch.optim.AdamW` (the rest).

    Muon as it ships: its products are in bfloat16 whatever the parameters are. It
    writes its parameters in place.
    """

    def __init__(self, torch: Any, params: Any, gradients: Any, *, device: str = "cpu"):
        self.params = [self._tensor(torch, x, device) for x in jax.tree.leaves(params)]
        for leaf, gradient in zip(self.params, jax.tree.leaves(gradients), strict=True):
            leaf.grad = self._tensor(torch, gradient, device)
        matrices = [x for x in self.params if x.ndim == 2]
        vectors = [x for x in self.params if x.ndim != 2]
        self._optimizers = [torch.optim.Muon(matrices, lr=RATE, weight_decay=0.0)]
        if vectors:
            others = torch.optim.AdamW(vectors, lr=RATE, weight_decay=0.0)
            self._optimizers.append(others)

    def __call__(self) -> None:
        """One step."""
        for optimizer in self._optimizers:
            optimizer.step()

    @staticmethod
    def _tensor(torch: Any, leaf: Any, device: str) -> Any:
        # NumPy has no bfloat16 that PyTorch reads.
        dtype = torch.bfloat16 if leaf.dtype == jnp.bfloat16 else torch.float32
        return torch.tensor(np.array(leaf, np.float32)).to(device, dtype)


def newton_schulz64(x: Any) -> Any:
    """Muon's polynomial in float64, by NumPy."""
    tall = x.shape[0] > x.shape[1]
    y = (x.T if tall else x) / np.linalg.norm(x)
    for a, b, c in mo.linalg.JORDAN:
        gram = y @ y.T
        y = a * y + (b * gram + c * gram @ gram) @ y
    return y.T if tall else y


def direction_error(found: Any, gradients: Any) -> float:
    """Largest relative error of the matrices of an update, in the Frobenius norm.

    Against `newton_schulz64` times the number that fits best: optimizers scale their
    updates by the shape.
    """
    errors = []
    for update, gradient in zip(found, gradients, strict=True):
        if gradient.ndim == 2:
            exact = newton_schulz64(gradient)
            fitted = np.vdot(exact, update) / np.vdot(exact, exact) * exact
            errors.append(np.linalg.norm(update - fitted) / np.linalg.norm(fitted))
    return float(max(errors))


def errors(
    torch: Any, optimizers: Mapping[str, optax.GradientTransformation], tree: Any
) -> dict[str, float]:
    """`direction_error` of the first step, for gradients like `tree`, float64."""
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), tree)
    gradients = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)
    exact = jax.tree.leaves(tree)
    found = {}
    for name, tx in optimizers.items():
        state = jax.jit(tx.init)(zeros)
        updates, _ = jax.jit(tx.update)(gradients, state, zeros)
        leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(updates)]
        found[name] = direction_error(leaves, exact)
    if torch is not None:
        step = TorchStep(torch, zeros, gradients)
        step()
        leaves = [np.asarray(x.numpy(), np.float64) for x in step.params]
        found[TORCH] = direction_error(leaves, exact)
    return found
