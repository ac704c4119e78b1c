"""The runs of `soak.py`: processes that train, one after the other, and their kills."""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

HERE = pathlib.Path(__file__).parent
LAYOUTS = (8, 4, 1)
"""Devices of the processes of `moved`, in turn."""

STEP_SECONDS, SAVE_SECONDS = 0.01, 0.2
"""How long after its announcement a kill strikes at most: a few steps, one save."""


@dataclasses.dataclass
class Run:
    """What is known of one run.

    Attributes:
        name: `whole`, `killed` or `moved`.
        processes: How many it took.
        kills: How many of them were killed, in a step or in a save.
        torn: Saves that a kill left unfinished.
        left: Those of them that are there at the end.
        off: Largest difference of the first step after a restart: on the same layout,
            and on another.
        events: Everything that its processes reported.
        end: The last report; empty if there is none.
    """

    name: str
    processes: int = 0
    kills: dict[str, int] = dataclasses.field(
        default_factory=lambda: {"step": 0, "save": 0}
    )
    torn: int = 0
    left: int = 0
    off: dict[str, float] = dataclasses.field(
        default_factory=lambda: {"same": 0.0, "other": 0.0}
    )
    events: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    end: dict[str, Any] = dataclasses.field(default_factory=dict)

    def worst(self, name: str) -> float:
        """Returns the largest number of this name in all reports."""
        return max((event[name] for event in self.events if name in event), default=0)


@dataclasses.dataclass(frozen=True)
class Fault:
    """A kill: in the first `kind` at or behind `step`."""

    kind: str
    step: int

    def words(self) -> list[str]:
        """Returns the options that let the worker announce the moment."""
        return [f"--announce-{self.kind}", str(self.step)]


class Soak:
    """The runs of one task.

    Args:
        task: Its name.
        options: The options of the command line.
        directory: Where checkpoints go.
    """

    def __init__(self, task: str, options: argparse.Namespace, directory: pathlib.Path):
        self._task, self._options, self._directory = task, options, directory
        self._random = random.Random(f"{options.seed}-{task}")

    def run(self, name: str, steps: int, seconds: float = math.inf) -> Run:
        """Trains until a step or a time, with as many processes as it takes."""
        run, faults = Run(name), self._faults(steps) if name != "whole" else []
        while not run.end:
            devices = LAYOUTS[run.processes % len(LAYOUTS)] if name == "moved" else 1
            fault = faults.pop(0) if faults else None
            self._process(run, devices, fault, [steps, seconds])
        run.left = len(self._unfinished(run))
        return run

    def _faults(self, steps: int) -> list[Fault]:
        # None behind the last save, where a fault would wait in vain.
        last = max(2, steps - 2 * self._options.save_every)
        moments = sorted(
            self._random.randrange(1, last) for _ in range(self._options.kills)
        )
        return [Fault(self._random.choice(("step", "save")), step) for step in moments]

    def _process(
        self, run: Run, devices: int, fault: Fault | None, until: Sequence[float]
    ) -> None:
        directory = self._directory / self._task / run.name
        words = [sys.executable, str(HERE / "soak_worker.py")]
        words += ["--task", self._task, "--directory", str(directory)]
        words += ["--until", str(until[0]), "--seconds", str(until[1])]
        words += ["--seed", str(self._options.seed)]
        words += ["--every", str(self._options.save_every)]
        words += fault.words() if fault else []
        flags = os.environ.get("XLA_FLAGS", "")
        count = f"--xla_force_host_platform_device_count={devices}"
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{flags} {count}",
        }
        run.processes += 1
        with (
            tempfile.TemporaryFile("w+") as log,
            subprocess.Popen(
                words, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
            ) as process,
        ):
            try:
                killed = self._follow(run, process, fault)
            except BaseException:
                process.kill()
                raise
            if process.wait() == 0 or killed:
                return
            log.seek(0)
            sys.exit(f"A process of {self._task}, {run.name}, failed:\n{log.read()}")

    def _follow(
        self, run: Run, process: subprocess.Popen[str], fault: Fault | None
    ) -> bool:
        """Reads the reports of a process; returns whether it killed the process."""
        for event in _reports(process):
            run.events.append(event)
            if event["event"] == "done":
                run.end = event
            elif event["event"] == "restored":
                layout = "same" if event["devices"] == event["before"] else "other"
                run.off[layout] = max(run.off[layout], event["off"])
            elif fault and event["event"] == fault.kind:
                most = STEP_SECONDS if fault.kind == "step" else SAVE_SECONDS
                time.sleep(self._random.uniform(0, most))
                process.kill()
                if process.wait() == -signal.SIGKILL:
                    run.kills[fault.kind] += 1
                    run.torn += len(self._unfinished(run))
                    return True
        return False

    def _unfinished(self, run: Run) -> list[pathlib.Path]:
        directory = self._directory / self._task / run.name
        return [*directory.glob("*tmp*")]


def _reports(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        # A line that the kill cut short is no report.
        if line.endswith("}\n"):
            yield json.loads(line)
