"""TensorBoard events of a finished run."""

import contextlib
import pathlib
import time
from typing import Any

from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

from manifold_optax.experiments.harness.experiment import Curves

# TensorBoard finds files by this name, and reads the format from their first event.
_FILE_NAME = "events.out.tfevents.0"
_FILE_VERSION = "brain.Event:2"


def write_curves(directory: pathlib.Path, curves: Curves) -> None:
    """Writes curves of one run, in place of those that an earlier attempt wrote.

    Args:
        directory: Log directory of this run.
        curves: (step, value) pairs by name; None, a value that was not finite, is
            left out.

    Raises:
        OSError: if they cannot be written.
    """
    if not curves:
        return
    directory.mkdir(parents=True, exist_ok=True)
    # tensorboardX's SummaryWriter writes in a thread, where an error is lost.
    with contextlib.closing(RecordWriter(str(directory / _FILE_NAME))) as file:
        file.write(_event(file_version=_FILE_VERSION))
        for name, points in curves.items():
            for step, value in points:
                if value is not None:
                    file.write(_event(step=step, summary=scalar(name, value)))


def _event(**fields: Any) -> bytes:
    # protobuf makes the class when it is imported, so that no checker sees it.
    make = event_pb2.Event  # pyright: ignore[reportAttributeAccessIssue]
    return make(wall_time=time.time(), **fields).SerializeToString()
