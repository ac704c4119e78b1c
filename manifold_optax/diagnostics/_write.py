"""What `collect` finds, written down: JSON lines, or TensorBoard."""

import json
import operator
import os
from collections.abc import Callable, Mapping
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Array


def write(
    info: Mapping[str, Mapping[str, Array]], step: SupportsIndex, to: Any
) -> None:
    """Writes what `collect` found as one line of JSON, or as scalars of TensorBoard.

    A line is `{"step": 10, "angle": {"up/kernel": 41.5, "experts": [40.1, 44.7]}, …}`;
    `pandas.read_json(path, lines=True)` reads it. JSON has no NaN and no infinity: they
    are written as `null`. A scalar of TensorBoard is called `angle/up/kernel`, and
    `angle/experts/0` for one of several matrices.

    Args:
        info: what `collect` returned, outside of `jax.jit`.
        step: number of the step.
        to: path of a file, to which the line is appended; an open text file; or a
            writer with the method `scalar(tag, value, step)`, as that of
            `flax.metrics.tensorboard`, or `add_scalar(tag, value, step)`, as that of
            tensorboardX and PyTorch.

    Raises:
        TypeError: if `to` is none of these, or `step` is not an integer.

    Example:
        >>> import sys
        >>> params = {"w": jnp.ones((4, 2))}
        >>> tx = mo.monitor(measures=["applied", "skipped"])
        >>> _, state = tx.update(params, tx.init(params), params)
        >>> write(mo.diagnostics.collect(state), 1, sys.stdout)
        {"step": 1, "applied": {"w": 1.0}, "skipped": {"w": 0.0}}
    """
    if isinstance(step, bool) or not isinstance(step, SupportsIndex):
        raise TypeError(f"step must be an integer, got {step!r}.")
    number = operator.index(step)
    numbers = {
        name: {path: np.asarray(value) for path, value in by_path.items()}
        for name, by_path in info.items()
    }
    scalar = getattr(to, "scalar", None) or getattr(to, "add_scalar", None)
    if callable(scalar):
        _write_scalars(scalar, numbers, number)
        return
    line = json.dumps({"step": number, **_plain(numbers)}, allow_nan=False) + "\n"
    if isinstance(to, str | os.PathLike):
        with open(to, "a", encoding="utf-8") as file:
            # One call, so that what another process writes is not within the line.
            file.write(line)
    elif hasattr(to, "write"):
        to.write(line)
    else:
        raise TypeError(
            "to must be the path of a file, an open text file, or a writer with the "
            f"method scalar or add_scalar (tag, value, step); got {to!r}."
        )


def _plain(numbers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Lists and numbers of Python, `None` in place of what is not finite."""

    def of_array(value: Any) -> Any:
        if value.ndim:
            return [of_array(part) for part in value]
        # Seven digits are what a float32 has.
        return float(f"{value:.7g}") if np.isfinite(value) else None

    return {
        name: {path: of_array(value) for path, value in by_path.items()}
        for name, by_path in numbers.items()
    }


def _write_scalars(
    scalar: Callable[[str, float, int], Any],
    numbers: Mapping[str, Mapping[str, Any]],
    step: int,
) -> None:
    for name, by_path in numbers.items():
        for path, value in by_path.items():
            for index in np.ndindex(value.shape):
                tag = "/".join((name, path, *map(str, index)))
                scalar(tag, float(value[index]), step)
