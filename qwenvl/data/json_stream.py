"""Read a JSON list of a tool's input record by record, so that a file larger than memory can be converted."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qwenvl.data.json_items import JsonItems, MalformedListError
from qwenvl.data.json_rows import whole_number
from qwenvl.errors import UserError

_CHUNK = 1 << 20


def iter_json_list(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (index from 0, value) for each item of the JSON list in `path`; holds one item and one chunk at a time.

    Raises `UserError` for a file that cannot be read, is no UTF-8, is no list, or is malformed (naming the item).
    """
    decode = json.JSONDecoder(parse_int=whole_number).raw_decode
    try:
        with open(path, encoding="utf-8-sig") as stream:
            yield from enumerate(JsonItems(stream, decode, _CHUNK))
    except MalformedListError as error:
        if error.index is None:
            raise UserError(f"not a JSON list; {error}", path=path) from None
        raise UserError(
            f"item {error.index} of the list is malformed JSON: {error}; correct the file there", path=path
        ) from None
    except OSError as error:
        raise UserError(f"cannot read it ({error.strerror}); give the path of a JSON file", path=path) from None
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text ({error.reason}); save the file as UTF-8", path=path) from None
