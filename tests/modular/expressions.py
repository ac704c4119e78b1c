"""Networks as expressions, and their constants found by applying them to numbers."""

import numpy as np

from manifold_optax import modular
from manifold_optax.modular import (
    Atom,
    Bond,
    compose,
    Composition,
    Concat,
    Identity,
    Module,
    Repeat,
    residual,
    Sum,
    tare,
)


def mlp(depth: int) -> Module:
    """Linear maps with a nonlinearity of slope 1 between them."""
    layers = [Atom(f"layers/{index}/kernel") for index in range(depth)]
    between = [(layer, Bond("relu")) for layer in layers[:-1]]
    return compose(*(part for pair in between for part in pair), layers[-1])


def attention(path: str) -> Module:
    """Attention of sensitivity 1 at weights of norm 1."""
    query, key, value, out = (
        Atom(f"{path}/{name}/kernel") for name in ("query", "key", "value", "out")
    )
    scores = compose((query, key), Bond("query · key", (1.0, 1.0)), Bond("softmax"))
    return out @ (1 / 3 * Bond("apply", (1.0, 1.0))) @ (value, scores)


def gpt(layers: int, *, scanned: bool) -> Module:
    """The network of the modular norm's authors: blocks of mass 5 in all."""
    weight = 1 / (2 * layers)

    def layer(path: str) -> Module:
        up, down = Atom(f"{path}/mlp/up/kernel"), Atom(f"{path}/mlp/down/kernel")
        mixed = residual(attention(f"{path}/attention"), 1 - weight, weight)
        feed_forward = compose(up, Bond("gelu / 1.1289"), down)
        return compose(mixed, residual(feed_forward, 1 - weight, weight))

    if scanned:
        blocks: Module = Repeat(layer("blocks"), layers)
    else:
        blocks = compose(*(layer(f"blocks/{index}") for index in range(layers)))
    embedding = Atom("embed/embedding", "embedding")
    return compose(embedding, tare(blocks, 5.0), Atom("head/kernel", "readout"))


def random_module(rng: np.random.Generator, depth: int, prefix: str = "w") -> Module:
    """An expression of all kinds of modules, each atom with a path of its own."""

    def inner(name: str) -> Module:
        return random_module(rng, depth - 1, f"{prefix}/{name}")

    def number() -> float:
        return float(rng.uniform(0.3, 2.0))

    kind = rng.integers(6) if depth else 0
    if kind == 0:
        return Atom(prefix, mass=number(), sensitivity=number())
    if kind == 1:
        return compose(inner("a"), Bond("slope", (number(),)), inner("b"), inner("c"))
    if kind == 2:
        return residual(inner("block"), number(), -number())
    if kind == 3:
        pair = Bond("pair", (number(), number()))
        return pair @ Bond("each", (number(),)) @ (inner("a"), inner("b"))
    if kind == 4:
        return Repeat(inner("layer"), int(rng.integers(1, 4)))
    return tare(Concat((inner("a"), number() * Identity(), inner("b"))), number())


def applied(module: Module, x: float, bump: dict[str, list[float]]) -> float:
    """Output for input `x` where every map is the linear one that has its constants.

    `bump[path]` is added to the outputs of the atom there, one number per use.
    """
    left = {path: list(values) for path, values in bump.items()}
    return float(np.sum(_forward(module, np.asarray(x), left)))


def _forward(module: Module, x: np.ndarray, bump: dict[str, list[float]]) -> np.ndarray:
    if isinstance(module, Atom):
        change = bump[module.path].pop(0) if module.path in bump else 0.0
        return module.sensitivity * np.sum(x) + change
    if isinstance(module, Bond):
        constants = np.asarray(module.sensitivities)
        return constants * x if constants.size == 1 else np.asarray(constants @ x)
    if isinstance(module, Composition):
        for member in module.members:
            x = _forward(member, x, bump)
        return np.asarray(x).squeeze()
    if isinstance(module, Repeat):
        for _ in range(module.count):
            x = _forward(module.module, x, bump)
        return x
    assert isinstance(module, Sum | Concat)
    outputs = [_forward(member, x, bump) for member in module.members]
    if isinstance(module, Sum):
        return np.asarray(sum(np.sum(output) for output in outputs))
    return np.asarray([np.sum(output) for output in outputs])


def pieces(module: Module) -> list[tuple[str, int]]:
    """Path and index of every slice of every atom."""
    after = modular.sensitivities(module)
    return [(path, index) for path, each in after.items() for index in range(len(each))]
