"""Wrong kinds and values of every setting of every experiment."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from manifold_optax.experiments import __main__ as program
from manifold_optax.experiments.harness import command_line

COMMANDS = program.commands()

WRONG: tuple[Any, ...] = (
    "x",
    "",
    1.5,
    True,
    -1,
    10**30,
    float("nan"),
    float("inf"),
    [True],
    ["x"],
    [-1.0],
    [float("nan")],
    {},
    {"x": 1},
)


def settings(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting by its dotted name, and its default."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from settings(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


def may_be_right(default: Any, value: Any) -> bool:
    """Whether the kind of the setting has values like this one.

    A name is checked against its choices, so `"x"` is wrong of one that has choices.
    """
    if isinstance(default, bool):
        return value is True
    if isinstance(default, float):
        return value == 1.5
    return default is None and isinstance(value, str)


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(x)}" for key, x in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value) if isinstance(value, str | bool) else repr(value)


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """No run may start, and no data be read."""

    def fail(*_: Any) -> None:
        raise AssertionError("a run has started")

    monkeypatch.setattr(command_line, "run_experiment", fail)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The error of the program, which must be one of usage."""
    with pytest.raises(SystemExit) as raised:
        program.main(arguments)
    assert raised.value.code == 2, arguments
    return capsys.readouterr().err


NAMES_THE_SETTING = pytest.mark.promise(
    "Faults",
    "A wrong setting is an error with its name and exit code 2, before any run",
    on="every setting of every experiment; wrong kinds and values",
)


@NAMES_THE_SETTING
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "mlp" else (pytest.mark.slow,))
        for name in COMMANDS
    ],
)
def test_a_wrong_value_in_a_file_is_an_error_that_names_it(
    name: str,
    never: None,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "own.toml"
    for setting, default in settings(COMMANDS[name].default):
        for value in WRONG:
            # Any text is the name of some directory.
            if may_be_right(default, value) or (setting, value) == ("output_dir", "x"):
                continue
            path.write_text(f"{setting} = {toml(value)}\n")
            said = refused([name, "--config", str(path)], capsys)
            *_, last = setting.split(".")
            assert last in said, (setting, value, said)
            assert "Traceback" not in said


@NAMES_THE_SETTING
@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_wrong_option_is_an_error_that_names_it(
    name: str, never: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for setting, default in settings(COMMANDS[name].default):
        # An option of a flag takes no value; any text is a path.
        if not isinstance(default, bool | str | None):
            option = f"--{setting.replace('_', '-')}"
            said = refused([name, option, "1.5x"], capsys).replace("\n", "")
            # What only the settings can judge, they call by its name in a file.
            assert option in said or f" {setting} must be " in said, (setting, said)
            assert "Traceback" not in said
