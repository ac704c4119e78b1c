"""How many matrices are computed at once."""

import pytest

from manifold_optax import programs
from manifold_optax.matrices import _kernel

# pyright: reportPrivateUsage=false

# Working memory for one copy of each matrix at once.
MEMORY = _kernel._CHUNK_BYTES // _kernel._KERNEL_COPIES


@pytest.mark.parametrize(
    ("count", "matrix_bytes", "expected"),
    [
        # All of them, as many as fit, and never none.
        (12, 4 * 1024, 12),
        (12, MEMORY // 5, 5),
        (12, MEMORY // 1, 1),
        (12, 3 * MEMORY, 1),
    ],
)
def test_accelerators_take_as_many_as_the_memory_allows(count, matrix_bytes, expected):
    with programs.arithmetic_for("tpu"):
        assert _kernel.chunk_size(count, matrix_bytes) == expected


def test_a_cpu_takes_one_at_a_time():
    with programs.arithmetic_for("cpu"):
        assert _kernel.chunk_size(12, 4 * 1024) == 1
