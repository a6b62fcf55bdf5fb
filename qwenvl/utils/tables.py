"""Format rows of text as aligned tables; standard library only."""

from collections.abc import Iterable, Sequence
from typing import Any


def format_table(rows: Iterable[Sequence[str]], *, align: str = "<>", has_header: bool = True, indent: int = 0) -> str:
    """Align rows of text into columns.

    Args:
        rows: The cells of each row; all rows have the same number of cells.
        align: "<" (left) or ">" (right) for each column; the last one also applies to all further columns.
        has_header: Whether the first row is a header, which gets a rule below it.
        indent: The number of spaces before each line.
    """
    cells = [tuple(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    sides = align + align[-1] * len(widths)
    lines = [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=False)).rstrip()
        for row in cells
    ]
    if has_header:
        lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(" " * indent + line for line in lines)


def format_summary(title: str, rows: Iterable[tuple[str, Any]]) -> str:
    """Return a title above a table of names and values; integers get thousands separators."""
    cells = [(name, f"{value:,}" if isinstance(value, int) else str(value)) for name, value in rows]
    table = format_table(cells, has_header=False, indent=2)
    return f"{title}\n{table}" if table else title
