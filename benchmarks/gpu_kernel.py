"""Symmetric products with and without the kernel that skips half of their tiles."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gpu_timing import Deadline, median_of
from stepping import head, row

from manifold_optax.linalg import newton_schulz, symmetric_kernel
from manifold_optax.linalg._symmetric import gram_product

TITLE = "Symmetric products"

TEXT = """\
`mo.linalg.symmetric_kernel` computes one triangle of tiles of a Gram matrix and mirrors
it. It is **off by default**, because its speed was measured on no device. Kernels of
this kind lose where a matrix does not fill the device. Peers report, in bfloat16 by the
kernel of QuACK, 0.31 x the speed of plain products at a short side of 512, 0.78 x at
1024 and 1.02 x at 2048; for large batches, and for large matrices, a whole step of
Newton-Schulz gains up to 1.40 x
([Paddle#79694](https://github.com/PaddlePaddle/Paddle/pull/79694), which admits short
sides from 1024 and 2e11 FLOPs a step) and 1.34 to 1.52 x
([torchtitan#4781](https://github.com/pytorch/torchtitan/pull/4781)). Hence the gates on
size and FLOPs where the kernel is switched on. In this table they are open. 'plain',
'kernel': the Gram matrix of square matrices, sums in float32, of float32 at full
precision. 'error': largest difference from float64, relative to its largest entry,
plain and by the kernel. 'symmetric': whether the kernel's result equals its transpose
bit by bit. 'Newton-Schulz': time of `newton_schulz` in the direct form without the
kernel, over that with it; above 1 the kernel wins."""

NO_KERNEL = """\
The kernel does not run on this device. Its errors are those of Pallas's interpreter,
whose time is no measurement and is left out."""


@dataclasses.dataclass(frozen=True)
class KernelBudget:
    """Which products are measured, and for how long."""

    sizes: tuple[int, ...]
    batches: tuple[int, ...]
    dtypes: tuple[str, ...]
    seconds: float
    """Of the whole table."""
    measure: float
    """Of one median."""


def runs_here() -> bool:
    """Whether the kernel computes on the default device, not the plain product."""
    device = jax.devices()[0]
    # By the kind: on AMD's devices JAX's platform is "gpu", too.
    return device.platform == "tpu" or (
        device.platform == "gpu" and "nvidia" in device.device_kind.lower()
    )


def table(budget: KernelBudget) -> Iterator[str]:
    """The table."""
    if not runs_here():
        yield f"{NO_KERNEL}\n"
    yield from head(
        *("matrices", "dtype", "plain ms", "kernel ms", "plain / kernel"),
        *("error, plain", "error, kernel", "symmetric", "Newton-Schulz"),
    )
    deadline = Deadline(budget.seconds)
    for dtype in budget.dtypes:
        for size in budget.sizes:
            for batch in budget.batches:
                make = functools.partial(_rows, size, batch, dtype, budget)
                yield from deadline.rows(f"{batch} of {size}, {dtype}", make)


def _rows(size: int, batch: int, dtype: str, budget: KernelBudget) -> Iterator[str]:
    x = jax.random.normal(jax.random.key(size), (batch, size, size), dtype)
    here = runs_here()
    # A function of its own for each: JAX would take the program of the other one.
    product = lambda: functools.partial(gram_product, axis=-1, dtype=jnp.float32)
    plain = jax.jit(product()).lower(x).compile()
    kernel = _by_kernel(product(), x)
    seconds = median_of(lambda: plain(x), seconds=budget.measure)
    cells = ["–", "–"]
    if here:
        other = median_of(lambda: kernel(x), seconds=budget.measure)
        cells = [f"{1e3 * other:.3g}", f"{seconds / other:.2f}"]
    # One matrix is enough: the others are computed alike.
    rows = np.asarray(x[0], np.float64)
    exact = rows @ rows.T
    errors = [_error(run(x)[0], exact) for run in (plain, kernel)]
    found = np.asarray(kernel(x))
    symmetric = bool((found == found.swapaxes(-1, -2)).all())
    whole = _newton_schulz_ratio(x, dtype, budget) if here else "–"
    yield row(
        [
            *(f"{batch} of {size} x {size}", dtype, f"{1e3 * seconds:.3g}", *cells),
            *(f"{e:.1e}" for e in errors),
            *("yes" if symmetric else "NO", whole),
        ]
    )


def _by_kernel(function: Callable[[Any], Any], x: Any) -> Any:
    """The compiled function, with the kernel wherever it can stand."""
    switch = symmetric_kernel(min_size=1, min_flops=0, interpret=not runs_here())
    with switch:
        return jax.jit(function).lower(x).compile()


def _newton_schulz_ratio(x: Any, dtype: str, budget: KernelBudget) -> str:
    direct = lambda: functools.partial(
        newton_schulz, form="direct", compute_dtype=dtype
    )
    plain, kernel = jax.jit(direct()).lower(x).compile(), _by_kernel(direct(), x)
    times = [
        median_of(lambda f=f: f(x), seconds=budget.measure) for f in (plain, kernel)
    ]
    return f"{times[0] / times[1]:.2f}"


def _error(found: Any, exact: Any) -> float:
    difference = np.abs(np.asarray(found, np.float64) - exact).max()
    return float(difference / np.abs(exact).max())
