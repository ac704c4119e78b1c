"""The directory of an experiment: one process at a time, nothing overwritten."""

import contextlib
import datetime as dt
import os
import pathlib
import socket
import sys
from collections.abc import Iterator
from typing import BinaryIO

RESULTS = "results.jsonl"
REPORT = "report.md"
PAGE = "report.html"
CHECKPOINTS = "checkpoints"
EVENTS = "tensorboard"
_LOCK = ".lock"


class UnusableOutputError(ValueError):
    """An output directory is in use, cannot be written to, or cannot be read."""


@contextlib.contextmanager
def claim_directory(output: pathlib.Path, *, resume: bool) -> Iterator[None]:
    """Makes the directory of an experiment and keeps other processes out of it.

    The operating system holds the lock, so that it ends with this process, however
    that ends.

    Args:
        output: The directory.
        resume: Whether it may hold earlier results.

    Yields:
        Nothing; the directory is locked meanwhile.

    Raises:
        FileExistsError: if it holds results and `resume` is off.
        UnusableOutputError: if it cannot be made, another process uses it, or
            something else bears the name of a file that the experiment writes.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = (output / _LOCK).open("a+b")
    except OSError as error:
        raise UnusableOutputError(f"Cannot make output_dir: {error}.") from error
    with lock:
        if not _try_lock(lock):
            raise UnusableOutputError(
                f"{output} is in use by {_holder(lock)}. Wait for it to end, or choose "
                f"another --output-dir."
            )
        _sign(lock)
        _require_kinds(output)
        taken = [output / RESULTS, output / CHECKPOINTS]
        if not resume and any(path.exists() for path in taken):
            raise FileExistsError(
                f"{output} holds the results of an earlier run. Add --resume to "
                f"continue it (finished runs are kept), or choose another --output-dir."
            )
        yield


def replace_file(path: pathlib.Path, content: bytes) -> None:
    """Replaces a file of a claimed directory, atomically.

    Args:
        path: The file.
        content: All that it holds afterwards.

    Raises:
        OSError: if it cannot be written; the file is as it was.
    """
    # The name needs no random part: one process writes here. "x" follows no link.
    beside = path.with_name(f"{path.name}.tmp")
    beside.unlink(missing_ok=True)
    try:
        with beside.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _require_kinds(output: pathlib.Path) -> None:
    """Checks before hours of work that everything can be written after them."""
    for name in (CHECKPOINTS, EVENTS, RESULTS, REPORT, PAGE):
        path = output / name
        kind = "directory" if name in (CHECKPOINTS, EVENTS) else "file"
        is_kind = path.is_dir() if kind == "directory" else path.is_file()
        if path.is_symlink() or (path.exists() and not is_kind):
            raise UnusableOutputError(
                f"{path} must be a {kind} and not a symbolic link. Move it away, or "
                f"choose another --output-dir."
            )


def _sign(lock: BinaryIO) -> None:
    """Writes who holds the lock, for the message to others."""
    now = dt.datetime.now().isoformat(" ", timespec="seconds")
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()} since {now}".encode())
    with contextlib.suppress(OSError):  # A full disk: the lock holds all the same.
        lock.flush()


def _holder(lock: BinaryIO) -> str:
    lock.seek(0)
    return lock.read().decode(errors="replace") or "another process"


if sys.platform == "win32":
    import msvcrt

    def _try_lock(lock: BinaryIO) -> bool:
        # Locked bytes cannot be read by others; none is written this far behind.
        lock.seek(2**30)
        try:
            msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(lock: BinaryIO) -> bool:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
