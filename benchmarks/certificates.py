"""How tight certificates are, and what they cost.

    .venv/bin/python benchmarks/certificates.py            # both tables
    .venv/bin/python benchmarks/certificates.py --tightness
    .venv/bin/python benchmarks/certificates.py --tightness --only "4 heads"
    .venv/bin/python benchmarks/certificates.py --cost

The first table compares the certified Lipschitz constant with the largest ratio that an
attack finds (float64, restarts): a factor of 1 is exact, and one below 1 would refute
the certificate. The second has the seconds that it takes to read a model and to
evaluate its bounds, and the time of one compiled evaluation over that of a training
step (loss, gradient, Muon), interleaved in one process.
"""

import argparse
import dataclasses
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

# The networks and the attack of the tests.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests"))

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from stepping import head, interleaved, milliseconds, ratio, row

import manifold_optax as mo
from manifold_optax import modular
from modular.certificates.tightness import bound_and_attacked, CASES
from modular.models import drawn, gpt2

FLOOR = 0.5
"""The least RMS of what enters a norm layer of the transformer, as declared."""

# Batches of the training steps: (sequences, tokens of each), and examples.
TOKENS = (2, 256)
EXAMPLES = 1024

WIDTHS = (3072, 128, 64, 10)
"""The published MLP: Thinking Machines, "Modular manifolds" (2025)."""


def tightness(figure: pathlib.Path | None, only: str) -> Iterator[str]:
    """Lines of the first table with `only` in their names, and then its figure."""
    found: dict[str, list[float]] = {}
    yield from head(
        *("networks", "number", "bound / attacked: least", "median", "largest"),
        *("bound, median", "attacked, median"),
    )
    for name, cases in CASES.items():
        if only not in name:
            continue
        pairs = [bound_and_attacked(case) for case in cases]
        factors = sorted(bound / found for bound, found in pairs)
        middle = [statistics.median(numbers) for numbers in zip(*pairs, strict=True)]
        numbers = (factors[0], statistics.median(factors), factors[-1], *middle)
        found[name] = factors
        yield row([name, len(cases), *(f"{number:.3g}" for number in numbers)])
    if figure is not None:
        write_figure(figure, found)


def write_figure(path: pathlib.Path, factors: Mapping[str, Sequence[float]]) -> None:
    """Writes the PNG: every network as a point, by its bound over the attack."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for place, (name, values) in enumerate(factors.items()):
        axes.plot(values, [place] * len(values), "o", alpha=0.6, label=name)
    axes.set_yticks(range(len(factors)), labels=list(factors))
    axes.invert_yaxis()
    axes.axvline(1.0, color="0.3")
    axes.set(xscale="log", xlabel="certified / found by the attack")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model, its certificate's inputs, and a batch to train on.

    Attributes:
        name: of the row.
        forward: `forward(params, x)`.
        params: arrays.
        domain: the declared inputs.
        batch: the inputs of a training step.
        optimizer: of the training step.
    """

    name: str
    forward: Callable[[Any, Any], jax.Array]
    params: Any
    domain: Any
    batch: Any
    optimizer: optax.GradientTransformation


def published_mlp() -> Trained:
    """The MLP of the published experiment, on pixels in [0, 1]."""
    rng = np.random.default_rng(0)
    params = {
        f"w{i}": jnp.float32(rng.normal(size=WIDTHS[i : i + 2]) / np.sqrt(WIDTHS[i]))
        for i in range(len(WIDTHS) - 1)
    }

    def forward(params: Any, x: Any) -> jax.Array:
        x = jax.nn.relu(x @ params["w0"])
        return jax.nn.relu(x @ params["w1"]) @ params["w2"]

    like = jax.ShapeDtypeStruct((1, WIDTHS[0]), np.float32)
    batch = jnp.float32(rng.uniform(size=(EXAMPLES, WIDTHS[0])))
    domain = modular.Box(like, 0.0, 1.0)
    name = f"MLP {'-'.join(map(str, WIDTHS))}, batch {EXAMPLES}"
    return Trained(name, forward, params, domain, batch, mo.muon(0.02))


def gpt2_small(layers: int) -> Trained:
    """GPT-2 small on all tokens; what enters a norm layer has an RMS of `FLOOR`."""
    model = gpt2(layers, length=TOKENS[1])
    params = jax.tree.map(jnp.asarray, drawn(model))
    vocabulary, width = params["wte"].shape
    batch = np.random.default_rng(0).integers(0, vocabulary, TOKENS, dtype=np.int32)
    roles = mo.roles({"w": "matrix", "wte": "embedding"}, default="other")
    return Trained(
        name=f"GPT-2, {layers} layers of {width}, {TOKENS[0]} × {TOKENS[1]} tokens",
        forward=model.forward,
        params=params,
        domain=jax.ShapeDtypeStruct((1, TOKENS[1]), np.int32),
        batch=jnp.asarray(batch),
        optimizer=mo.hybrid(mo.muon(0.02), labels=roles),
    )


class TrainingStep:
    """A compiled step of training: loss, gradient, update; parameters are donated."""

    def __init__(self, model: Trained):
        outputs = jax.eval_shape(model.forward, model.params, model.batch)
        targets = jnp.zeros(outputs.shape[:-1], jnp.int32)

        def loss(params: Any) -> jax.Array:
            logits = model.forward(params, model.batch)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
            return jnp.mean(losses)

        def step(params: Any, state: Any) -> Any:
            updates, state = model.optimizer.update(
                jax.grad(loss)(params), state, params
            )
            return optax.apply_updates(params, updates), state

        self.params = jax.tree.map(jnp.array, model.params)
        self.state = jax.jit(model.optimizer.init)(self.params)
        self.compiled = jax.jit(step, donate_argnums=(0, 1))

    def __call__(self) -> Any:
        """One step; the new parameters."""
        self.params, self.state = self.compiled(self.params, self.state)
        return self.params


def wall_seconds(run: Callable[[], Any]) -> float:
    """Seconds of one call, on all cores."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def cost(model: Trained, pairs: int) -> str:
    """A row of the second table."""
    floor = FLOOR if "GPT" in model.name else 0.0
    start = time.perf_counter()
    certificate = modular.certificate(
        model.forward, model.params, model.domain, floor=floor
    )
    read = time.perf_counter() - start
    bound = float(certificate.lipschitz(model.params))
    whole = time.perf_counter() - start
    start = time.perf_counter()
    product = lambda params: certificate.lipschitz(params, together=False)
    compiled = jax.jit(product).lower(model.params).compile()
    compiling = time.perf_counter() - start
    together = jax.jit(certificate.lipschitz).lower(model.params).compile()
    updates = jax.tree.map(lambda x: 1e-3 * x, model.params)
    change = jax.jit(certificate.change).lower(model.params, updates).compile()
    runs = {
        "bound": lambda: compiled(model.params),
        "together": lambda: together(model.params),
        "change": lambda: change(model.params, updates),
        "step": TrainingStep(model),
    }
    times = interleaved(runs, pairs, clock=wall_seconds)
    seconds = (f"{number:.2f}" for number in (read, whole, compiling))
    ratios = (ratio(times, name, "step") for name in ("bound", "together", "change"))
    steps = (milliseconds(times, name) for name in runs)
    return row([model.name, f"{bound:.3g}", *seconds, *steps, *ratios])


def costs(options: argparse.Namespace) -> Iterator[str]:
    """Lines of the second table."""
    yield from head(
        *("model, batch", "bound", "read s", "read and evaluated s", "compile s"),
        *("bound ms", "with layers together ms", "change ms", "step ms"),
        *("bound / step", "with layers together / step", "change / step"),
    )
    yield cost(published_mlp(), options.pairs)
    yield cost(gpt2_small(options.layers), max(2, options.pairs // 10))


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description="Tightness and cost of certificates.")
    parser.add_argument("--tightness", action="store_true", help="the first table only")
    parser.add_argument("--cost", action="store_true", help="the second table only")
    parser.add_argument("--only", default="", help="rows of the first table: a part")
    parser.add_argument("--pairs", type=int, default=20, help="pairs per ratio, ≥ 2")
    parser.add_argument("--figure", type=pathlib.Path, help="PNG of the first table")
    parser.add_argument("--layers", type=int, default=12, help="of GPT-2")
    options = parser.parse_args()
    print(f"jax {jax.__version__}, CPU, {os.cpu_count()} cores\n", flush=True)
    if not options.cost:
        for line in tightness(options.figure, options.only):
            print(line, flush=True)
        print()
    if not options.tightness:
        for line in costs(options):
            print(line, flush=True)


if __name__ == "__main__":
    main()
