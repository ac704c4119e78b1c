"""The golden formats of all states: what checkpoints of this version consist of.

After a change that is meant, raise `FORMAT_VERSION` in `manifold_optax/states`, add a
note on how to convert to `docs/state_format.md`, and write the file anew:

    PYTHONPATH=tests .venv/bin/python -m conformance.golden

A new optimizer only adds to the file; it needs no other version.
"""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from conformance.case import Case
from conformance.table import CASES
from manifold_optax.states import FORMAT_VERSION, state_format

FILE = pathlib.Path(__file__).parent / "golden" / "states.json"


def format_of(case: Case, tx: Any = None) -> dict[str, str | None]:
    """Path → shape and dtype of the state of a case, or of `tx` on its parameters."""
    abstract = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        case.shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )
    leaves = state_format(jax.eval_shape((tx or case.make()).init, abstract)).leaves
    return {path: None if leaf is None else str(leaf) for path, leaf in leaves.items()}


def read() -> Any:
    """The version, and the format of every case by its name."""
    return json.loads(FILE.read_text("utf-8"))


def write() -> None:
    """Writes the formats of the code as it is."""
    states = {case.name: format_of(case) for case in CASES}
    golden = {"version": FORMAT_VERSION, "states": states}
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(golden, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    write()
