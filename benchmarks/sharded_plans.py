"""What the plan of an exchange says by itself: parts, and the balance of owners.

Nothing is compiled; `sharded_step.py` prints these tables after its own.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, PartitionSpec as P
from stepping import head, row

import manifold_optax as mo
import trees
from manifold_optax.linalg import newton_schulz_flops
from manifold_optax.matrices._deal import deal
from manifold_optax.transforms._flops import of_dual_ascent, of_retraction

DEVICES = 8


def matrices_of(layers: int, width: int) -> dict[str, Any]:
    """Shapes of the matrices of a transformer by path."""
    tree = jax.eval_shape(lambda: trees.transformer_tree(layers, width))
    return {
        f"{layer}/{name}": leaf
        for layer, leaves in tree.items()
        for name, leaf in leaves.items()
        if leaf.ndim > 1
    }


def parts() -> Iterator[str]:
    """In how many parts `auto` sends the matrices of Muon."""
    yield "\n### Parts in which `auto` sends the matrices of Muon\n"
    yield from head("width", "layers", "busiest device", "parts")
    mesh = AbstractMesh((DEVICES,), ("data",))
    for layers, width in ((12, 256), (12, 512), (12, 768), (24, 1024), (24, 2048)):
        shapes = matrices_of(layers, width)
        specs = dict.fromkeys(shapes, P("data", None))
        placement = mo.sharding.auto(mesh, specs)
        plan = mo.plan_matrices(shapes, placement=placement)
        total = str(plan).splitlines()[-1].removeprefix("busiest device: ")
        counts = [len(exchange.parts) for exchange in plan.exchanges]
        yield row([width, layers, total.split(", in ")[0], sum(counts)])


def balance() -> Iterator[str]:
    """How evenly the matrices of manifold Muon are dealt."""
    yield "\n### Busiest owner of manifold Muon, of an equal share\n"
    yield from head(
        *("matrices, width 256", "dealt by Newton–Schulz", "dealt by its own FLOPs"),
        "the dearest matrix alone",
    )
    direction, back = of_dual_ascent(None), of_retraction(mo.Stiefel())

    def own(short: int, long: int) -> int:
        return direction(short, long) + back(short, long)

    for layers in (2, 3, 4, 6, 12):
        leaves = list(matrices_of(layers, 256).values())
        shapes = sorted({tuple(sorted(leaf.shape)) for leaf in leaves})
        counts = [sum(tuple(sorted(x.shape)) == s for x in leaves) for s in shapes]
        costs = [own(*shape) for shape in shapes]
        share = sum(map(math.prod, zip(counts, costs, strict=True))) / DEVICES
        found = [
            busiest(shapes, counts, [by(*shape) for shape in shapes], costs) / share
            for by in (newton_schulz_flops, own)
        ]
        ratios = (*found, max(costs) / share)
        yield row([len(leaves), *(f"{ratio:.2f}" for ratio in ratios)])


def busiest(
    shapes: Sequence[tuple[int, ...]],
    counts: Sequence[int],
    weights: Sequence[int],
    costs: Sequence[int],
) -> int:
    """Cost of what the busiest owner has, dealt by `weights`."""
    sizes = [math.prod(shape) for shape in shapes]
    found, _ = deal(counts, weights, sizes, [0.0] * DEVICES)
    return max(
        sum(map(math.prod, zip(own.counts, costs, strict=True)))
        for own in found.classes
    )
