"""Read the rows of an annotation file of any kind: JSON, or a table of Hugging Face `datasets`."""

from collections.abc import Iterable, Iterator

from qwenvl.data.json_rows import OnBadRow, Row, iter_json_rows, read_json_rows
from qwenvl.data.table_rows import is_table, iter_table_rows

JSON_SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")


def read_rows(source: str, on_bad_row: OnBadRow) -> Iterable[Row]:
    """Return the rows of a JSON file (as a list), or of a table (one after another, a batch in memory at a time).

    `on_bad_row(place, reason)` is called for each row that cannot be read where others can. Raises `UserError`.
    """
    return iter_table_rows(source) if is_table(source) else read_json_rows(source, on_bad_row)


def stream_rows(source: str, on_bad_row: OnBadRow) -> Iterator[Row]:
    """Yield the rows that `read_rows` returns, holding one at a time, or one batch of a table; the same errors."""
    return iter_table_rows(source) if is_table(source) else iter_json_rows(source, on_bad_row)
