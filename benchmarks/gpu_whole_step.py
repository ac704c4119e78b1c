"""Whole optimizer steps on one accelerator, PyTorch's beside them."""

import dataclasses
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import gpu_timing
import jax
import jax.numpy as jnp
import numpy as np
import optax
import peers
from gpu_timing import Deadline, rounds_of, spread
from stepping import head, row, Step, update_flops

import trees

TITLE = "Whole step"

TEXT = """\
Update and apply, donated; vectors by Adam. Median wall time of a step over rounds of
several, with quartiles. 'of peak': FLOPs per second of the products over those of one
bfloat16 product in the same process; of float32 rows too, which cannot reach it.
'temp', 'held': temporaries of the step, and these with its arguments and results, by
XLA's `memory_analysis`. 'torch': `torch.optim.Muon` with `torch.optim.AdamW` for the
vectors, eager; it needs a CUDA build of PyTorch."""


@dataclasses.dataclass(frozen=True)
class Layers:
    """Shapes of a transformer's layers."""

    name: str
    layers: int
    width: int

    def tree(self, dtype: Any) -> Any:
        """Parameters of this dtype."""
        return trees.transformer_tree(self.layers, self.width, dtype=dtype)


@dataclasses.dataclass(frozen=True)
class StepBudget:
    """Which steps are measured, and for how long."""

    models: tuple[Layers, ...]
    seconds: float
    """Of the whole table."""
    measure: float
    """Of one median."""


# In the order of the table: the baseline of a dtype first.
OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    peers.OPTAX: lambda: optax.contrib.muon(peers.RATE),
    peers.ADAMW: lambda: optax.adamw(peers.RATE),
    "mo.hybrid(muon)": lambda: peers.whole_model(peers.bf16_muon(dtype=None)),
    "mo.hybrid(muon), bf16 products": lambda: peers.whole_model(peers.bf16_muon()),
    "mo.hybrid(muon), bf16 products, direct form": lambda: peers.whole_model(
        peers.bf16_muon(form="direct")
    ),
}


def table(budget: StepBudget, peak: float, torch: Any) -> Iterator[str]:
    """The table; `peak` is the rate of a bfloat16 product, `torch` may be None."""
    yield from head(
        *("model", "parameters", "step", "ms, median [quartiles]"),
        *(f"of {peers.OPTAX}", "TFLOP", "of peak", "temp GB", "held GB"),
        "compile CPU s",
    )
    deadline = Deadline(budget.seconds)
    for dtype in (jnp.float32, jnp.bfloat16):
        for model in budget.models:
            yield from _jax_rows(model, dtype, peak, budget, deadline)
            if torch is not None:
                make = lambda m=model, d=dtype: _torch_rows(torch, m, d, budget)
                yield from deadline.rows(f"{model.name}, torch.optim.Muon", make)


def _jax_rows(
    model: Layers, dtype: Any, peak: float, budget: StepBudget, deadline: Deadline
) -> Iterator[str]:
    """Rows of one dtype; only one optimizer is in memory at a time."""
    tree = model.tree(dtype)
    medians: dict[str, float] = {}
    for name, make in OPTIMIZERS.items():

        def rows(name: str = name, tx: Any = make) -> Iterator[str]:
            flops = update_flops(tx(), tree)
            step = Step(tx(), tree, tree)
            seconds = rounds_of(step, seconds=budget.measure)
            median = medians[name] = statistics.median(seconds)
            known = peers.OPTAX in medians
            held = gpu_timing.held_bytes(step.compiled)
            yield row(
                [
                    *(model.name, jnp.dtype(dtype).name, name, spread(seconds)),
                    f"{median / medians[peers.OPTAX]:.3f}" if known else "–",
                    *(f"{flops / 1e12:.3g}", f"{flops / median / peak:.2f}"),
                    *(f"{step.temporary_bytes / 1e9:.3g}", f"{held / 1e9:.3g}"),
                    f"{step.compile_seconds:.1f}",
                ]
            )

        yield from deadline.rows(f"{model.name}, {jnp.dtype(dtype).name}, {name}", rows)


def _torch_rows(
    torch: Any, model: Layers, dtype: Any, budget: StepBudget
) -> Iterator[str]:
    """PyTorch's row, on the same card."""
    tree = jax.tree.map(np.asarray, model.tree(dtype))
    step = peers.TorchStep(torch, tree, tree, device="cuda")
    wait = lambda _: torch.cuda.synchronize()
    seconds = rounds_of(step, wait, seconds=budget.measure)
    del step
    torch.cuda.empty_cache()
    cells = [model.name, jnp.dtype(dtype).name, "torch.optim.Muon", spread(seconds)]
    yield row([*cells, *("–",) * 6])
