"""A step of the modular optimizer against `hybrid` with the same directions.

    .venv/bin/python benchmarks/modular_step.py

prints, for transformer-like trees, CPU times of whole steps (update and apply,
donated), interleaved in one process on one pinned core; the products and instructions
of the compiled programs; and the seconds that they take to compile. The ratio of times
must stay below 1.02.
"""

import argparse
import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

# One core, chosen before JAX starts its threads: times on shared cores are noise.
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import jax
import optax
from stepping import head, interleaved, milliseconds, ratio, row, Step

import manifold_optax as mo
import trees
from manifold_optax.linalg import JORDAN
from manifold_optax.modular._algebra._module import Atom
from manifold_optax.modular._budgets._optimizer import (
    modular_optimizer,
    project_parameters,
)

RATE = 0.02
# (layers, width); six matrices in each layer.
TREES = ((6, 384), (2, 384), (24, 64))
BASELINE = "hybrid"


@dataclasses.dataclass(frozen=True)
class Written:
    """A network written by hand, which costs nothing to read."""

    atoms: tuple[Atom, ...]
    shapes: Mapping[str, tuple[int, ...]]
    numbers: Mapping[str, tuple[float, ...]]

    @property
    def slices(self) -> Mapping[str, int]:
        """No stacks."""
        return dict.fromkeys(self.shapes, 1)

    def sensitivity(self, path: str, kind: Any) -> tuple[float, ...]:
        """One number for each parameter, all different."""
        del kind
        return self.numbers[path]


def written(tree: Any, manifold: mo.Manifold) -> Written:
    """The matrices of a tree on one manifold, each with a share of its own."""
    atoms, shapes = [], {}
    for path, leaf in mo.trees.leaves_by_path(tree).items():
        is_vector = leaf.ndim < 2
        shapes[path] = leaf.shape
        atoms.append(
            Atom(path, "vector", norm=mo.Max())
            if is_vector
            else Atom(path, manifold=manifold, norm=mo.RmsToRms())
        )
    numbers = {atom.path: (1.0 + k,) for k, atom in enumerate(atoms)}
    return Written(tuple(atoms), shapes, numbers)


def plain(direction: Any, manifold: mo.Manifold) -> optax.GradientTransformation:
    """`hybrid` of the same links, without shares."""
    free = manifold == mo.Euclidean()
    links = [mo.momentum(0.95), direction]
    links += [mo.scale_by_shape("spectral")] if free else []
    links += [optax.scale_by_learning_rate(RATE)]
    links += [] if free else [mo.retract(manifold)]
    labels = mo.roles({r"w\w*": "matrix"}, default="other")
    return mo.hybrid(optax.chain(*links), others=optax.adamw(RATE), labels=labels)


def pairs_of(manifold: mo.Manifold, tree: Any) -> dict[str, tuple[Any, Any]]:
    """What is compared: the directions, then ours and the baseline."""
    module = written(tree, manifold)
    own: dict[str, Any] = {"others": optax.adamw(RATE)}
    exact = mo.steepest(manifold, mo.Spectral())
    found: dict[str, tuple[Any, Any]] = {
        "exact": (modular_optimizer(module, RATE, **own), plain(exact, manifold))
    }
    if manifold == mo.Euclidean():
        near = mo.orthogonalize_via_newton_schulz(JORDAN)
        ours = modular_optimizer(module, RATE, schedule=JORDAN, **own)
        found["JORDAN"] = (ours, plain(near, manifold))
    return found


def report(options: argparse.Namespace) -> Iterator[str]:
    """Lines of the tables, as they are found."""
    yield f"jax {jax.__version__}, CPU, one core, {options.pairs} interleaved pairs"
    for layers, width in TREES[1:2] if options.quick else TREES:
        tree = trees.transformer_tree(layers, width)
        yield f"\n{layers} layers of width {width}, {6 * layers} matrices:\n"
        names = ("dots", "instructions", "compile s, ours / hybrid")
        yield from head("manifold, directions", "CPU ms", "ratio to hybrid", *names)
        for manifold in (mo.Euclidean(), mo.Stiefel("rms")):
            params = project_parameters(written(tree, manifold), tree)
            for name, both in pairs_of(manifold, tree).items():
                runs = {
                    "ours": Step(both[0], params, tree),
                    BASELINE: Step(both[1], params, tree),
                }
                times = interleaved(runs, options.pairs)
                own, base = runs["ours"], runs[BASELINE]
                yield row(
                    [
                        f"{manifold}, {name}",
                        milliseconds(times, "ours"),
                        ratio(times, "ours", BASELINE),
                        f"{own.dots} / {base.dots}",
                        f"{own.instructions} / {base.instructions}",
                        f"{own.compile_seconds:.2f} / {base.compile_seconds:.2f}",
                    ]
                )


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description="Cost of the modular optimizer.")
    parser.add_argument("--pairs", type=int, default=20, help="pairs per ratio, ≥ 2")
    parser.add_argument("--quick", action="store_true", help="the small tree only")
    for line in report(parser.parse_args()):
        print(line, flush=True)


if __name__ == "__main__":
    main()
