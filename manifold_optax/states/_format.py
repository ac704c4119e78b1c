"""The names, shapes and dtypes of a state, as data beside a checkpoint."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from manifold_optax._typing import ArrayTree
from manifold_optax.trees import leaf_path

FORMAT_VERSION = 1
"""Version of the states of this library; `docs/state_format.md` lists its changes."""


@dataclasses.dataclass(frozen=True)
class LeafFormat:
    """Shape and dtype of one array of a state."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclasses.dataclass(frozen=True)
class StateFormat:
    """What a checkpoint of a state consists of; see `state_format`."""

    version: int
    """`FORMAT_VERSION` of the library that made the state."""
    leaves: Mapping[str, LeafFormat | None]
    """By path; `None` where the state has a place without an array."""

    def to_json(self) -> str:
        """The format as JSON, one line a leaf, to be written beside the checkpoint."""
        leaves = {
            path: None if leaf is None else {"shape": leaf.shape, "dtype": leaf.dtype}
            for path, leaf in self.leaves.items()
        }
        lines = ",\n".join(
            f"    {json.dumps(path)}: {json.dumps(leaf)}"
            for path, leaf in leaves.items()
        )
        body = f"{{\n{lines}\n  }}" if lines else "{}"
        return f'{{\n  "version": {self.version},\n  "leaves": {body}\n}}\n'

    @classmethod
    def from_json(cls, text: str) -> "StateFormat":
        """Reads what `to_json` wrote; nothing in it is executed.

        Raises:
            ValueError: if `text` is anything else, naming the entry.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"The state format is not JSON: {error}.") from None
        if not isinstance(data, dict) or set(data) != {"version", "leaves"}:
            raise ValueError(
                "A state format must be a JSON object of 'version' and 'leaves', as "
                f"StateFormat.to_json writes it; got {_short(data)}."
            )
        version, leaves = data["version"], data["leaves"]
        if not _is_count(version) or version < 1:
            raise ValueError(
                "The version of a state format must be a whole number from 1; got "
                f"{_short(version)}."
            )
        if not isinstance(leaves, dict):
            raise ValueError(
                "The leaves of a state format must be a JSON object, path → shape and "
                f"dtype; got {_short(leaves)}."
            )
        return cls(version, {path: _leaf(path, leaves[path]) for path in leaves})


def state_format(state: ArrayTree) -> StateFormat:
    """The names, shapes and dtypes of a state.

    Write it beside each checkpoint (`to_json`), and check it before the checkpoint is
    restored (`check_state_format`). Paths are normalised as everywhere in this library:
    `momentum/average/layers/0/kernel`. Places without an array, such as
    `optax.EmptyState()`, belong to the format, because a restore compares them too.

    Args:
        state: state of any Optax transformation, or any other tree of arrays. Shapes
            are enough: `jax.eval_shape(tx.init, params)`.

    Returns:
        The format; it is made of shapes alone, so it costs nothing and needs no device.

    Raises:
        TypeError: for a leaf that is not an array, naming its path.
        ValueError: if two leaves have one path.

    Example:
        >>> tx = mo.muon(0.02, weight_decay=None)
        >>> found = mo.states.state_format(tx.init({"w": jnp.ones((4, 2))}))
        >>> for path, leaf in found.leaves.items():
        ...     print(path, leaf)
        momentum/count int32[]
        momentum/average/w float32[4, 2]
        orthogonalize None
        scale_by_shape None
        scale_by_learning_rate None
        >>> mo.states.StateFormat.from_json(found.to_json()) == found
        True
    """
    return StateFormat(FORMAT_VERSION, dict(_leaves(state)))


def _leaves(state: ArrayTree) -> Iterator[tuple[str, LeafFormat | None]]:
    seen = set()
    for keys, leaf in jax.tree_util.tree_leaves_with_path(state, is_leaf=_is_empty):
        path = leaf_path(keys)
        if path in seen:
            raise ValueError(
                f"Two leaves of the state have one path, {path!r}; rename one of them."
            )
        seen.add(path)
        if _is_empty(leaf):
            yield path, None
            continue
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise TypeError(
                f"The leaf {path!r} of the state is {leaf!r} of type "
                f"{type(leaf).__name__}, not an array; use jnp.asarray(...)."
            )
        yield path, LeafFormat(tuple(map(int, leaf.shape)), str(leaf.dtype))


def _is_empty(node: Any) -> bool:
    """Whether a node has no children, such as `None`, `()` or `optax.EmptyState()`."""
    return node is None or (isinstance(node, tuple | list | dict) and not node)


def _leaf(path: str, entry: Any) -> LeafFormat | None:
    if entry is None:
        return None
    if isinstance(entry, dict) and set(entry) == {"shape", "dtype"}:
        shape, dtype = entry["shape"], entry["dtype"]
        sizes = isinstance(shape, list) and all(map(_is_count, shape))
        if sizes and isinstance(dtype, str):
            return LeafFormat(tuple(shape), dtype)
    raise ValueError(
        f"The leaf {path!r} of a state format must be null or a JSON object of 'shape' "
        f"(whole numbers) and 'dtype' (a string); got {_short(entry)}."
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _short(value: Any) -> str:
    """What was got, short enough for a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
