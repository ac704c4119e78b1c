"""What optimizers cost on one accelerator: time, memory, accuracy.

    .venv/bin/python benchmarks/gpu_step.py --table docs/performance.md

prints, and writes where told, these tables, in less than six minutes on one card:

1. What an optimizer takes of a training step, forward and backward included, of models
   like GPT-2 small and of a billion parameters; what the step holds in memory.
2. The whole step (update and apply) alone, in float32 and in bfloat16, with its share
   of the matmul peak. PyTorch's rows need a CUDA build of it.
3. Symmetric products with and without the kernel.
4. Products in float32, TF32 and bfloat16: time and error.
5. Momentum in four, three, two bytes and one: time and bytes of state.
6. The Stiefel x spectral solver by size and backend.

`--small` takes toy sizes: it shows on any machine, in a minute of CPU time, that
all of it works. Without it and without an accelerator nothing is measured: the
chapter then says so, and what each table will show.
"""

import argparse
import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

# Or JAX takes most of the memory at once, and leaves PyTorch none.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import gpu_kernel
import gpu_momentum
import gpu_precision
import gpu_solver
import gpu_training
import gpu_whole_step
import jax
import optax
import peers
from document import print_all, write_chapter
from gpu_kernel import KernelBudget
from gpu_model import Transformer
from gpu_momentum import MomentumBudget
from gpu_precision import PrecisionBudget
from gpu_solver import SolverBudget
from gpu_timing import peak_rate
from gpu_training import TrainingBudget
from gpu_whole_step import Layers, StepBudget

CHAPTER = "One accelerator"
COMMAND = ".venv/bin/python benchmarks/gpu_step.py"
SIZES = ("batch", "context")
"""Options that replace those of every model that is trained."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much is measured: the sizes and the seconds of each table."""

    training: TrainingBudget
    steps: StepBudget
    kernel: KernelBudget
    precision: PrecisionBudget
    momentum: MomentumBudget
    solver: SolverBudget
    peak_size: int
    total: float
    """Seconds after which no row of any table begins."""

    @property
    def seconds(self) -> float:
        """Seconds of all tables."""
        parts = (self.training, self.steps, self.kernel, self.precision)
        return sum(p.seconds for p in (*parts, self.momentum, self.solver))


# A row that has begun ends, so that a table may take a row longer than its seconds;
# `total` leaves a quarter of a minute of the six for the last one.
FULL = Budget(
    TrainingBudget(
        (
            Transformer("GPT-2 small", 12, 768, 12, 50304, 16, 1024),
            Transformer("1B, remat", 16, 2048, 16, 50304, 8, 1024, remat=True),
        ),
        seconds=110,
        measure=1.5,
    ),
    StepBudget(
        (Layers("GPT-2 small", 12, 768), Layers("1B", 16, 2048)),
        seconds=80,
        measure=1.0,
    ),
    KernelBudget(
        (512, 1024, 2048, 4096), (1, 8), ("bfloat16", "float32"), 45, measure=0.3
    ),
    PrecisionBudget((2048, 1024), seconds=20, measure=0.5),
    MomentumBudget(12, 768, seconds=25, measure=1.0),
    SolverBudget(
        ((512, 128), (512, 256), (1024, 256), (1024, 512), (2048, 512), (2048, 1024)),
        seconds=30,
        measure=0.5,
    ),
    peak_size=8192,
    total=345,
)
# Seconds that no table needs, on a busy machine either.
SMALL = Budget(
    TrainingBudget(
        (Transformer("small, remat", 2, 64, 2, 256, 2, 32, remat=True),),
        seconds=300,
        measure=0.05,
    ),
    StepBudget((Layers("small", 1, 64),), seconds=300, measure=0.05),
    KernelBudget((64,), (1, 2), ("bfloat16", "float32"), seconds=300, measure=0.05),
    PrecisionBudget((128, 64), seconds=300, measure=0.05),
    MomentumBudget(1, 64, seconds=300, measure=0.05),
    SolverBudget(((128, 64),), seconds=300, measure=0.05),
    peak_size=256,
    total=1800,
)


@dataclasses.dataclass(frozen=True)
class _Table:
    """A table of the chapter."""

    title: str
    text: str
    seconds: float
    lines: Callable[[float], Iterator[str]]
    """The table, given the seconds that it may take."""

    @property
    def limit(self) -> str:
        """A sentence for readers whose table ends early."""
        return f"The budget of the table is {self.seconds:.0f} s."


def tables(budget: Budget, peak: float, torch: Any) -> list[_Table]:
    """All tables, in order; nothing runs before their lines are asked for."""
    return [
        _table(gpu_training, budget.training, peak),
        _table(gpu_whole_step, budget.steps, peak, torch),
        _table(gpu_kernel, budget.kernel),
        _table(gpu_precision, budget.precision),
        _table(gpu_momentum, budget.momentum),
        _table(gpu_solver, budget.solver),
    ]


def _table(module: Any, part: Any, *facts: Any) -> _Table:
    """The table of a module that has TITLE, TEXT and `table`; its part of a budget."""

    def lines(seconds: float) -> Iterator[str]:
        return module.table(dataclasses.replace(part, seconds=seconds), *facts)

    return _Table(module.TITLE, module.TEXT, part.seconds, lines)


def cuda_torch() -> Any:
    """PyTorch where it can use the same card, else None."""
    torch = peers.load_torch()
    if torch is not None and not torch.cuda.is_available():
        print("PyTorch sees no CUDA device: its rows are left out.")
        return None
    return torch


def report(budget: Budget, command: str) -> Iterator[str]:
    """Lines of the chapter, as they are found."""
    start = time.monotonic()
    torch, peak = cuda_torch(), peak_rate(budget.peak_size, seconds=0.5)
    device = jax.devices()[0].device_kind
    versions = [f"jax {jax.__version__}", f"optax {optax.__version__}"]
    versions += [] if torch is None else [f"torch {torch.__version__}"]
    yield f"{', '.join(versions)}, {device}. Printed by"
    yield f"\n```\n{command}\n```"
    size = budget.peak_size
    yield f"\nA bfloat16 product of {size} x {size}: {peak / 1e12:.3g} TFLOP/s."
    for table in tables(budget, peak, torch):
        yield f"\n### {table.title}\n\n{table.text}\n{table.limit}\n"
        left = max(0.0, budget.total - (time.monotonic() - start))
        yield from table.lines(min(table.seconds, left))
    yield f"\nAll tables: {time.monotonic() - start:.0f} s of wall time."


def unmeasured(budget: Budget) -> Iterator[str]:
    """Lines of the chapter where no accelerator is at hand."""
    yield "**Not measured**: no accelerator was at hand. On a machine with one,"
    yield f"\n```\n{COMMAND} --table docs/performance.md\n```\n"
    yield "replaces this chapter by the tables below. The budgets of all tables are"
    yield f"{budget.seconds:.0f} s; with the start and the rows that have begun this is"
    yield "less than six minutes, which no card has confirmed. `--batch` and"
    yield "`--context` set the sizes of a training step. `--small` runs all of it at"
    yield "toy sizes on a CPU, in a minute of CPU time."
    for table in tables(budget, 0.0, None):
        yield f"\n### {table.title}\n\n{table.text}\n{table.limit}"


def chosen(options: argparse.Namespace) -> Budget:
    """The budget, with the batch and the context of the command line."""
    budget = SMALL if options.small else FULL
    given = {k: v for k, v in vars(options).items() if k in SIZES and v}
    models = (dataclasses.replace(m, **given) for m in budget.training.models)
    training = dataclasses.replace(budget.training, models=tuple(models))
    return dataclasses.replace(budget, training=training)


def main() -> None:
    """Prints the chapter and writes it."""
    parser = argparse.ArgumentParser(description="Steps on one accelerator.")
    parser.add_argument("--small", action="store_true", help="toy sizes, on any device")
    parser.add_argument("--batch", type=int, help="sequences of a training step")
    parser.add_argument("--context", type=int, help="tokens of a sequence")
    parser.add_argument("--table", type=pathlib.Path, help="Markdown file to write")
    options = parser.parse_args()
    budget = chosen(options)
    given = [f"--{k} {v}" for k, v in vars(options).items() if k in SIZES and v]
    command = " ".join([COMMAND, *["--small"] * options.small, *given])
    measured = options.small or jax.default_backend() != "cpu"
    lines = print_all(report(budget, command) if measured else unmeasured(budget))
    if options.table is not None:
        write_chapter(options.table, "Performance", CHAPTER, lines)


if __name__ == "__main__":
    main()
