"""Checkpoints of a run: the latest state of one directory, through Orbax."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any, cast, Generic, TypeVar

import jax
import orbax.checkpoint as ocp

from manifold_optax.experiments.records import UnusableOutputError

State = TypeVar("State", bound=tuple[object, ...])
"""A named tuple of arrays; its first entry counts what is done, such as epochs."""


class Checkpoints(Generic[State]):
    """The checkpoints of one run; only the latest is kept.

    Use `open_checkpoints` to make one.
    """

    def __init__(self, manager: ocp.CheckpointManager, directory: pathlib.Path):
        self._manager = manager
        self._directory = directory

    def save(self, state: State) -> None:
        """Saves a state under its first entry; the write is atomic."""
        number = int(cast("jax.Array", state[0]))
        self._manager.save(number, args=ocp.args.StandardSave(state))

    def restore_latest(self, like: State) -> State:
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
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        arguments = ocp.args.StandardRestore(abstract)
        try:
            return cast("State", self._manager.restore(latest, args=arguments))
        except (ValueError, KeyError, OSError) as error:
            raise UnusableOutputError(
                f"The checkpoint in {self._directory} cannot be restored ({error!r}). "
                "Delete that directory to start its run again, or use another "
                "output_dir."
            ) from error


@contextlib.contextmanager
def open_checkpoints(directory: pathlib.Path) -> Iterator[Checkpoints[Any]]:
    """Opens the checkpoints of one run.

    Args:
        directory: Their directory, made if it does not exist. It must be one that
            this program wrote.

    Yields:
        The checkpoints.

    Raises:
        UnusableOutputError: if the directory contains a symbolic link, which no
            checkpoint of ours does and which could make a restore read other files.
    """
    links = [path for path in directory.rglob("*") if path.is_symlink()]
    if links:
        raise UnusableOutputError(
            f"{directory} is not a checkpoint of this program: {links[0]} is a "
            f"symbolic link. Use another output_dir, or delete it."
        )
    options = ocp.CheckpointManagerOptions(
        max_to_keep=1, enable_async_checkpointing=False
    )
    with ocp.CheckpointManager(directory.absolute(), options=options) as manager:
        yield Checkpoints(manager, directory)
