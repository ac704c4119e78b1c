"""Biases beside the leaves that a spec names, which belong to the same logits."""

import re
from collections.abc import Mapping
from typing import Any

from manifold_optax.attention._spec import Attention, SIDES
from manifold_optax.trees import join_paths

_VECTOR = re.compile(r"(\w*_)?(bias|scale|gain|gamma|beta|offset)|b\d*|b[qkv]|b_\w+")
"""Names of biases and gains, which have no axis of inputs."""

_BIASES = ("bias", "b")
"""Names of the bias beside a kernel, weight or gain: Flax and PyTorch, Haiku."""


def is_vector(path: str) -> bool:
    """Whether a leaf is named like a bias or a gain."""
    return _VECTOR.fullmatch(path.rsplit("/", 1)[-1]) is not None


def require_biases(module: str, spec: Attention, leaves: Mapping[str, Any]) -> None:
    """Raises ValueError if a spec names a leaf, but not the bias that is added to it.

    The logits are linear in the sum of the two: rescaled without its bias, a head does
    not land on the threshold.

    Args:
        module: path of the attention layer.
        spec: of that layer.
        leaves: the leaves of the model, by path.
    """
    named = {part.path for side in SIDES for part in spec.parts(side)}
    for side in SIDES:
        for part in spec.parts(side):
            for beside in _biases_of(part.path):
                leaf = leaves.get(join_paths(module, beside))
                if leaf is None or not hasattr(leaf, "shape") or beside in named:
                    continue
                raise ValueError(
                    f"The attention {module!r} names {part.path!r} as {side}, but not "
                    f"the bias {beside!r} of shape {tuple(leaf.shape)} beside it. Both "
                    "add to the same logits, which would stay above the threshold. "
                    f"Write {side}=({part.path!r}, mo.HeadPart({beside!r}, axis=…)), "
                    "where axis is that of the heads (-2 of [heads, head_dim], -1 of "
                    "[heads · head_dim], None if all heads share it)."
                )


def _biases_of(path: str) -> list[str]:
    """Paths that the bias of the leaf at `path` may have."""
    parent, _, name = path.rpartition("/")
    if is_vector(name) and name.rsplit("_", 1)[-1] in ("bias", "beta", "b"):
        return []
    own = [f"{name}_bias"]
    if name.endswith(".weight"):
        own.append(f"{name.removesuffix('weight')}bias")
    if name.startswith("w"):
        own.append(f"b{name[1:]}")
    beside = [*_BIASES, *own] if parent else own
    return [join_paths(parent, other) for other in dict.fromkeys(beside)]
