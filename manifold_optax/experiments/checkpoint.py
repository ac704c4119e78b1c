"""Checkpoints of a run: the latest state of one directory, through Orbax."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import cast

import jax
import orbax.checkpoint as ocp

from manifold_optax.experiments.train import RunState


class Checkpoints:
    """The checkpoints of one run; only the latest is kept.

    Use `open_checkpoints` to make one.
    """

    def __init__(self, manager: ocp.CheckpointManager):
        self._manager = manager

    def save(self, state: RunState) -> None:
        """Saves a state under the number of its epoch; the write is atomic."""
        self._manager.save(int(state.epoch), args=ocp.args.StandardSave(state))

    def restore_latest(self, like: RunState) -> RunState:
        """Restores the latest state.

        Args:
            like: A state with the structure, shapes and dtypes to restore.

        Returns:
            The latest state, or `like` if nothing was saved.
        """
        latest = self._manager.latest_step()
        if latest is None:
            return like
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        arguments = ocp.args.StandardRestore(abstract)
        return cast("RunState", self._manager.restore(latest, args=arguments))


@contextlib.contextmanager
def open_checkpoints(directory: pathlib.Path) -> Iterator[Checkpoints]:
    """Opens the checkpoints of one run.

    Args:
        directory: Their directory, made if it does not exist. It must be one that
            this program wrote.

    Yields:
        The checkpoints.

    Raises:
        ValueError: if the directory contains a symbolic link, which no checkpoint of
            ours does and which could make a restore read other files.
    """
    links = [path for path in directory.rglob("*") if path.is_symlink()]
    if links:
        raise ValueError(
            f"{directory} is not a checkpoint of this program: {links[0]} is a "
            f"symbolic link. Use another output_dir, or delete it."
        )
    options = ocp.CheckpointManagerOptions(
        max_to_keep=1, enable_async_checkpointing=False
    )
    with ocp.CheckpointManager(directory.absolute(), options=options) as manager:
        yield Checkpoints(manager)
