"""Whether a checkpoint fits an optimizer, and what to do if it does not."""

from collections.abc import Iterable, Mapping

from manifold_optax._checks import require_instance
from manifold_optax._typing import ArrayTree
from manifold_optax.states._format import (
    FORMAT_VERSION,
    LeafFormat,
    state_format,
    StateFormat,
)

_Leaves = Mapping[str, LeafFormat | None]

_LISTED = 20
"""So many leaves of a kind are named; a message with thousands is not read."""

_FIELDS = {"average": True, "codes": True, "correction": False, "scales": False}
"""Fields of the states of `momentum`, and whether they are in the parameter's shape."""


def check_state_format(saved: StateFormat, state: ArrayTree) -> None:
    """Raises unless a state has the format with which a checkpoint was saved.

    Call it before the checkpoint is restored. The error names each leaf that differs,
    recognises the usual causes (a wrapper such as `optax.chain` was added or removed, a
    number became a schedule, the dtype or shape of the parameters changed), and says
    what to do.

    Args:
        saved: the format that was written beside the checkpoint.
        state: the state to restore into, or its shapes:
            `jax.eval_shape(tx.init, params)`.

    Raises:
        ValueError: if the formats differ.
        TypeError: if `saved` is not a `StateFormat`, or a leaf of `state` is not an
            array.

    Example:
        >>> params = {"w": jnp.ones((4, 2))}
        >>> saved = mo.states.state_format(mo.muon(0.02).init(params))
        >>> clipped = optax.chain(optax.clip_by_global_norm(1.0), mo.muon(0.02))
        >>> mo.states.check_state_format(saved, mo.muon(0.1).init(params))
        >>> try:
        ...     mo.states.check_state_format(saved, clipped.init(params))
        ... except ValueError as error:
        ...     print(str(error).splitlines()[-1])
        What to do: the optimizer was wrapped. Restore the checkpoint with the optimizer
        that wrote it, then put that state at '1' of the new state.
    """
    require_instance("saved", saved, StateFormat)
    if saved.version != FORMAT_VERSION:
        newer = saved.version > FORMAT_VERSION
        advice = (
            "Install the version of manifold_optax that wrote it, or a newer one."
            if newer
            else "docs/state_format.md says how to convert it."
        )
        raise ValueError(
            f"The checkpoint has state format {saved.version}, and this version of "
            f"manifold_optax has {FORMAT_VERSION}. {advice}"
        )
    wanted = state_format(state).leaves
    differences = list(_differences(saved.leaves, wanted))
    if differences:
        raise ValueError(
            "\n".join(
                (
                    "The checkpoint does not fit this optimizer and these parameters.",
                    *differences,
                    f"What to do: {_advice(saved.leaves, wanted)}",
                )
            )
        )


def _differences(saved: _Leaves, wanted: _Leaves) -> Iterable[str]:
    """One line for each leaf that differs."""
    kinds = {
        "not in the checkpoint": [
            f"{path!r} {_shown(leaf)}"
            for path, leaf in wanted.items()
            if path not in saved
        ],
        "only in the checkpoint": [
            f"{path!r} {_shown(leaf)}"
            for path, leaf in saved.items()
            if path not in wanted
        ],
        "different": [
            f"{path!r}: saved {_shown(saved[path])}, wanted {_shown(leaf)}"
            for path, leaf in wanted.items()
            if path in saved and saved[path] != leaf
        ],
    }
    for kind, lines in kinds.items():
        yield from (f"  {kind}: {line}" for line in lines[:_LISTED])
        if len(lines) > _LISTED:
            yield f"  {kind}: and {len(lines) - _LISTED} more"


def _shown(leaf: LeafFormat | None) -> str:
    return "(no array)" if leaf is None else str(leaf)


def _advice(saved: _Leaves, wanted: _Leaves) -> str:
    if _kept_otherwise(saved, wanted):
        return (
            "the momentum is kept in another dtype. Restore the checkpoint with the "
            "optimizer that wrote it, then call mo.states.momentum_to(old_state, "
            "dtype)."
        )
    if (prefix := _prefix(saved, wanted)) is not None:
        return (
            "the optimizer was wrapped. Restore the checkpoint with the optimizer that "
            f"wrote it, then put that state at {prefix!r} of the new state."
        )
    if (prefix := _prefix(wanted, saved)) is not None:
        return (
            "a wrapper was removed. Restore the checkpoint with the optimizer that "
            f"wrote it, and take what is at {prefix!r} of its state."
        )
    if (place := _inserted(saved, wanted)) is not None:
        return (
            f"the chain has a new link at {place}. Restore the checkpoint with the "
            f"optimizer that wrote it; the state is then (*old[:{place}], "
            f"new[{place}], *old[{place}:])."
        )
    if (place := _inserted(wanted, saved)) is not None:
        return (
            f"the chain has lost its link at {place}. Restore the checkpoint with the "
            f"optimizer that wrote it; the state is then (*old[:{place}], "
            f"*old[{place + 1}:])."
        )
    if _arrays(saved).keys() == _arrays(wanted).keys():
        if all(wanted[path] == leaf for path, leaf in _arrays(saved).items()):
            return (
                "a link without an array was added or removed. Restore the checkpoint "
                "with the optimizer that wrote it, and put the parts of its state into "
                "the new state. A weight decay of 0.0 in the place of None keeps the "
                "link."
            )
        return (
            "the parameters have other shapes or dtypes. Restore the checkpoint with "
            "parameters like those that it was written with, then cast or reshape."
        )
    if _counts_only(saved, wanted):
        return (
            "a number was replaced by a schedule, or a schedule by a number. Write the "
            "number as optax.constant_schedule(number), or restore the checkpoint with "
            "the optimizer that wrote it and call mo.states.momentum_from(old_state, "
            "new_state)."
        )
    return (
        "this is another optimizer, one with other options, or another model. Restore "
        "the checkpoint with the optimizer that wrote it; if the model is the same, "
        "mo.states.momentum_from(old_state, new_state) carries its momentum over."
    )


def _kept_otherwise(saved: _Leaves, wanted: _Leaves) -> bool:
    """Whether only the dtype of the momentum differs, one of the two being narrow."""
    kinds = [
        {(field, leaf.dtype) for field, leaf in _momenta(leaves)}
        for leaves in (saved, wanted)
    ]
    wide = {("average", "float32"), ("average", "float64")}
    return (
        kinds[0] != kinds[1]
        and not kinds[0] | kinds[1] <= wide
        and _without_dtype(saved) == _without_dtype(wanted)
    )


def _momenta(leaves: _Leaves) -> Iterable[tuple[str, LeafFormat]]:
    """Field and format of each array that `momentum` keeps."""
    for path, leaf in leaves.items():
        field = _field(path)
        if field is not None and leaf is not None:
            yield field, leaf


def _without_dtype(leaves: _Leaves) -> _Leaves:
    """The format as if every average were an array of one dtype."""
    found: dict[str, LeafFormat | None] = {}
    for path, leaf in leaves.items():
        field = _field(path)
        if field is None or leaf is None:
            found[path] = leaf
        elif _FIELDS[field]:
            found[path.replace(field, "average", 1)] = LeafFormat(leaf.shape, "")
    return found


def _field(path: str) -> str | None:
    return next((part for part in path.split("/") if part in _FIELDS), None)


def _arrays(leaves: _Leaves) -> dict[str, LeafFormat]:
    return {path: leaf for path, leaf in leaves.items() if leaf is not None}


def _prefix(inner: _Leaves, outer: _Leaves) -> str | None:
    """Where all arrays of `inner` stand inside `outer`; `None` if they do not."""
    arrays = _arrays(inner)
    if not arrays:
        return None
    first = next(iter(arrays))
    for path in outer:
        prefix = path.removesuffix(f"/{first}")
        if prefix != path and all(
            outer.get(f"{prefix}/{below}") == leaf for below, leaf in arrays.items()
        ):
            return prefix
    return None


def _inserted(short: _Leaves, long: _Leaves) -> int | None:
    """Where a chain of Optax has one link more, if all others are as they were."""
    heads = [path.partition("/")[0] for path in short]
    if not all(head.isdigit() for head in heads):
        return None
    for place in range(len(set(heads)) + 1):
        moved = {_moved(path, place): leaf for path, leaf in short.items()}
        others = {p: leaf for p, leaf in long.items() if p.split("/")[0] != f"{place}"}
        if moved == others:
            return place
    return None


def _moved(path: str, place: int) -> str:
    """The path of a leaf of a chain after a link was put in at `place`."""
    head, slash, below = path.partition("/")
    number = int(head)
    return f"{number + (number >= place)}{slash}{below}"


def _counts_only(saved: _Leaves, wanted: _Leaves) -> bool:
    """Whether the arrays differ by counts of steps alone, which schedules have."""
    old, new = _arrays(saved), _arrays(wanted)
    differing = {
        path for path in old.keys() | new.keys() if old.get(path) != new.get(path)
    }
    count = LeafFormat((), "int32")
    return all(
        path.rpartition("/")[2] == "count"
        and {old.get(path), new.get(path)} == {count, None}
        for path in differing
    )
