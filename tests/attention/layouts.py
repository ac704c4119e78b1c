"""Attention layers in every layout that users have, and their logits by NumPy.

A layout draws parameters and computes the logits of its heads from them in float64,
without a line of the library. Its spec stands in `docs/muon_clip.md` under its name.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

Params = dict[str, np.ndarray]

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "muon_clip.md"

TOKENS, EMBED, HEAD, VALUE, ROPE, LATENT = 7, 12, 6, 5, 4, 9


def specs() -> dict[str, Any]:
    """The specs of the page, by layout."""
    page = PAGE.read_text("utf-8")
    section = page[page.index("## A spec for each layout") :]
    namespace: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
        if "specs" in block:
            exec(block, namespace)
    return namespace["specs"]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Shapes of the parameters, and `(params, x) -> logits [heads, tokens, tokens]`."""

    name: str
    shapes: dict[str, tuple[int, ...]]
    logits: Callable[[Params, np.ndarray], np.ndarray]
    heads: int = 8
    key_heads: int = 8
    shared: bool = False
    """All heads share a gain, so that the worst of them decides."""

    def draw(self, rng: np.random.Generator, *layers: int) -> Params:
        return {
            name: rng.standard_normal((*layers, *shape))
            for name, shape in self.shapes.items()
        }

    def largest(self, params: Params, x: np.ndarray) -> np.ndarray:
        """Largest logit of each head."""
        return self.logits(params, x).max((1, 2))


def dot(query: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Logits of queries `[tokens, heads, d]` with keys `[tokens, key_heads, d]`."""
    key = np.repeat(key, query.shape[1] // key.shape[1], axis=1)
    return np.einsum("qhd,khd->hqk", query, key) / np.sqrt(query.shape[-1])


def rotated(x: np.ndarray) -> np.ndarray:
    """Rotary embedding `[tokens, heads, even]`: pairs turned by position."""
    angle = np.arange(len(x))[:, None, None] / 10 ** np.arange(x.shape[-1] // 2)
    even, odd = x[..., ::2], x[..., 1::2]
    turned = [even * np.cos(angle) - odd * np.sin(angle)]
    return np.concatenate([*turned, even * np.sin(angle) + odd * np.cos(angle)], -1)


def project(p: Params, x: np.ndarray, name: str) -> np.ndarray:
    """`x W + b`, with heads and head size as the last axes."""
    out = np.einsum("te,ehd->thd", x, p[f"{name}/kernel"])
    return out + p.get(f"{name}/bias", 0.0)


def separate(p: Params, x: np.ndarray) -> np.ndarray:
    return dot(rotated(project(p, x, "query")), rotated(project(p, x, "key")))


def flat(p: Params, x: np.ndarray) -> np.ndarray:
    parts = [x @ p[f"{n}/kernel"] + p[f"{n}/bias"] for n in ("query", "key")]
    return dot(*(part.reshape(TOKENS, -1, HEAD) for part in parts))


def torch(p: Params, x: np.ndarray) -> np.ndarray:
    parts = [x @ p[f"{n}.weight"].T + p[f"{n}.bias"] for n in ("q_proj", "k_proj")]
    return dot(*(part.reshape(TOKENS, -1, HEAD) for part in parts))


def heads_first(p: Params, x: np.ndarray) -> np.ndarray:
    return dot(*(np.einsum("te,hed->thd", x, p[n]) for n in ("w_q", "w_k")))


def two_axes(p: Params, x: np.ndarray) -> np.ndarray:
    query = np.einsum("te,ekgd->tkgd", x, p["query"])
    return dot(query.reshape(TOKENS, 8, HEAD), np.einsum("te,ekd->tkd", x, p["key"]))


def fused(p: Params, x: np.ndarray) -> np.ndarray:
    out = x @ p["qkv/kernel"] + p["qkv/bias"]
    query, key, _ = np.split(out, [8 * HEAD, 10 * HEAD], axis=-1)
    return dot(query.reshape(TOKENS, 8, HEAD), key.reshape(TOKENS, 2, HEAD))


def interleaved(p: Params, x: np.ndarray) -> np.ndarray:
    out = (x @ p["qkv/kernel"]).reshape(TOKENS, 2, 6, HEAD)
    return dot(out[:, :, :4].reshape(TOKENS, 8, HEAD), out[:, :, 4])


def latent(p: Params, x: np.ndarray) -> np.ndarray:
    """Multi-head latent attention with decoupled RoPE (DeepSeek-V2)."""
    down = x @ p["key_value_down/kernel"]
    query = np.einsum("te,ehd->thd", x, p["query/kernel"])
    up = np.einsum("tl,lhd->thd", down[:, :LATENT], p["key_value_up/kernel"])
    return latent_logits(query, up, down[:, LATENT:])


def latent_flat(p: Params, x: np.ndarray) -> np.ndarray:
    """The same with heads and their parts in one axis, and queries from a latent."""
    down = x @ p["wkv_a"]
    query = (x @ p["wq_a"] @ p["wq_b"]).reshape(TOKENS, 8, HEAD + ROPE)
    up = (down[:, :LATENT] @ p["wkv_b"]).reshape(TOKENS, 8, HEAD + VALUE)
    return latent_logits(query, up, down[:, LATENT:])


def latent_logits(query: np.ndarray, up: np.ndarray, rope: np.ndarray) -> np.ndarray:
    turned = np.repeat(rotated(rope[:, None]), 8, axis=1)
    key = np.concatenate([up[..., :HEAD], turned], -1)
    query = np.concatenate([query[..., :HEAD], rotated(query[..., HEAD:])], -1)
    return dot(query, key)


def normed(p: Params, x: np.ndarray) -> np.ndarray:
    """A norm with gain and bias on queries and keys, per head or shared."""
    parts = []
    for name in ("query", "key"):
        part = project(p, x, name)
        part = (part - part.mean(-1, keepdims=True)) / part.std(-1, keepdims=True)
        part = part * p[f"{name}_ln/scale"] + p.get(f"{name}_ln/bias", 0.0)
        parts.append(rotated(part))
    return dot(*parts)


def normed_from_one(p: Params, x: np.ndarray) -> np.ndarray:
    """Gains stored as their difference from 1 (Gemma)."""
    gains = {f"{n}_ln/scale": 1 + p[f"{n}_norm/scale"] for n in ("query", "key")}
    return normed({**p, **gains}, x)


def query_normed(p: Params, x: np.ndarray) -> np.ndarray:
    query = project(p, x, "query")
    query = query / np.sqrt((query**2).mean(-1, keepdims=True)) * p["query_ln/scale"]
    return dot(query, project(p, x, "key"))


def kernels(key_heads: int, bias: bool = False) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, heads in (("query", 8), ("key", key_heads), ("value", key_heads)):
        shapes[f"{name}/kernel"] = (EMBED, heads, HEAD)
        if bias:
            shapes[f"{name}/bias"] = (heads, HEAD)
    return shapes


def gains(*shape: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    kinds = ("scale", "bias") if bias else ("scale",)
    return {f"{n}_ln/{k}": (*shape, HEAD) for n in ("query", "key") for k in kinds}


FLAT = {
    f"{name}/{kind}": (*lead, 8 * HEAD)
    for name in ("query", "key")
    for kind, lead in (("kernel", (EMBED,)), ("bias", ()))
}
TORCH = {
    "q_proj.weight": (8 * HEAD, EMBED),
    "q_proj.bias": (8 * HEAD,),
    "k_proj.weight": (2 * HEAD, EMBED),
    "k_proj.bias": (2 * HEAD,),
}
LATENT_SHAPES = {
    "query/kernel": (EMBED, 8, HEAD + ROPE),
    "key_value_down/kernel": (EMBED, LATENT + ROPE),
    "key_value_up/kernel": (LATENT, 8, HEAD + VALUE),
}
LATENT_FLAT = {
    "wq_a": (EMBED, LATENT),
    "wq_b": (LATENT, 8 * (HEAD + ROPE)),
    "wkv_a": (EMBED, LATENT + ROPE),
    "wkv_b": (LATENT, 8 * (HEAD + VALUE)),
}
FROM_ONE = {f"{n}_norm/scale": (HEAD,) for n in ("query", "key")}

LAYOUTS = [
    Layout("multi-head", kernels(8), separate),
    Layout("multi-head with biases", kernels(8, bias=True), separate),
    Layout("multi-head in one axis", FLAT, flat),
    Layout("grouped-query", kernels(2, bias=True), separate, key_heads=2),
    Layout("multi-query", kernels(1, bias=True), separate, key_heads=1),
    Layout("PyTorch", TORCH, torch, key_heads=2),
    Layout("heads first", dict.fromkeys(("w_q", "w_k"), (8, EMBED, HEAD)), heads_first),
    Layout(
        "queries in two axes",
        {"query": (EMBED, 2, 4, HEAD), "key": (EMBED, 2, HEAD)},
        two_axes,
        key_heads=2,
    ),
    Layout(
        "fused",
        {"qkv/kernel": (EMBED, 12 * HEAD), "qkv/bias": (12 * HEAD,)},
        fused,
        key_heads=2,
    ),
    Layout("interleaved", {"qkv/kernel": (EMBED, 12 * HEAD)}, interleaved, key_heads=2),
    Layout("latent", LATENT_SHAPES, latent),
    Layout("latent in one axis", LATENT_FLAT, latent_flat),
    Layout("norm with gains per head", kernels(8) | gains(8), normed),
    Layout(
        "norm with shared gains", kernels(8) | gains(bias=False), normed, shared=True
    ),
    Layout(
        "norm with shared gains and biases", kernels(8) | gains(), normed, shared=True
    ),
    Layout(
        "norm with gains from 1", kernels(8) | FROM_ONE, normed_from_one, shared=True
    ),
    Layout(
        "norm of the queries alone",
        kernels(8) | {"query_ln/scale": (HEAD,)},
        query_normed,
    ),
]
BY_NAME = {layout.name: layout for layout in LAYOUTS}
