"""TOML files of overrides."""

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
