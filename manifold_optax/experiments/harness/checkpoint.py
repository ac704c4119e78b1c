"""Checkpoints of a run: the latest state of one directory, through Orbax.

Beside each state stand its format and its digest. Orbax compares neither in words that
help, and it keeps no checksum: a flipped bit would be restored as another number.
"""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any, cast

import jax
import orbax.checkpoint as ocp

from manifold_optax.experiments.harness.output import UnusableOutputError
from manifold_optax.experiments.harness.signals import postponed
from manifold_optax.experiments.harness.state import RunState
from manifold_optax.states import (
    check_state_format,
    state_digest,
    state_format,
    StateFormat,
)

_LONGEST_REASON = 400
"""TensorStore says two kilobytes about every array that it cannot read."""


class Checkpoints:
    """The checkpoints of one run; only the latest is kept.

    Use `open_checkpoints` to make one.
    """

    def __init__(self, manager: ocp.CheckpointManager, directory: pathlib.Path):
        self._manager = manager
        self._directory = directory

    def save(self, state: RunState) -> None:
        """Saves a state under its round; the write is atomic, also for Ctrl-C.

        Raises:
            UnusableOutputError: if it cannot be written; the one before is kept.
        """
        beside = {
            "format": state_format(state).to_json(),
            "digest": state_digest(state),
        }
        arguments = ocp.args.StandardSave(state)
        try:
            with postponed():
                self._manager.save(
                    int(state.round), args=arguments, custom_metadata=beside
                )
        except (OSError, ValueError) as error:
            raise UnusableOutputError(
                f"The checkpoint in {self._directory} cannot be written "
                f"({_reason(error)}). Nothing is lost; continue with --resume."
            ) from error

    def restore_latest(self, like: RunState) -> RunState:
        """Restores the latest state.

        Args:
            like: A state with the structure, shapes and dtypes to restore.

        Returns:
            The latest state, or `like` if nothing was saved.

        Raises:
            UnusableOutputError: if what was saved is damaged or of another kind.
        """
        latest = self._manager.latest_step()
        if latest is None:
            return like
        try:
            return self._restore(latest, like)
        # Whatever the damage is: for some, Orbax raises a bare `Exception`.
        except Exception as error:
            raise UnusableOutputError(
                f"The checkpoint in {self._directory} cannot be restored "
                f"({_reason(error)}). Delete that directory to start its run again, or "
                f"choose another --output-dir."
            ) from error

    def _restore(self, step: int, like: RunState) -> RunState:
        beside: Any = self._manager.metadata(step).custom_metadata or {}
        if not {"format", "digest"} <= set(beside):
            raise ValueError("its format and digest are missing")
        check_state_format(StateFormat.from_json(beside["format"]), like)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        arguments = ocp.args.StandardRestore(abstract)
        restored = self._manager.restore(step, args=arguments)
        if state_digest(restored) != beside["digest"]:
            raise ValueError("its numbers are not those that were saved")
        return cast("RunState", restored)


def _reason(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join((str(error) or repr(error)).split())[:_LONGEST_REASON]


@contextlib.contextmanager
def open_checkpoints(directory: pathlib.Path) -> Iterator[Checkpoints]:
    """Opens the checkpoints of one run.

    Args:
        directory: Their directory, made if it does not exist. It must be one that
            this program wrote.

    Yields:
        The checkpoints.

    Raises:
        UnusableOutputError: if the directory is or contains a symbolic link, which
            no checkpoint of ours does and which could make a restore read other
            files, or if it is no directory.
    """
    for path in (directory, *directory.rglob("*")):
        if path.is_symlink():
            raise UnusableOutputError(
                f"{directory} is not a checkpoint of this program: {path} is a "
                f"symbolic link. Delete it, or choose another --output-dir."
            )
    if directory.exists() and not directory.is_dir():
        raise UnusableOutputError(
            f"{directory} must be a directory. Move it away, or choose another "
            f"--output-dir."
        )
    options = ocp.CheckpointManagerOptions(
        max_to_keep=1, enable_async_checkpointing=False, cleanup_tmp_directories=True
    )
    # Named beforehand, without which Orbax warns when what stands beside is read.
    handler = ocp.StandardCheckpointHandler()
    with ocp.CheckpointManager(
        directory.absolute(), item_handlers=handler, options=options
    ) as manager:
        yield Checkpoints(manager, directory)
