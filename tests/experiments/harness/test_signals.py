import signal
import threading
from collections.abc import Iterator

import pytest

from manifold_optax.experiments.harness.signals import (
    postponed,
    terminable,
    Terminated,
)


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Python's own handler, also where these tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("number", "error"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)],
)
def test_the_first_signal_waits_for_the_end_of_the_block(
    number: int, error: type[KeyboardInterrupt]
) -> None:
    reached, before = [], signal.getsignal(signal.SIGTERM)

    def run() -> None:
        with terminable():
            with postponed():
                signal.raise_signal(number)
                reached.append("end of the block")
            reached.append("behind the block")

    with pytest.raises(error):
        run()
    assert reached == ["end of the block"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_second_signal_comes_at_once() -> None:
    reached = []

    def run() -> None:
        with postponed():
            for name in ("first", "second"):
                signal.raise_signal(signal.SIGINT)
                reached.append(name)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert reached == ["first"]


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with terminable(), postponed():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_threads_are_left_alone() -> None:
    found = []

    def run() -> None:
        with terminable(), postponed():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]
