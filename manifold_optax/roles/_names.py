"""The strict reading of names: what a parameter is by its path and shape alone.

It knows the names of Flax, Haiku, Equinox and PyTorch and of plain dictionaries. What
it does not know for certain it leaves to the user.
"""

import re

from manifold_optax.matrices import OUT_IN, STACKED
from manifold_optax.roles._role import EMBEDDING, MATRIX, READOUT, Role, VECTOR


def _component(*names: str) -> re.Pattern[str]:
    """A path that has a component of one of these names, in any case."""
    return re.compile(rf"(^|/)({'|'.join(names)})(/|$)", re.IGNORECASE)


_VECTOR = re.compile(
    r"(^|/)((\w*_)?(bias|scale|offset|gain|gamma|beta|mean|var)|b\d*|b_\w+)$",
    re.IGNORECASE,
)
"""Names of vectors; stacked layers make them `[layers, size]`."""

_NORM = _component(
    r"\w*norm\w*", r"ln(_?\w+)?", r"\w+_ln\d*", r"bn\d*", r"rms\w*", r"ls\d*"
)
"""Norm layers and layer scales, whose vectors may be called `weight`, `kernel`, `w`."""

_READOUT = _component(
    r"(?!(per|multi|each|attn|attention)_?head)\w*head",
    r"\w*logits\w*",
    r"readout",
    r"classifier",
    r"score",
    r"unembed\w*",
    r"\w*vocab\w*",
    r"output_(proj\w*|layer)",
)
"""Readouts: their outputs are tokens or classes, and Muon's authors leave them to AdamW
(K. Jordan et al., 2024)."""

_EMBEDDING = _component(
    r"\w*embed\w*", r"(\w+_)?emb", r"wte|wpe", r"shared", r"\w*codebook\w*",
    r"position_bias|relative_attention_bias",
)  # fmt: skip
"""Tables that are looked up by tokens, positions or codes, likewise left to AdamW."""

_LINEAR = re.compile(
    r"(\w+_)?(linear|dense|fc|proj|projection|query|key|value|q|k|v|o|qkv|kv|attn"
    r"|up|down|gate)(_?\d+)?",
    re.IGNORECASE,
)
"""Names of linear layers; what is called `weight` or `w` elsewhere may be anything."""

_FLAX = "kernel"
"""Flax calls nothing else so; `[fan_in, fan_out]`."""

_OWN_NAME = re.compile(r"w[\dqkvo]\w*|w_\w+")
"""Names of plain dictionaries: `w1`, `wq`, `w_up`; `[fan_in, fan_out]`."""


def role_by_name(path: str, shape: tuple[int, ...]) -> Role | None:
    """What the parameter at `path` is; `None` if its name and rank do not say.

    In this order: fewer than two axes, a name of vectors or a norm layer: `"vector"`;
    a readout or an embedding by a component of the path; a linear map with two axes:
    `"matrix"`, or `"other"` where one of the two has size 1. `weight` is `[out, in]`,
    as in Equinox and PyTorch; `kernel` and `w` are `[in, out]`.

    Example:
        >>> role_by_name("decoder/mlp/kernel", (4, 8)).label
        'matrix'
        >>> role_by_name("decoder/conv/kernel", (3, 3, 4, 8)) is None
        True
    """
    if len(shape) < 2 or _VECTOR.search(path) or _NORM.search(path):
        return Role(VECTOR)
    if _READOUT.search(path):
        return Role(READOUT)
    if _EMBEDDING.search(path):
        return Role(EMBEDDING)
    if len(shape) > 2 or not _is_linear(path):
        return None
    if min(shape) == 1:
        return Role("other")
    return Role(MATRIX, OUT_IN if path.endswith("weight") else STACKED)


def _is_linear(path: str) -> bool:
    """Whether a leaf with two axes is for certain the weight of a linear map."""
    *parents, name = path.split("/")
    if name == _FLAX or _OWN_NAME.fullmatch(name):
        return True
    if name not in ("w", "weight", "weights"):
        return False
    layers = [parent for parent in parents if not parent.isdigit() and parent != "~"]
    return not parents or bool(layers and _LINEAR.fullmatch(layers[-1]))
