"""Plain values, as TOML and JSON give them, checked against annotations."""

import dataclasses
import difflib
import types
from collections.abc import Iterable, Mapping
from typing import Any, get_args, get_origin, get_type_hints, Literal, TypeVar

Data = TypeVar("Data")


def typed(name: str, value: Any, hint: Any) -> Any:
    """Checks one value against an annotation.

    Args:
        name: What the value is called in errors.
        value: A value as TOML or JSON gives it.
        hint: A plain type, a dataclass, a `Literal`, `tuple[item, ...]`, or the union
            of one of these with None.

    Returns:
        The value; lists become tuples, tables dataclasses, integers floats where the
        annotation asks for it.

    Raises:
        ValueError: if the value has another type.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is types.UnionType:
        if value is None:
            return None
        hint = next(kind for kind in arguments if kind is not type(None))
        return typed(name, value, hint)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(unknown(f"value of {name}", value, arguments))
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{name} must be a list, got {value!r}.")
        return tuple(typed(name, item, arguments[0]) for item in value)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return make_typed(hint, value, prefix=f"{name}.")
    return _plain(name, value, hint)


def make_typed(kind: type[Data], table: Any, *, prefix: str = "") -> Data:
    """Makes a dataclass of a table that has all of its fields and no others.

    Args:
        kind: The dataclass.
        table: Values by field.
        prefix: Precedes the names of the fields in errors.

    Returns:
        The dataclass.

    Raises:
        ValueError: if a field is missing, unknown, or has another type.
    """
    hints = get_type_hints(kind)
    if not isinstance(table, dict) or table.keys() != hints.keys():
        got = sorted(table) if isinstance(table, dict) else type(table).__name__
        where = prefix.removesuffix(".") or "the value"
        raise ValueError(f"{where} must have the fields {sorted(hints)}, got {got}.")
    return kind(
        **{key: typed(prefix + key, value, hints[key]) for key, value in table.items()}
    )


def replace_typed(base: Data, changes: Mapping[str, Any], *, prefix: str = "") -> Data:
    """Replaces fields of a frozen dataclass, tables recursively.

    Args:
        base: A dataclass; its annotations decide what a field accepts.
        changes: New values by field.
        prefix: Precedes the names of the fields in errors.

    Returns:
        The changed dataclass.

    Raises:
        ValueError: if a field is unknown or a value has another type.
    """
    if not dataclasses.is_dataclass(base) or isinstance(base, type):
        raise TypeError(f"Expected a dataclass instance, got {base!r}.")
    hints = get_type_hints(type(base))
    new: dict[str, Any] = {}
    for key, value in changes.items():
        name = prefix + key
        if key not in hints:
            known = [prefix + hint for hint in hints]
            raise ValueError(unknown("setting", name, known))
        current = getattr(base, key)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, dict):
                raise ValueError(f"{name} must be a table, got {value!r}.")
            new[key] = replace_typed(current, value, prefix=name + ".")
        else:
            new[key] = typed(name, value, hints[key])
    return dataclasses.replace(base, **new)


def unknown(what: str, got: Any, known: Iterable[Any]) -> str:
    """Returns the message about an unknown name, with the closest known one."""
    names = [str(name) for name in known]
    close = difflib.get_close_matches(str(got), names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"Unknown {what}: {got!r}.{hint} Known: {', '.join(names)}."


def _plain(name: str, value: Any, hint: Any) -> Any:
    if hint is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    if type(value) is not hint:
        raise ValueError(
            f"{name} must be a {hint.__name__}, got {value!r} of type "
            f"{type(value).__name__}."
        )
    return value
