"""What a sharded optimizer step sends and multiplies, counted in compiled programs.

    .venv/bin/python benchmarks/sharded_step.py --table docs/performance.md

prints, and writes where told, one table for each tree: collectives, wire bytes, FLOPs
and temporary memory per device of the whole step (update and apply, donated, momentum
sharded like the parameters), on 8 devices that the CPU pretends to be. Counts do not
depend on the load of the machine; nothing is timed.
"""

import argparse
import dataclasses
import math
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

# Before JAX looks: the eight devices are pretended, also where there is a real one.
DEVICES = 8
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        f"--xla_force_host_platform_device_count={DEVICES}",
    )
)

import jax
import jax.numpy as jnp
import optax
import peers
from document import print_all, write_chapter
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from sharded_plans import balance, parts
from stepping import head, row

import manifold_optax as mo
import trees

CHAPTER = "Sharded over eight devices"
TEXT = f"""\
Per device, for the whole step: update and apply, donated, momentum sharded like the
parameters, vectors replicated. Meshes have Auto axes. 'inside': collectives under a
loop, times its trips. Optax's loops are unrolled, so that its collectives inside
iterations are in the other column. 'shard': the bytes of all matrices over {DEVICES}.
'bound': all matrices to their owners and back, ((inputs + outputs) (D-1)/D / R +
(R-1)/R) bytes of all matrices / D for D devices that share a matrix and R replicas, in
float32; for manifold Muon of gradients, points and results. It is exceeded where
matrices do not divide by the owners: all send as much as the fullest one has. 'ideal':
the FLOPs of the same step on one device over {DEVICES}; a matrix is not divided, so
that the dearest one alone may be more. The rounds of the dual solver, whose number
depends on the data, count once."""

# Leaves of every tree: arrays without data.
Shapes = Any
Specs = Any


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the matrices of a tree lie on a mesh."""

    name: str
    mesh: dict[str, int]
    spec: P

    def make_mesh(self) -> Mesh:
        """The mesh, with Auto axes: on Explicit ones Optax raises."""
        types = (AxisType.Auto,) * len(self.mesh)
        return jax.make_mesh(tuple(self.mesh.values()), tuple(self.mesh), types)

    def specs(self, shapes: Shapes) -> Specs:
        """The spec of every leaf."""
        return jax.tree.map(lambda x: self.spec if x.ndim > 1 else P(), shapes)

    def bound(self, matrix_bytes: float, trees_sent: int) -> float:
        """Wire bytes of the owner exchange, see `TEXT`."""
        if self.spec and self.spec[0] == "expert":
            return 0.0
        cut = math.prod(self.mesh[name] for name in self.spec if name is not None)
        replicas = DEVICES // cut
        exchanged = trees_sent * (cut - 1) / cut / replicas
        return (exchanged + (replicas - 1) / replicas) * matrix_bytes / cut


LAYOUTS = (
    Layout("rows", {"data": 8}, P("data", None)),
    Layout("columns", {"model": 8}, P(None, "model")),
    Layout("2-D, 2 x 4", {"data": 2, "model": 4}, P("data", "model")),
    Layout("hybrid, 2 replicas x 4", {"replica": 2, "data": 4}, P("data", None)),
    Layout("replicated", {"data": 8}, P()),
)
EXPERTS = Layout("experts", {"expert": 8}, P("expert", None, None))


@dataclasses.dataclass(frozen=True)
class Row:
    """An optimizer, made for a mesh and specs, or for one device."""

    name: str
    make: Callable[[mo.sharding.Placement | None], optax.GradientTransformation]
    trees_sent: int = 2
    """Inputs and outputs of the exchange between owners."""
    wire: Any = None
    """Dtype in which matrices travel; None: their own."""


def optax_muon() -> optax.GradientTransformation:
    """`optax.contrib.muon`; the last two axes of every leaf are the matrix."""

    def axes(params: Any) -> Any:
        def of_leaf(x: Any) -> Any:
            if x.ndim < 2:
                return None
            return optax.contrib.MuonDimensionNumbers(x.ndim - 2, x.ndim - 1)

        return jax.tree.map(of_leaf, params)

    return optax.contrib.muon(peers.RATE, muon_weight_dimension_numbers=axes)


ROWS = (
    Row(peers.ADAMW, lambda _: optax.adamw(peers.RATE)),
    Row(peers.OPTAX, lambda _: optax_muon()),
    Row(
        peers.OURS,
        lambda at: peers.whole_model(
            mo.muon(peers.RATE, axes=mo.STACKED, placement=at)
        ),
    ),
    Row(
        f"{peers.OURS}, bf16 wire",
        lambda at: peers.whole_model(
            mo.muon(peers.RATE, axes=mo.STACKED, placement=at)
        ),
        wire=jnp.bfloat16,
    ),
    # The direction is of the update and the point.
    Row(
        "mo.hybrid(mo.manifold_muon) f32",
        lambda at: peers.whole_model(
            mo.manifold_muon(0.1, axes=mo.STACKED, placement=at)
        ),
        trees_sent=3,
    ),
)


def placed(shapes: Shapes, mesh: Mesh, specs: Specs) -> Shapes:
    """Arrays without data, laid out."""
    return jax.tree.map(
        lambda x, spec: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=NamedSharding(mesh, spec)
        ),
        shapes,
        specs,
    )


def compile_step(
    tx: optax.GradientTransformation, params: Shapes, state: Shapes
) -> Any:
    """Compiled update and apply, results laid out like the arguments."""

    def step(params: Any, state: Any, gradients: Any) -> Any:
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    layout = jax.tree.map(lambda x: x.sharding, (params, state))
    jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=layout)
    return jitted.lower(params, state, params).compile()


def laid_out_state(tx: optax.GradientTransformation, params: Shapes) -> Shapes:
    """The first state without its data: momentum lies like its parameter."""
    return jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
        jax.eval_shape(tx.init, params),
        mo.sharding.state_shardings(tx, params),
    )


def compiled_on(layout: Layout, row: Row, shapes: Shapes) -> Any:
    """The step of a row on eight devices."""
    mesh, specs = layout.make_mesh(), layout.specs(shapes)
    tx = row.make(mo.sharding.owned(mesh, specs, wire=row.wire))
    params = placed(shapes, mesh, specs)
    return compile_step(tx, params, laid_out_state(tx, params))


def flops_of(compiled: Any) -> int:
    """FLOPs of the products on one device."""
    # The dual solver runs until its gap is small: every program counts one round.
    return mo.programs.dot_flops(compiled, unknown_trips=1)


def flops_on_one_device(row: Row, shapes: Shapes) -> int:
    """FLOPs of the products of the same step, unsharded."""
    mesh = jax.make_mesh((1,), ("all",), (AxisType.Auto,), devices=jax.devices()[:1])
    params = placed(shapes, mesh, jax.tree.map(lambda _: P(), shapes))
    tx = row.make(None)
    return flops_of(compile_step(tx, params, laid_out_state(tx, params)))


def table(shapes: Shapes, layouts: tuple[Layout, ...]) -> Iterator[str]:
    """Table of one tree."""
    matrices = [x for x in jax.tree.leaves(shapes) if x.ndim > 1]
    size = sum(x.size * x.dtype.itemsize for x in matrices)
    flops = {r.name: flops_on_one_device(r, shapes) for r in ROWS}
    yield from head(
        *("layout", "step", "collectives", "inside", "all-to-alls", "wire MB"),
        *("of a shard", "of the bound", "GFLOP", "of ideal", "temp MB"),
    )
    for layout in layouts:
        for r in ROWS:
            compiled = compiled_on(layout, r, shapes)
            sent = mo.programs.collectives(compiled)
            done = flops_of(compiled)
            outside = sent.count() - sent.inside_loops
            counts = (outside, sent.inside_loops, sent.count("all-to-all"))
            bound = layout.bound(size, r.trees_sent)
            wire = (
                f"{sent.wire() / 1e6:.3g}",
                f"{sent.wire() / size * DEVICES:.2f}",
                share(sent.wire(), bound),
            )
            temp = compiled.memory_analysis().temp_size_in_bytes / 1e6
            work = (f"{done / 1e9:.3g}", share(done, flops[r.name] / DEVICES))
            yield row([layout.name, r.name, *counts, *wire, *work, f"{temp:.1f}"])


def share(part: float, whole: float) -> str:
    """Ratio; a dash where nothing is to be compared."""
    if not part:
        return "0"
    return f"{part / whole:.2f}" if whole else "–"


def expert_shapes() -> Shapes:
    """Two stacks of 16 expert matrices."""
    kernel = jax.ShapeDtypeStruct((16, 256, 512), jnp.float32)
    return {"experts": {"w_up": kernel, "w_gate": kernel}}


def report(quick: bool) -> Iterator[str]:
    """Lines of the chapter, as they are found."""
    yield f"jax {jax.__version__}, optax {optax.__version__}. Printed by"
    yield "\n```\n.venv/bin/python benchmarks/sharded_step.py\n```"
    yield f"\n{TEXT}"
    for layers in (2,) if quick else (4, 2):
        tree = jax.eval_shape(lambda n=layers: trees.transformer_tree(n, 256))
        yield f"\n### {layers} layers of width 256, {6 * layers} matrices\n"
        yield from table(tree, LAYOUTS)
    yield "\n### 2 stacks of 16 experts, 256 x 512\n"
    yield from table(expert_shapes(), (EXPERTS,))
    yield from parts()
    yield from balance()


def main() -> None:
    """Prints the chapter and writes it."""
    parser = argparse.ArgumentParser(description="Counts of sharded steps.")
    parser.add_argument("--quick", action="store_true", help="the smaller tree only")
    parser.add_argument("--table", type=pathlib.Path, help="Markdown file to write")
    options = parser.parse_args()
    lines = print_all(report(options.quick))
    if options.table is not None:
        write_chapter(options.table, "Performance", CHAPTER, lines)


if __name__ == "__main__":
    main()
