"""Two processes of four devices each give the numbers of one process of eight.

Their checkpoint is written by both and restored by one, and the other way round.
"""

import os
import pathlib
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from sharding import worker

pytestmark = pytest.mark.devices

SECONDS = 120
"""Ten times what the processes take on two loaded cores; then they count as stuck."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def require_own_name() -> None:
    """Gloo finds its address by this machine's name, and JAX gives it no other."""
    try:
        socket.getaddrinfo(socket.gethostname(), None)
    except OSError as error:
        pytest.skip(f"this machine's own name does not resolve: {error}")


def run_processes(
    count: int, directory: pathlib.Path, name: str, start: pathlib.Path | None = None
) -> pathlib.Path:
    """Runs the worker as so many processes; fails with their output if one fails.

    Returns:
        The directory of the checkpoint that they wrote.
    """
    out, port = directory / "checkpoint", free_port()
    # The last flag counts; the others must be those of this process, for equal bits.
    flags = os.environ.get("XLA_FLAGS", "")
    devices = f"--xla_force_host_platform_device_count={8 // count}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{flags} {devices}",
    }
    logs = [directory / f"{identity}.log" for identity in range(count)]
    processes = []
    try:
        for identity, log in enumerate(logs):
            words = [
                worker.__file__,
                str(identity),
                str(count),
                str(port),
                str(out),
                name,
                *([] if start is None else [str(start)]),
            ]
            with log.open("w") as sink:
                process = subprocess.Popen(
                    [sys.executable, "-P", *words],
                    env=environment,
                    stdout=sink,
                    stderr=subprocess.STDOUT,
                )
            processes.append(process)
        deadline = time.monotonic() + SECONDS
        # When one fails the others wait for it in a collective: look at all in turn.
        while any(p.poll() is None for p in processes):
            failed = any(p.poll() for p in processes)
            if failed or time.monotonic() > deadline:
                break
            time.sleep(0.1)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    codes = [process.returncode for process in processes]
    if any(codes):
        told = "\n".join(f"{log.name}:\n{log.read_text()[-4000:]}" for log in logs)
        pytest.fail(f"The processes ended with {codes}.\n{told}")
    return out


@pytest.mark.promise(
    "Layouts and devices",
    "Two processes give the bits of one",
    on="owned; manifold Muon, Muon",
)
# Both send the same; manifold Muon also sends the points.
@pytest.mark.parametrize(
    "name", ["manifold_muon", pytest.param("muon", marks=pytest.mark.slow)]
)
def test_two_processes_equal_one_bitwise(name: str, tmp_path: pathlib.Path) -> None:
    require_own_name()
    written = run_processes(2, tmp_path, name)
    expected = worker.train(name)
    actual = worker.restore(written, expected)
    # One program, and all-to-alls move numbers without adding them: no tolerance.
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.slow
def test_two_processes_go_on_from_the_checkpoint_of_one(tmp_path: pathlib.Path) -> None:
    require_own_name()
    start = tmp_path / "start"
    worker.save(start, worker.train("muon"))
    expected = worker.train("muon", start)
    written = run_processes(2, tmp_path, "muon", start)
    actual = worker.restore(written, expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
