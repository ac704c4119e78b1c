"""What a placement costs: floating-point operations and bytes per device.

Operations are those that the kernel states, else those of five steps of Newton–Schulz;
bytes those of one input and one output. Owners are balanced and recipes compared by
them.
"""

import math
from collections.abc import Sequence

from manifold_optax.linalg import newton_schulz_flops
from manifold_optax.matrices._plan import AnyMesh, Exchange, Group, Placement

_FLOPS_PER_BYTE = 2000
"""Operations that a device does while it sends one byte.

About 400 TFLOP/s of real products against 200 GB/s of NVLink on an H100 or H200; a
TPU v5p has about 4600 (459 TFLOP/s against 100 GB/s a link).
"""

_FLOPS_PER_COLLECTIVE = 8 * 10**9
"""Operations that a device does while a collective starts: 20 µs at 400 TFLOP/s.

The order of what NCCL needs for a small message within a node; assumed, not measured.
"""

_MOST_CHUNKS = 8
"""Parts of an exchange at most: each part compiles its kernels anew."""


def sliced_flops(group: Group, mesh: AnyMesh) -> int:
    """Operations of one device for all matrices of a group, each cut in parts."""
    parts = _devices(group.shard_axes, mesh)
    one = newton_schulz_flops(group.columns, group.rows, parts=parts)
    # Of another kernel: as much more or less as for a whole matrix.
    return group.count * one * group.flops // newton_schulz_flops(*group.sizes)


def sliced_bytes(group: Group, placement: Placement) -> float:
    """Bytes that one device sends: Gram matrices in float32, and the way to and fro."""
    parts = _devices(group.shard_axes, placement.mesh)
    reduced = 2 * (parts - 1) / parts * group.columns**2 * 4
    crossing = _devices(group.members[0].columns.names, placement.mesh)
    moved = (crossing - 1) / crossing * group.columns * group.rows / parts
    sizes = _wire_sizes(group, placement)
    return group.count * (reduced + moved * sum(sizes))


def owned_bytes(
    exchange: Exchange, placement: Placement, only: Group | None = None
) -> float:
    """Bytes that one device sends: two all-to-alls, and the gathering over replicas.

    Includes the padding up to the fullest owner; for the group `only` it does not.
    """
    devices = _devices(exchange.shard_axes, placement.mesh)
    replicas = _devices(exchange.replica_axes, placement.mesh)
    there, back = 0.0, 0.0
    for c in exchange.deal.classes:
        sums = [0.0, 0.0]
        for group, count in zip(exchange.groups, c.counts, strict=True):
            if only is None or group is only:
                piece = group.columns * group.rows / devices
                sizes = _wire_sizes(group, placement)
                sums[0] += count * piece * sizes[0]
                sums[1] += count * piece * sizes[1]
        if only is None:
            there, back = max(there, sums[0]), max(back, sums[1])
        else:
            there += sums[0] * c.owners / exchange.deal.owners
            back += sums[1] * c.owners / exchange.deal.owners
    return (devices - 1) * (there + back) + (replicas - 1) * devices * back


def best_chunks(exchange: Exchange, placement: Placement) -> int:
    """Number of parts by which the exchange and the products together take least time.

    In parts the shorter of the two hides behind the longer one, except for one part of
    it; each part starts two more all-to-alls.
    """
    computed = max(
        sum(
            count * group.flops
            for group, count in zip(exchange.groups, own.counts, strict=True)
        )
        for own in exchange.deal.classes
    )
    sent = _FLOPS_PER_BYTE * owned_bytes(exchange, placement)
    long, short = max(computed, sent), min(computed, sent)

    def time(chunks: int) -> float:
        return long + short / chunks + 2 * chunks * _FLOPS_PER_COLLECTIVE

    return min(range(1, _MOST_CHUNKS + 1), key=time)


def prefers_sliced(
    sliced: Sequence[Group], exchange: Exchange, placement: Placement
) -> bool:
    """Whether `sliced`, the same matrices as the one group of `exchange`, cost less."""
    (group,) = exchange.groups
    fullest = max(c.counts[0] for c in exchange.deal.classes)
    whole = fullest * group.flops
    whole += _FLOPS_PER_BYTE * owned_bytes(exchange, placement)
    parts = sum(sliced_flops(part, placement.mesh) for part in sliced)
    parts += _FLOPS_PER_BYTE * sum(sliced_bytes(part, placement) for part in sliced)
    return parts < whole


def _wire_sizes(group: Group, placement: Placement) -> tuple[int, int]:
    """Bytes of an entry on its way there (all inputs) and back (one output)."""
    sizes = [placement.wire_dtype(dtype).itemsize for dtype in group.dtypes[:-1]]
    return max(sizes) * len(sizes), sizes[0]


def _devices(names: Sequence[str], mesh: AnyMesh) -> int:
    return math.prod(mesh.shape[name] for name in names)
