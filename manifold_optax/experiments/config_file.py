"""TOML files of overrides, checked against the configuration they override."""

import dataclasses
import difflib
import os
import pathlib
import tomllib
import types
from collections.abc import Iterable, Mapping
from typing import Any, get_args, get_origin, get_type_hints, Literal, TypeVar

Config = TypeVar("Config")


def read_overrides(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a TOML file of overrides.

    Args:
        path: The file.

    Returns:
        Its top-level table, unchecked.

    Raises:
        ValueError: if the file is not valid TOML.
    """
    try:
        return tomllib.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{os.fspath(path)} is not valid TOML: {error}.") from error


def apply_overrides(base: Config, overrides: Mapping[str, Any]) -> Config:
    """Replaces fields of a frozen configuration, tables recursively.

    Args:
        base: A frozen dataclass; its annotations decide what a field accepts.
        overrides: New values by field name, as TOML gives them.

    Returns:
        A new configuration.

    Raises:
        ValueError: if a key is unknown or a value has the wrong type.
    """
    return _replace(base, overrides, prefix="")


def _replace(base: Config, overrides: Mapping[str, Any], *, prefix: str) -> Config:
    if not dataclasses.is_dataclass(base) or isinstance(base, type):
        raise TypeError(f"Expected a dataclass instance, got {base!r}.")
    hints = get_type_hints(type(base))
    changes: dict[str, Any] = {}
    for key, value in overrides.items():
        name = prefix + key
        if key not in hints:
            raise ValueError(
                _unknown("setting", name, [prefix + hint for hint in hints])
            )
        current = getattr(base, key)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, dict):
                raise ValueError(f"{name} must be a TOML table, got {value!r}.")
            changes[key] = _replace(current, value, prefix=name + ".")
        else:
            changes[key] = _convert(name, value, hints[key])
    return dataclasses.replace(base, **changes)


def _convert(name: str, value: Any, hint: Any) -> Any:
    """Checks one TOML value against a type hint; lists become tuples."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is types.UnionType:
        return _convert(name, value, next(a for a in arguments if a is not type(None)))
    if origin is Literal:
        if value not in arguments:
            raise ValueError(_unknown(f"value of {name}", value, arguments))
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{name} must be a list, got {value!r}.")
        return tuple(_convert(name, item, arguments[0]) for item in value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ValueError(
            f"{name} must be a TOML {hint.__name__}, got {value!r} "
            f"of type {type(value).__name__}."
        )
    return value


def _unknown(what: str, got: Any, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(str(got), known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"Unknown {what}: {got!r}.{hint} Known: {', '.join(known)}."
