"""Records of finished runs: one JSON object per line, never overwritten unasked."""

import dataclasses
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

Record = TypeVar("Record")


class UnusableOutputError(ValueError):
    """An output directory cannot be written to, or holds what cannot be read."""


def run_name(label: str, settings: Any) -> str:
    """Returns a file name: readable, and different for different settings.

    Args:
        label: The readable part.
        settings: A dataclass; all of it decides the rest of the name.

    Returns:
        The label and eight hexadecimal digits.
    """
    text = json.dumps(dataclasses.asdict(settings), sort_keys=True)
    return f"{label}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def claim_directory(output: pathlib.Path, *, resume: bool) -> None:
    """Makes the directory of an experiment.

    Args:
        output: The directory.
        resume: Whether it may hold earlier results.

    Raises:
        FileExistsError: if it holds results and `resume` is off.
        UnusableOutputError: if it cannot be made.
    """
    taken = [output / "results.jsonl", output / "checkpoints"]
    if not resume and any(path.exists() for path in taken):
        raise FileExistsError(
            f"{output} holds the results of an earlier run. Add --resume to continue "
            f"it (finished runs are kept), or choose another --output-dir."
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnusableOutputError(f"Cannot make output_dir: {error}.") from error


def read_records(
    path: pathlib.Path, decode: Callable[[dict[str, Any]], Record]
) -> list[Record]:
    """Reads records.

    Args:
        path: A file of JSON lines.
        decode: Makes a record of one line's object.

    Returns:
        The records; none if there is no such file.

    Raises:
        UnusableOutputError: if `decode` refuses a line, naming it.
    """
    if not path.exists():
        return []
    records: list[Record] = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        try:
            records.append(decode(json.loads(line)))
        except (KeyError, TypeError, ValueError) as error:
            raise UnusableOutputError(
                f"{path}, line {number} is not a result of this version ({error!r}). "
                f"Move the file away, or use another output_dir."
            ) from error
    return records


def write_records(path: pathlib.Path, records: Sequence[Any]) -> None:
    """Replaces the file of records, atomically.

    Args:
        path: A file of JSON lines.
        records: Dataclasses, all that it shall hold; no number may be nan or infinite.
    """
    lines = [
        json.dumps(dataclasses.asdict(record), allow_nan=False) for record in records
    ]
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, delete=False
    ) as file:
        file.write("".join(line + "\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)


def as_tuples(value: Any) -> Any:
    """Replaces the lists of JSON by tuples, at every depth."""
    if isinstance(value, list):
        return tuple(as_tuples(item) for item in value)
    return value
