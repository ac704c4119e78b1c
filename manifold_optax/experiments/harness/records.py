"""Records of finished runs: one JSON object per line, replaced atomically."""

import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Protocol, runtime_checkable, TypeVar

import numpy as np
from jax.typing import ArrayLike

from manifold_optax.experiments.harness.output import (
    replace_file,
    UnusableOutputError,
)
from manifold_optax.experiments.harness.typed import make_typed


@runtime_checkable
class RunSettings(Protocol):
    """Everything that decides the numbers of one run; a frozen dataclass."""

    @property
    def optimizer(self) -> str:
        """Name of the optimizer."""
        ...

    @property
    def learning_rate(self) -> float:
        """Peak learning rate."""
        ...

    @property
    def seed(self) -> int:
        """Seed of the initial weights and of the order of the data."""
        ...

    @property
    def condition(self) -> str:
        """The condition, one of `Experiment.conditions`; empty by default."""
        ...


@runtime_checkable
class RunResult(Protocol):
    """What one finished run measured; a frozen dataclass of plain values.

    Numbers that are not finite are None, because JSON has no other word for them.
    """

    @property
    def settings(self) -> RunSettings:
        """Settings of the run."""
        ...


Record = TypeVar("Record")


def run_name(settings: RunSettings) -> str:
    """Returns a file name: readable, and different for different settings."""
    fields = _as_dict(settings)
    if not settings.condition:  # The name that it had before there were conditions.
        del fields["condition"]
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    run = f"{settings.optimizer}-lr{settings.learning_rate:g}-seed{settings.seed}"
    words = (file_name(settings.condition), run, digest[:8])
    return "-".join(filter(None, words))


def file_name(text: str) -> str:
    """Returns a text without the characters that a file name should not have."""
    return re.sub(r"[^A-Za-z0-9.=]+", "_", text)[:80]


def finite(values: ArrayLike) -> tuple[float | None, ...]:
    """Returns the numbers of a vector; None for those that are not finite."""
    numbers = np.asarray(values)
    known = np.isfinite(numbers)
    return tuple(
        x if ok else None for x, ok in zip(numbers.tolist(), known, strict=True)
    )


def read_records(path: pathlib.Path, kind: type[Record]) -> list[Record]:
    """Reads records.

    Args:
        path: A file of JSON lines.
        kind: The dataclass of a record.

    Returns:
        The records; none if there is no such file.

    Raises:
        UnusableOutputError: if the file cannot be read, or a line is no such record.
    """
    if not path.exists():
        return []
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UnusableOutputError(
            f"{path} cannot be read ({error}). Move it away, or choose another "
            f"--output-dir."
        ) from error
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(make_typed(kind, _with_condition(json.loads(line))))
        except (ValueError, RecursionError) as error:
            raise UnusableOutputError(
                f"{path}, line {number} is not a result of this version "
                f"({_shortened(error)}). Move the file away, or choose another "
                f"--output-dir."
            ) from error
    return records


def write_records(path: pathlib.Path, records: Sequence[RunResult]) -> None:
    """Replaces the file of records, atomically.

    Args:
        path: A file of JSON lines.
        records: All that it holds afterwards; no number may be nan or infinite.

    Raises:
        OSError: if they cannot be written; the file is as it was.
    """
    lines = [json.dumps(_as_dict(record), allow_nan=False) + "\n" for record in records]
    replace_file(path, "".join(lines).encode())


def _with_condition(table: object) -> object:
    """Enters the condition into a record of a version that had none."""
    if isinstance(table, dict) and isinstance(table.get("settings"), dict):
        table["settings"].setdefault("condition", "")
    return table


def _as_dict(data: RunSettings | RunResult) -> dict[str, object]:
    if not dataclasses.is_dataclass(data) or isinstance(data, type):
        raise TypeError(f"Expected a dataclass instance, got {data!r}.")
    return dataclasses.asdict(data)


def _shortened(error: BaseException) -> str:
    text = str(error)
    return text if len(text) <= 200 else text[:200] + " …"
