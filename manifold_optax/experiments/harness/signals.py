"""Signals that ask a run to stop: when they stop it, and how it learns of them."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any, NoReturn


class Terminated(KeyboardInterrupt):
    """SIGTERM came; what cleans up after Ctrl-C cleans up after it."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Makes SIGTERM the exception `Terminated` meanwhile, as Ctrl-C is one.

    Where SIGTERM is ignored it stays so, and outside of the main thread, which alone
    can say what a signal does, nothing changes.
    """
    before = signal.getsignal(signal.SIGTERM)
    if not _in_main_thread() or before in (None, signal.SIG_IGN):
        yield
        return

    def stop(number: int, frame: Any) -> NoReturn:
        del number, frame
        raise Terminated

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def postponed() -> Iterator[None]:
    """Holds back the first Ctrl-C or SIGTERM until the block has ended.

    A second one comes at once. For blocks that leave threads behind when they are
    interrupted, as the writes of Orbax do: those complain after the program has ended.
    """
    held: list[int] = []
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def hold(number: int, frame: Any) -> None:
        del frame
        restore()
        held.append(number)

    if _in_main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if callable(handler):  # Neither ignored nor the end of the process.
                before[number] = handler
        for number in before:
            signal.signal(number, hold)
    try:
        yield
    finally:
        restore()
        for number in held:
            signal.raise_signal(number)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
