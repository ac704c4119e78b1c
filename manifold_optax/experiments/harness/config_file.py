"""TOML files of overrides."""

import dataclasses
import json
import os
import pathlib
import tomllib
from typing import Any


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
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)} is not valid TOML: {error}.") from error


def format_overrides(config: Any) -> str:
    """Returns settings as a TOML file of overrides, for `--config`.

    Args:
        config: A dataclass of plain values, tuples of them and dataclasses. What is
            None is left out, because TOML has no word for it and it is the default.

    Returns:
        The text of the file: values first, then a table per dataclass.
    """
    return "\n".join(_lines(config, ())) + "\n"


def _lines(config: Any, path: tuple[str, ...]) -> list[str]:
    """Returns the lines of one table, with those of its own tables behind it."""
    values: list[str] = [f"[{'.'.join(path)}]"] if path else []
    tables: list[str] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            tables += ["", *_lines(value, (*path, field.name))]
        elif value is not None:
            values.append(f"{field.name} = {_value(value)}")
    return [*values, *tables]


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, str | bool):
        # A string of JSON is one of TOML, but for this character.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    return repr(value)
