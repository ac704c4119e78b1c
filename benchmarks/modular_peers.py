"""Shares of the learning rate, beside those of the package `modula`.

    .venv/bin/python -m pip install --group peers
    .venv/bin/python benchmarks/modular_peers.py

builds modula's own examples (its MLP and its GPT, and two maps scaled and added) with
modula and with `manifold_optax.modular`, and prints for each: the largest difference
between the target norms that modula gives its atoms and our shares, the difference of
mass and sensitivity, and the modular norm of one update of modula for target norm 1.
That update is made by six steps of Newton-Schulz, so its norm is near 1, not 1.
"""

import dataclasses
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from document import print_all

import manifold_optax as mo
from manifold_optax.geometry import RowRms
from manifold_optax.modular import (
    Atom,
    Bond,
    compose,
    mass,
    modular_norm,
    Module,
    residual,
    sensitivity,
    shares,
    tare,
)

WIDTH, HEADS, TOKENS = 16, 2, 20
ROW = "{:<14}  {:>5}  {:>16}  {:>13}  {:>20}  {:>12}  {}"


@dataclasses.dataclass(frozen=True)
class Case:
    """One network, twice; the atoms stand in the same order in both."""

    name: str
    theirs: Any
    ours: Module


def main() -> None:
    """Prints the table and the tree of one GPT."""
    modula = load_modula()
    if modula is not None:
        print_all(lines(cases(modula)))


def load_modula() -> Any:
    """The package; None, with a line that says so, where it is missing."""
    try:
        return importlib.import_module("modula")
    except ModuleNotFoundError:
        print(
            "modula is missing; this installs it: "
            ".venv/bin/python -m pip install --group peers"
        )
        return None


def lines(found: list[Case]) -> Iterator[str]:
    """One line per case."""
    yield ROW.format(
        "network",
        "atoms",
        "share difference",
        "of mass",
        "of sensitivity",
        "update norm",
        "shares of the first layers",
    )
    for case in found:
        target = target_norms(case.theirs)
        each = [share for path in shares(case.ours).values() for share in path]
        yield ROW.format(
            case.name,
            len(target),
            f"{np.max(np.abs(np.subtract(target, each))):.1e}",
            f"{abs(case.theirs.mass - mass(case.ours)):.1e}",
            f"{abs(case.theirs.sensitivity - sensitivity(case.ours)):.1e}",
            f"{update_norm(case):.5f}",
            " ".join(f"{share:.6f}" for share in each[:7]),
        )
    yield ""
    yield str(found[-1].ours)


def target_norms(module: Any) -> list[float]:
    """The `target_norm` of every atom, for 1 of the whole network."""

    def record(grad_w: Any, target_norm: float = 1.0) -> list[float]:
        del grad_w
        return [target_norm]

    def atoms_of(node: Any) -> Iterator[Any]:
        if node.atoms == 1 and not node.children:
            yield node
        for child in node.children:
            yield from atoms_of(child)

    atoms = list(atoms_of(module))
    for atom in atoms:
        atom.dualize = record
    try:
        return module.dualize([None] * module.atoms)
    finally:
        for atom in atoms:
            del atom.dualize


def update_norm(case: Case) -> float:
    """Our modular norm of modula's update for random gradients."""
    weights = case.theirs.initialize(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), len(weights))
    drawn = zip(keys, weights, strict=True)
    gradients = [jax.random.normal(key, weight.shape) for key, weight in drawn]
    updates = dict(zip(shares(case.ours), case.theirs.dualize(gradients), strict=True))
    norm: Callable[[Any], Any] = jax.jit(lambda tree: modular_norm(case.ours, tree))
    return float(norm(jax.tree.map(jnp.asarray, updates)))


def cases(modula: Any) -> list[Case]:
    """Modula's examples, both times."""
    linear, compound = modula.atom.Linear, modula.compound
    found = [
        Case(
            "(2·L)∘L",
            (2 * linear(WIDTH, WIDTH)) @ linear(WIDTH, WIDTH),
            (2 * matrix("outer")) @ matrix("inner"),
        ),
        Case(
            "L + L",
            linear(WIDTH, WIDTH) + linear(WIDTH, WIDTH),
            matrix("left") + matrix("right"),
        ),
    ]
    for depth in (3, 4, 8):
        theirs = compound.MLP(10, 3 * WIDTH, WIDTH, depth)
        found.append(Case(f"MLP, depth {depth}", theirs, mlp(depth)))
    for layers in (1, 2, 6, 12):
        theirs = compound.GPT(
            vocab_size=TOKENS,
            num_heads=HEADS,
            d_embed=WIDTH,
            d_query=WIDTH // HEADS,
            d_value=WIDTH // HEADS,
            num_blocks=layers,
        )
        found.append(Case(f"GPT, {layers} layers", theirs, gpt(layers)))
    return found


def matrix(path: str) -> Atom:
    """A linear map, stored `[out, in]` as modula stores it."""
    return Atom(path, axes=mo.OUT_IN)


def mlp(depth: int) -> Module:
    """The MLP of `modula.compound`."""
    layers = [matrix(f"layers/{index}/kernel") for index in range(depth)]
    return compose(*(Bond("relu") @ layer for layer in layers[:-1]), layers[-1])


def gpt(layers: int) -> Module:
    """The GPT of `modula.compound`, with blocks of mass 5 in all."""
    weight = 1 / (2 * layers)

    def block(path: str) -> Module:
        query, key = matrix(f"{path}/query/kernel"), matrix(f"{path}/key/kernel")
        value, out = matrix(f"{path}/value/kernel"), matrix(f"{path}/out/kernel")
        up, down = matrix(f"{path}/up/kernel"), matrix(f"{path}/down/kernel")
        scores = compose((query, key), Bond("query · key", (1.0, 1.0)), Bond("softmax"))
        attention = out @ (1 / 3 * Bond("apply", (1.0, 1.0))) @ (value, scores)
        return compose(
            residual(attention, 1 - weight, weight),
            residual(down @ Bond("gelu / 1.1289") @ up, 1 - weight, weight),
        )

    blocks = compose(*(block(f"blocks/{index}") for index in range(layers)))
    # Its rows are the tokens: [tokens, features] has its features as fan-in.
    embedding = Atom("embed/embedding", "embedding", mo.OUT_IN, norm=RowRms())
    return compose(embedding, tare(blocks, 5.0), matrix("head/kernel"))


if __name__ == "__main__":
    main()
