"""Trains for long while faults strike at random, and checks that nothing is lost.

    python benchmarks/soak.py --steps 100000        # what the nightly runs
    python benchmarks/soak.py --minutes 20

Each of two trainings (`soak_tasks.py`) runs three times, in processes of its own
(`soak_runs.py`, `soak_worker.py`): `whole` without a break on one device; `killed` on
one device with SIGKILLs in steps and in saves; `moved`, killed alike, whose processes
have 8, 4, 1, 8, … devices in turn. One gradient in a hundred has a NaN, in all three at
the same steps. Checked are: the number of skipped steps; the distance from the
manifold; memory, arrays, compiled programs and traces of each process; the step after
each restart; and the end, which must be that of `whole`, to the bit on its layout. The
script exits with 1 if a check fails.
"""

import argparse
import math
import pathlib
import sys
import tempfile
from collections.abc import Iterator, Sequence

from soak_runs import Run, Soak
from soak_tasks import count_poisoned, TASKS

SHARE_OF_WHOLE = 0.1
"""Of the minutes of a task. `killed` makes the same steps and starts anew after every
kill; a step on eight devices that share two cores takes four times as long, or more."""

OTHER_LAYOUT = 1e-3
"""Largest difference of a step on another layout, of the largest entry. Gradients are
summed in another order; where a direction is ill-conditioned, it amplifies that. Seen:
4.5e-5. A wrong direction would differ by the learning rate: 5e-2."""

END_ELSEWHERE = 0.1
"""Largest difference of the final losses on different layouts, in nats; the first ones
are 2.3 and 4.5. Roundings grow until the weights differ as those of two seeds; their
losses stay close."""

MOST_NEW_MIB = 32.0
"""Growth of a warm process. The allocator keeps some pages of every save. A state that
is kept by mistake takes 20 KiB a step, 2 GiB in a run of 100,000."""


def violations(run: Run, whole: Run, poisoned: int) -> Iterator[str]:
    """Finds what is wrong with a run.

    Args:
        run: The run.
        whole: The run without a break.
        poisoned: How many of its gradients had a NaN.

    Yields:
        A sentence for each violation.
    """
    end = run.end
    if end["skipped"] != poisoned:
        yield f"{end['skipped']} steps were skipped, {poisoned} had a NaN"
    if not end["worst"] <= end["bound"]:
        yield f"{end['worst']:.1e} off the manifold, {end['bound']:.0e} allowed"
    yield from _of_processes(run)
    yield from _of_restarts(run)
    yield from _of_the_end(run, whole)


def _of_processes(run: Run) -> Iterator[str]:
    if run.worst("traces") != 1:
        yield f"a process traced its step {run.worst('traces')} times"
    # The arrays of the last save are let go at the next one. Kept by mistake, those of
    # every save or step would be thousands.
    for name, most in (("programs", 0), ("arrays", run.worst("arrays_of_a_save"))):
        if run.worst(f"new_{name}") > most:
            yield f"a warm process has {run.worst(f'new_{name}')} new {name}"
    if not run.end["programs"]:
        yield "no compilation was counted: JAX must have renamed its event"
    if run.name == "whole" and "new_mib" not in run.end:
        yield "it ended before it was warm: use more steps"
    if run.worst("new_mib") > MOST_NEW_MIB:
        yield f"a warm process grew by {run.worst('new_mib'):.0f} MiB"


def _of_restarts(run: Run) -> Iterator[str]:
    if run.name != "whole" and not sum(run.kills.values()):
        yield "no process was killed: use more steps or more kills"
    if run.left:
        yield f"{run.left} unfinished saves are left"
    if run.off["same"]:
        yield f"the step after a restart differs by {run.off['same']:.1e}, not 0"
    if not run.off["other"] <= OTHER_LAYOUT:
        yield f"the step on another layout differs by {run.off['other']:.1e}"


def _of_the_end(run: Run, whole: Run) -> Iterator[str]:
    end, expected = run.end, whole.end
    if end["step"] != expected["step"]:
        yield f"it ends at step {end['step']}, not {expected['step']}"
    if run.name == "moved":
        off = abs(end["loss"] - expected["loss"])
        if not off <= END_ELSEWHERE:
            yield f"its final loss differs by {off:.3f}"
    elif end["digest"] != expected["digest"]:
        yield "its end differs from that of the whole run"


HEADER = (
    "| task | run | steps | processes | killed in steps, saves | torn saves | skipped, "
    "NaNs | off the manifold | off after a restart, same layout, other | new MiB, "
    "programs | final loss | verdict |"
)


def row(task: str, run: Run, poisoned: int, wrong: Sequence[str]) -> str:
    """Returns the row of the table of a run."""
    end, kills, off = run.end, run.kills, run.off
    cells = (
        task,
        run.name,
        f"{end['step']:,}",
        run.processes,
        f"{kills['step']}, {kills['save']}",
        run.torn,
        f"{end['skipped']}, {poisoned}",
        f"{end['worst']:.1e}",
        f"{off['same']:.0e}, {off['other']:.0e}",
        f"{run.worst('new_mib'):.1f}, {run.worst('new_programs')}",
        f"{end['loss']:.4f}",
        "FAILED" if wrong else "ok",
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def soak(options: argparse.Namespace, directory: pathlib.Path) -> list[str]:
    """Makes all runs, prints the table, and returns the violations."""
    print(HEADER)
    print("|" + " --- |" * HEADER.count(" |"), flush=True)
    found: list[str] = []
    for task in options.tasks:
        runs = Soak(task, options, directory)
        seconds = 60 * options.minutes / len(options.tasks) * SHARE_OF_WHOLE
        whole = runs.run("whole", options.steps, seconds)
        steps = whole.end["step"]
        poisoned = count_poisoned(options.seed, steps)
        for name in ("whole", "killed", "moved"):
            run = whole if name == "whole" else runs.run(name, steps)
            wrong = list(violations(run, whole, poisoned))
            print(row(task, run, poisoned, wrong), flush=True)
            found += [f"{task}, {name}: {sentence}." for sentence in wrong]
    return found


def main() -> None:
    """Reads the options, soaks, and says what was wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=100_000, help="steps of each run")
    parser.add_argument(
        "--minutes",
        type=float,
        default=math.inf,
        help="about how long all runs take, beside 10 s for each kill; may end them "
        "before --steps",
    )
    parser.add_argument("--kills", type=int, default=12, help="kills of each run")
    parser.add_argument("--save-every", type=int, default=200, help="steps")
    parser.add_argument("--seed", type=int, default=0, help="of all faults")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=[*TASKS])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        found = soak(options, pathlib.Path(directory))
    print("\n".join(found) or "Nothing was lost.")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
