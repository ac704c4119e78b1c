"""The reference has every public name, each once."""

import importlib
import pathlib
import pkgutil
import re
import types

import manifold_optax as mo

INDEX = pathlib.Path(__file__).parents[2] / "docs" / "reference" / "index.md"
# Frameworks and programs: they have pages of their own.
PAGES = {"command_line", "experiments", "integrations"}


def listed() -> list[tuple[str, str]]:
    """What every line of the lists names."""
    found, module = [], mo
    for line in INDEX.read_text("utf-8").splitlines():
        if match := re.match(r"\.\. currentmodule:: (\S+)", line):
            module = importlib.import_module(match[1])
        elif match := re.fullmatch(r"   (\w+)", line):
            found.append((module.__name__, match[1]))
            assert hasattr(module, match[1]), line
    return found


def test_the_reference_is_complete() -> None:
    names = listed()
    assert len(set(names)) == len(names)
    have = {id(getattr(importlib.import_module(m), name)) for m, name in names}
    for info in [None, *pkgutil.iter_modules(mo.__path__)]:
        if info is not None and (info.name.startswith("_") or info.name in PAGES):
            continue
        path = "manifold_optax" if info is None else f"manifold_optax.{info.name}"
        module = importlib.import_module(path)
        for name in module.__all__:
            value = getattr(module, name)
            if name != "__version__" and not isinstance(value, types.ModuleType):
                known = id(value) in have or any(n == name for _, n in names)
                assert known, f"{path}.{name} is missing in docs/reference/index.md"
