"""Read the rows of an annotation file of any format: JSON, or a table of Hugging Face `datasets`."""

from collections.abc import Iterator

from qwenvl.data.json_rows import OnBadRow, Row, iter_json_rows
from qwenvl.data.table_rows import is_table, iter_table_rows

JSON_SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")


def stream_rows(source: str, on_bad_row: OnBadRow) -> Iterator[Row]:
    """Yield the rows of a JSON file, with one row in memory at a time, or of a table, with one batch.

    `on_bad_row(location, reason)` is called for each row that cannot be read where others can. Raises `UserError`.
    """
    return iter_table_rows(source) if is_table(source) else iter_json_rows(source, on_bad_row)
