"""Tables in Markdown."""

import statistics
from collections.abc import Mapping, Sequence


def format_rows(rows: Sequence[Mapping[str, str]]) -> str:
    """Formats rows as a Markdown table with aligned columns.

    Args:
        rows: At least one; all have the columns of the first, in its order.

    Returns:
        The table, without a newline at its end.
    """
    columns = [list(rows[0]), *([*row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*columns, strict=True)]
    lines = [_line(column, widths) for column in columns]
    lines.insert(1, _line(["-" * width for width in widths], widths))
    return "\n".join(lines)


def format_spread(values: Sequence[float], *, digits: int = 2) -> str:
    """Formats the mean, and ± the sample standard deviation for several values."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {statistics.stdev(values):.{digits}f}"


def _line(entries: Sequence[str], widths: Sequence[int]) -> str:
    padded = (text.ljust(width) for text, width in zip(entries, widths, strict=True))
    return f"| {' | '.join(padded)} |"
