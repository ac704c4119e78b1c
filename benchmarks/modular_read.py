"""How long it takes to read a network: GPT-2 small, unrolled and scanned.

Run: `.venv/bin/python benchmarks/modular_read.py`. Nothing is computed and no array is
made. Each line: tracing; roles from use; the two kinds of sensitivities, of which the
first line alone includes the analysis of scalar functions; the least and the largest
nominal share.
"""

import pathlib
import sys
import time

# The models of the tests.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests"))

import jax

from manifold_optax import modular
from modular.models import gpt2


def measure(title: str, layers: int, *, scanned: bool = False) -> None:
    """Prints one line."""
    model = gpt2(layers, scanned=scanned)
    decided = {"wte": "embedding"}
    start = time.perf_counter()
    jax.make_jaxpr(model.forward)(model.params, *model.inputs)
    traced = time.perf_counter()
    network = modular.read(model.forward, model.params, *model.inputs, roles=decided)
    read = time.perf_counter()
    network.sensitivities("nominal")
    nominal = time.perf_counter()
    network.sensitivities("derived")
    derived = time.perf_counter()
    try:
        shares = [x for own in modular.budget(network).shares.values() for x in own]
        told = f"shares {min(shares):.1g} to {max(shares):.1g}"
    except ValueError:
        told = "no shares: sensitivities beyond float64"
    print(
        f"{title:28s} trace {traced - start:.2f} s, read {read - traced:.2f} s, "
        f"nominal {nominal - read:.2f} s, derived {derived - nominal:.2f} s, "
        f"{len(network.atoms)} parameters, {told}"
    )


if __name__ == "__main__":
    measure("first in the process", layers=12)
    for layers in (12, 24, 48):
        measure(f"{layers} layers, unrolled", layers=layers)
    for layers in (12, 48, 1024):
        measure(f"{layers} layers, scanned", layers=layers, scanned=True)
