"""What a compiled program sends between devices, and what it multiplies."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

from manifold_optax.programs._program import (
    arrays,
    elements,
    Instruction,
    Measure,
    Program,
    read,
    Tally,
    total,
    unknown_loops,
)

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)

PRODUCTS = ("convolution", "ragged-dot", "scaled-dot")
"""Instructions that multiply matrices and are not `dot`; they are not counted."""


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of one kind: how many one device takes part in, and what it sends."""

    count: int
    wire: float
    """Bytes that one device sends."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """All collectives of one kind, those inside loops apart."""

    name: str
    outside: Traffic
    """Executed once per call of the program."""
    inside: Traffic
    """Under a `while`, already multiplied by the trip counts."""


@dataclasses.dataclass(frozen=True)
class Collectives:
    """Collectives that one device executes in one call of a program; print it."""

    kinds: tuple[Kind, ...]
    """The kinds that occur."""
    unknown_loops: tuple[str, ...] = ()
    """Loops with collectives whose trip count XLA does not know: counted once."""

    def count(self, kind: str | None = None) -> int:
        """How many collectives; of one `kind`, such as `"all-to-all"`, or in all."""
        return sum(k.outside.count + k.inside.count for k in self._of(kind))

    def wire(self, kind: str | None = None) -> float:
        """Bytes that one device sends; of one `kind` or in all."""
        return sum((k.outside.wire + k.inside.wire for k in self._of(kind)), 0.0)

    @property
    def inside_loops(self) -> int:
        """How many collectives are executed inside loops."""
        return sum(kind.inside.count for kind in self.kinds)

    def __str__(self) -> str:
        if not self.kinds:
            return "no collectives"
        rows = [["", "outside loops", "wire bytes", "inside loops", "wire bytes"]]
        for kind in self.kinds:
            parts = (kind.outside, kind.inside)
            cells = [f"{n:,.0f}" for part in parts for n in (part.count, part.wire)]
            rows.append([kind.name, *cells])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = []
        for first, *cells in rows:
            right = (f"{c:>{w}}" for c, w in zip(cells, widths[1:], strict=True))
            lines.append("  ".join((f"{first:<{widths[0]}}", *right)))
        if self.unknown_loops:
            names = ", ".join(self.unknown_loops)
            lines.append(f"trip count unknown, counted once: {names}")
        return "\n".join(lines)

    def _of(self, kind: str | None) -> list[Kind]:
        if kind is not None and kind not in KINDS:
            # A misspelt kind must not pass for one that does not occur.
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}.")
        return [k for k in self.kinds if kind in (None, k.name)]


def collectives(compiled: Any) -> Collectives:
    """Counts the collectives of a compiled program, and the bytes that they send.

    Read from the optimized HLO text: what the entry reaches through calls, fusions,
    loops and conditionals. A body counts as often as its loop runs; of a conditional,
    the branch that sends the most. Wire bytes are those one device sends on a ring of
    the `G` devices of its group: `(G-1)/G · output` for an all-gather, `(G-1) · output`
    for a reduce-scatter, `2(G-1)/G · size` for an all-reduce, `(G-1)/G · size` for an
    all-to-all (ragged: of its output buffer, an upper bound), and the size for a
    permutation or a broadcast. Sends between hosts (`send`, `recv`) are not counted.

    Args:
        compiled: what `jax.jit(f).lower(...).compile()` returns, or anything else whose
            `as_text()` is HLO.

    Returns:
        Counts and wire bytes by kind, inside loops and outside them.

    Raises:
        TypeError: for a lowered program, which shows no collectives yet.
        ValueError: for text other than one HLO module.

    Example:
        >>> compiled = jax.jit(jnp.sin).lower(1.0).compile()
        >>> print(collectives(compiled))
        no collectives
        >>> collectives(compiled).count("all-reduce")
        0
    """
    tally = total(read(compiled), _traffic, _wire)
    kinds = []
    for name in KINDS:
        outside, inside = (
            Traffic(
                int(tally.get((_COUNT + name, flag), 0)),
                float(tally.get((_WIRE + name, flag), 0)),
            )
            for flag in (False, True)
        )
        if outside.count or inside.count:
            kinds.append(Kind(name, outside, inside))
    return Collectives(tuple(kinds), unknown_loops(tally))


def dot_flops(compiled: Any, *, unknown_trips: int | None = None) -> int:
    """Counts the floating-point operations of all matrix products of one device.

    `2 · output entries · contracted entries` for each `dot`, times the trip counts of
    its loops; of a conditional, the branch with the most. What XLA rewrote into another
    instruction (a product of two vectors, as a sum) is no product any more.

    Args:
        compiled: what `jax.jit(f).lower(...).compile()` returns.
        unknown_trips: how often loops ran whose trip count XLA does not know, as of
            a `jax.lax.while_loop` with a tolerance. `None`: products in one are
            an error.

    Returns:
        The number of operations in one call of the program.

    Raises:
        TypeError: for a lowered program.
        ValueError: for products in a loop of unknown length, and for instructions that
            multiply matrices in a way that their text does not tell: convolutions, and
            library calls without dimension numbers.

    Example:
        >>> x = jnp.ones((8, 4))
        >>> dot_flops(jax.jit(lambda x: x.T @ x).lower(x).compile())
        256
    """
    tally = total(read(compiled), _flops, _all_flops, unknown_trips)
    loops = unknown_loops(tally)
    if loops and unknown_trips is None:
        raise ValueError(
            f"There are matrix products in {', '.join(loops)}, whose trip count XLA "
            "does not know; say with unknown_trips how often to count them."
        )
    return int(_all_flops(tally))


def product_flops() -> tuple[Measure, Callable[[Tally], int | float]]:
    """Measure and weight by which `dot_flops` counts."""
    return _flops, _all_flops


_COUNT, _WIRE, _FLOPS = "count of ", "wire of ", "flops"


def _wire(tally: Tally) -> int | float:
    return sum(n for (what, _), n in tally.items() if what.startswith(_WIRE))


def _all_flops(tally: Tally) -> int | float:
    return sum(tally.get((_FLOPS, flag), 0) for flag in (False, True))


def _traffic(
    program: Program, computation: dict[str, Instruction], instruction: Instruction
) -> Tally:
    del computation
    kind = instruction.operation
    if kind not in KINDS:
        return {}
    result = instruction.result
    if instruction.starts and kind != "all-reduce":
        # The result of the first half is (operands, results, contexts…); only that of
        # an all-reduce is the results alone.
        result = elements(result)[1]
    size = sum(array.bytes for array in arrays(result))
    if kind == "collective-permute":
        wire = size * _permutes(instruction.attributes)
    else:
        wire = size * _share(kind, _group(program, instruction))
    return {(_COUNT + kind, False): 1, (_WIRE + kind, False): wire}


def _share(kind: str, group: int) -> int | float:
    """Bytes that one device sends on a ring of `group`, per byte of the result."""
    if kind == "all-reduce":
        return 2 * (group - 1) / group
    if kind == "reduce-scatter":
        return group - 1
    if kind == "collective-broadcast":
        return group > 1
    return (group - 1) / group


def _permutes(attributes: str) -> bool:
    """Whether any device sends to another one."""
    pairs = attributes.partition("source_target_pairs=")[2]
    return any(a != b for a, b in re.findall(r"\{(\d+),(\d+)\}", pairs))


def _group(program: Program, instruction: Instruction) -> int:
    """Number of devices that take part together, in the three ways XLA writes it."""
    text = instruction.attributes
    # [groups,size]<=[devices], optionally transposed.
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]<=", text):
        return int(found[1])
    # mesh['x'=2,'y'=4], device_ids=(…) {'x','y':(2)2}: whole axes, or a part of one.
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{('[^}]*)\}", text):
        sizes = dict(re.findall(r"'([^']*)'=(\d+)", found[1]))
        parts = re.findall(r"'([^']*)'(?::\(\d+\)(\d+))?", found[2])
        return math.prod(int(part or sizes[name]) for name, part in parts)
    # {{0,1},{2,3}}, or {} for one group of all.
    if found := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", text):
        groups = re.findall(r"\{([\d,]*)\}", found[1])
        sizes = [len(group.split(",")) for group in groups if group]
        return max(sizes, default=program.devices)
    raise ValueError(
        f"Cannot read the replica groups of {instruction.name!r}: {text.strip(', ')!r}."
    )


def _flops(
    program: Program, computation: dict[str, Instruction], instruction: Instruction
) -> Tally:
    del program
    if instruction.operation == "dot":
        axes = re.search(r"\blhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
    elif instruction.operation == "custom-call":
        target = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
        if not target or not re.search(r"gemm|matmul|\$conv", target[1]):
            return {}
        axes = re.search(
            r'"lhs_contracting_dimensions":\s*\[([^\]]*)\]', instruction.attributes
        )
        if axes is None:
            raise ValueError(_unreadable(instruction, target[1]))
    elif instruction.operation in PRODUCTS:
        raise ValueError(_unreadable(instruction, instruction.operation))
    else:
        return {}
    left = arrays(computation[instruction.operands[0]].result)[0]
    contracted = [int(axis) for axis in re.findall(r"\d+", axes[1] if axes else "")]
    # A library call returns its work space after the product.
    entries = math.prod(arrays(instruction.result)[0].sizes)
    amount = 2 * entries * math.prod(left.sizes[axis] for axis in contracted)
    return {(_FLOPS, False): amount}


def _unreadable(instruction: Instruction, what: str) -> str:
    return (
        f"{instruction.name!r} is a {what}, whose products cannot be counted from its "
        "text; compile the part without it, or for a backend that emits dot."
    )
