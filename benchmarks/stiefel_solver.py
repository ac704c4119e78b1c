r"""Gap, cost and time of the Stiefel x spectral solver against the published one.

    .venv/bin/python benchmarks/stiefel_solver.py --table docs/stiefel_solver.md \
        --figure docs/stiefel_solver.png

prints, and writes where told, seven tables:

1. The certified gap of every method on every case, float32.
2. Worst and geometric mean of 44 mixed cases.
3. The gap against the scale of the gradient.
4. FLOPs of matrix products.
5. CPU time, interleaved in one process on one pinned core.
6. The gap at every step of small trainings; it stands after the second.
7. The gap of small matrices near square; it stands after that one.

`--quick` takes a few small cases of the first five, to see that it works. `--training`
prints the last two alone, and replaces them in the file.
"""

import argparse
import os
import pathlib
import statistics
from collections.abc import Iterable, Iterator, Sequence

# One core, chosen before JAX starts its threads: times on shared cores are noise.
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import document
import dot_flops
import jax
import jax.numpy as jnp
import optimizer_step
import stiefel_cases
import stiefel_figure
import stiefel_gaps
import stiefel_training
from stiefel_gaps import Gap

SIZES = (
    (64, 10),
    (96, 64),
    (128, 64),
    (256, 64),
    (512, 128),
    (512, 256),
    (1024, 256),
    (3072, 128),
)
COST_SIZES = ((256, 128), (512, 128), (3072, 128))
TIME_SIZES = (
    (64, 10),
    (128, 64),
    (256, 64),
    (256, 128),
    (512, 128),
    (512, 256),
    (1024, 256),
    (3072, 128),
)
SCALES = tuple(10.0**k for k in range(-3, 4))
# The published 100 steps cost 10 times these ten: every step does the same.
TIMED_STEPS = 10

GAP_TEXT = """\
`1 - <A, G> / upper`: A projected to the tangent space and scaled into the unit ball in
float64, `upper` a dual value within 1e-5 of the optimum, both from NumPy. In brackets
what the library certifies itself. 'f32' and 'bf16' are the dtypes of the reference's
matrix sign, 'normalised' divides its gradient by the Frobenius norm first. 'project,
polar' is SPEL's direction. 'K/G_perp' is the size of the gradient's rotation W^T G
against that of the rest; a momentum's name ends with the network's sizes."""
SUMMARY_TEXT = """\
'completed' is the best feasible direction with the same skew part W^T A, for a reader
who would pay for that besides. Norm and tangency `|W^T A + A^T W| / |A|` are those of
the direction as returned."""
MIXED_TEXT = "Four kinds of gradient at eleven sizes, from 66x64 to 1024x128."


def row(cells: Iterable[object]) -> str:
    """Row of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def head(*names: str) -> list[str]:
    """Head of a Markdown table."""
    return [row(names), "|" + "---|" * len(names)]


def listed_cases() -> Iterator[stiefel_cases.Case]:
    """Cases of table 1."""
    for m, n in SIZES:
        for kind in stiefel_cases.KINDS:
            yield stiefel_cases.synthetic(kind, m, n)
    yield from stiefel_cases.skew_dominant_cases()
    yield from stiefel_cases.momentum_cases()


def gap_table(gaps: Sequence[Gap]) -> list[str]:
    """Table 1: for ours the library's own certificate in brackets."""
    names = list(dict.fromkeys(gap.method for gap in gaps))
    lines = head("case", *names)
    for case in dict.fromkeys(gap.case for gap in gaps):
        cells = [_cell(gap) for gap in gaps if gap.case == case]
        lines.append(row([case, *cells]))
    return lines


def _cell(gap: Gap) -> str:
    own = "" if gap.own != gap.own else f" ({gap.own:.0e})"
    return f"{gap.certified:.1e}{own}"


def summary_table(gaps: Sequence[Gap]) -> list[str]:
    """Table 2, and the same of table 1's cases."""
    lines = head(
        "method",
        "worst gap",
        "geometric mean",
        "worst, completed",
        "geometric mean, completed",
        "largest norm",
        "largest tangency",
    )
    for name in dict.fromkeys(gap.method for gap in gaps):
        own = [gap for gap in gaps if gap.method == name]
        columns = []
        for values in ([g.certified for g in own], [g.completed for g in own]):
            columns += [max(values), stiefel_gaps.geometric_mean(values)]
        norm = f"{max(gap.norm for gap in own):.4f}"
        tangency = f"{max(gap.tangency for gap in own):.1e}"
        lines.append(row([name, *(f"{x:.1e}" for x in columns), norm, tangency]))
    return lines


def scale_table(sweep: Sequence[tuple[float, Gap]]) -> list[str]:
    """Table 3."""
    lines = head("case", "method", *(f"{scale:g}" for scale in SCALES))
    keys = dict.fromkeys((gap.case, gap.method) for _, gap in sweep)
    for case, method in keys:
        own = [g.certified for _, g in sweep if (g.case, g.method) == (case, method)]
        lines.append(row([case, method, *(f"{gap:.0e}" for gap in own)]))
    return lines


def counted_methods() -> dict[str, stiefel_gaps.Method]:
    """Methods made of products only, the reference in a loop of known length."""
    counted = stiefel_gaps.methods(certify=False, tolerance=None)
    example = jax.ShapeDtypeStruct((32, 8), jnp.float32)
    return {
        name: method
        for name, method in counted.items()
        if not dot_flops.factorisations(method, example, example)
    }


def flops_of(method: stiefel_gaps.Method, shape: tuple[int, int]) -> int:
    """FLOPs of the matrix products of one call."""
    example = jax.ShapeDtypeStruct(shape, jnp.float32)
    return dot_flops.dot_flops(method, example, example)


def flop_table() -> list[str]:
    """Table 4. Raises if the products backend calls anything outside XLA."""
    example = jax.ShapeDtypeStruct((256, 64), jnp.float32)
    lines = head("method", *(f"{m}x{n}" for m, n in COST_SIZES), "custom calls")
    baseline = [
        flops_of(stiefel_gaps.reference(jnp.bfloat16, False, None), shape)
        for shape in COST_SIZES
    ]
    for name, method in counted_methods().items():
        counts = [flops_of(method, shape) for shape in COST_SIZES]
        calls = sorted(dot_flops.custom_calls(method, example, example))
        if name.startswith("ours") and calls:
            raise RuntimeError(f"The products backend must not call {calls}.")
        cells = [
            f"{count / 1e9:.3g} G ({base / count:.0f}x fewer)"
            for count, base in zip(counts, baseline, strict=True)
        ]
        lines.append(row([name, *cells, ", ".join(calls) or "none"]))
    return lines


def time_table(pairs: int, sizes: Sequence[tuple[int, int]]) -> list[str]:
    """Table 5."""
    factor = 100 // TIMED_STEPS
    lines = head(
        "size",
        "method",
        "CPU ms",
        "share of the reference in f32, median [quartiles]",
        "reference / method",
    )
    for m, n in sizes:
        case = stiefel_cases.synthetic("low_rank_noise", m, n)
        inputs = [jnp.asarray(x, jnp.float32) for x in (case.point, case.gradient)]
        timed = {
            f"ours, {backend}": stiefel_gaps.library(backend)
            for backend in stiefel_gaps.BACKENDS
        }
        for name, dtype in (("f32", jnp.float32), ("bf16", jnp.bfloat16)):
            timed[f"reference {name}"] = stiefel_gaps.reference(
                dtype, normalise=False, tolerance=None, steps=TIMED_STEPS
            )
        runs = {}
        for name, method in timed.items():
            compiled = jax.jit(method).lower(*inputs).compile()
            runs[name] = lambda go=compiled, inputs=inputs: go(*inputs)
        times = optimizer_step.interleaved(runs, pairs)
        for name in times:
            if name.startswith("reference"):
                times[name] = [factor * seconds for seconds in times[name]]
        for name in times:
            median = statistics.median(times[name])
            share = optimizer_step.ratio(times, name, "reference f32")
            quotient = statistics.median(times["reference f32"]) / median
            cells = [f"{m}x{n}", name, f"{1e3 * median:.2f}", share, f"{quotient:.0f}"]
            lines.append(row(cells))
    return lines


def gap_sections(quick: bool) -> tuple[list[str], list[Gap]]:
    """Tables 1 and 2, and the gaps of table 1."""
    listed, mixed = list(listed_cases()), list(stiefel_cases.mixed_cases())
    if quick:
        listed = [case for case in listed if case.point.shape in SIZES[:2]]
        mixed = [case for case in mixed if case.point.shape in SIZES[:2]]
    # Many cases are in both tables, and are solved once.
    every = {case.name: case for case in listed + mixed}
    gaps = list(stiefel_gaps.measure(every.values(), stiefel_gaps.methods()))
    shown, counted = (
        [gap for gap in gaps if gap.case in {case.name for case in cases}]
        for cases in (listed, mixed)
    )
    lines = [
        *("## Certified gap", "", GAP_TEXT, "", *gap_table(shown), ""),
        *("All of these:", "", *summary_table(shown), "", SUMMARY_TEXT, ""),
        *(f"## {len(mixed)} mixed cases", "", MIXED_TEXT, ""),
        *summary_table(counted),
    ]
    return lines, shown


def report(quick: bool, pairs: int, figure: pathlib.Path | None) -> Iterator[str]:
    """Lines of the document, as they are found."""
    yield "# The Stiefel x spectral solver against the published one"
    yield ""
    yield f"jax {jax.__version__}, CPU, one core, float32. Printed by"
    yield ""
    yield "```\n.venv/bin/python benchmarks/stiefel_solver.py\n```"
    if figure is not None:
        yield f"\n![Gap against cost and against scale]({figure.name})"
    lines, gaps = gap_sections(quick)
    yield from ("", *lines)
    if not quick:
        for title, text in stiefel_training.CHAPTERS.items():
            yield f"\n## {title}\n"
            yield from text()
    yield "\n## Scale of the gradient\n"
    yield "Certified gap at Frobenius norms of the gradient from 1e-3 to 1e3.\n"
    m, n = (64, 10) if quick else (128, 64)
    swept = [stiefel_cases.synthetic(kind, m, n) for kind in stiefel_cases.KINDS]
    sweep = list(stiefel_gaps.scale_sweep(swept, SCALES))
    yield from scale_table(sweep)
    yield "\n## FLOPs of matrix products\n"
    yield "Counted in the traced program, loops by their length.\n"
    yield from flop_table()
    if pairs:
        yield "\n## CPU time\n"
        yield (
            f"Median of {pairs} interleaved runs. The reference does {TIMED_STEPS} of "
            f"its 100 steps and counts {100 // TIMED_STEPS} times: all steps are alike."
        )
        yield ""
        yield from time_table(pairs, TIME_SIZES[:2] if quick else TIME_SIZES)
    if figure is not None:
        counted = counted_methods()
        shapes = dict.fromkeys(gap.shape for gap in gaps)
        flops = {(k, s): flops_of(f, s) for k, f in counted.items() for s in shapes}
        stiefel_figure.write_figure(figure, gaps, flops, sweep)


def write_training(table: pathlib.Path | None) -> None:
    """Prints tables 6 and 7, and replaces their chapters."""
    for title, text in stiefel_training.CHAPTERS.items():
        print(f"\n## {title}\n")
        lines = document.print_all(text())
        if table is not None:
            document.write_chapter(table, "", title, lines)


def main() -> None:
    """Prints the document and writes it."""
    parser = argparse.ArgumentParser(description="Gap and cost of the Stiefel solver.")
    parser.add_argument("--quick", action="store_true", help="a few small cases")
    parser.add_argument(
        "--pairs", type=int, default=20, help="runs per time, >= 2, or 0: no table 5"
    )
    parser.add_argument("--figure", type=pathlib.Path, help="PNG to write")
    parser.add_argument("--table", type=pathlib.Path, help="Markdown file to write")
    parser.add_argument("--training", action="store_true", help="tables 6 and 7 alone")
    options = parser.parse_args()
    if options.training:
        write_training(options.table)
        return
    pairs = min(options.pairs, 3) if options.quick else options.pairs
    lines = []
    for line in report(options.quick, pairs, options.figure):
        print(line, flush=True)
        lines.append(line)
    if options.table is not None:
        options.table.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
