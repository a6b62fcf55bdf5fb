"""Convert the LLaVA-Rad annotations of MIMIC-CXR, whose findings and reasons were extracted by GPT-4 or by rules.

Format: "LLaVA-Rad MIMIC-CXR Annotations" on PhysioNet (Zambrano Chaves et al. 2025), the files
`chat_train|dev|test_MIMIC_CXR_all_gpt4extract_rulebased_v1.json`. As in their evaluation, the test split has only
rows extracted by rules.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from qwenvl.data.json_rows import iter_json_rows
from qwenvl.errors import UserError
from qwenvl.medical.mimic.studies import Converted, MimicOptions
from qwenvl.medical.mimic.tables import FRONTAL
from qwenvl.medical.records import DroppedError, Prior, build_record, context_lines, target_text, user_text

_SPLIT_NAMES = {"train": "train", "dev": "validate", "valid": "validate", "validate": "validate", "test": "test"}
_FILE_NAME = re.compile(r"chat_(train|dev|test)_")
_IMAGE = re.compile(r"p\d\d/p(\d+)/s(\d+)/([^/]+)\.jpg")
_ROWS_PER_PART = 2000
_FIELDS = ("image", "conversations")


def convert_annotations(paths: list[Path], options: MimicOptions, allow_outside: bool) -> Iterator[Converted]:
    """Convert LLaVA-Rad annotation files; each file is read as a stream, with one result per `_ROWS_PER_PART` rows.

    Raises `UserError` with file and row for a file in another format.
    """
    for path in paths:
        part = Converted()
        for _, index, row in iter_json_rows(str(path), partial(_refuse_row, path)):
            location = f"{path} row {index}"
            split = _split(location, path, _check_row(location, row))
            part.studies += 1
            try:
                record = _record(row, split, options, allow_outside)
                part.records.append((split, json.dumps(record, ensure_ascii=False)))
            except DroppedError as reason:
                hit = _IMAGE.search(row["image"])
                part.dropped.append((int(hit[1]) if hit else 0, int(hit[2]) if hit else 0, str(reason)))
            if part.studies == _ROWS_PER_PART:
                yield part
                part = Converted()
        yield part


def _refuse_row(path: Path, location: str, reason: str) -> None:
    raise UserError(f"{location}: {reason}", path=path)


def _check_row(location: str, row: Any) -> Mapping[str, Any]:
    if not isinstance(row, dict) or any(name not in row for name in _FIELDS):
        found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise UserError(f"{location}: not a LLaVA-Rad annotation: expected image and conversations, found {found}")
    if not isinstance(row["image"], str):
        raise UserError(f"{location}: its image is not one path in quotes; give the published file")
    turns = row["conversations"]
    if not isinstance(turns, list) or len(turns) < 2 or not all(isinstance(turn, dict) for turn in turns):
        raise UserError(f"{location}: conversations is not a list of a question and an answer; give the published file")
    return row


def _split(location: str, path: Path, row: Mapping[str, Any]) -> str:
    name = row.get("split") or (_FILE_NAME.match(path.name) or ("", ""))[1]
    if not isinstance(name, str) or name not in _SPLIT_NAMES:
        raise UserError(f"{location}: its split is unknown; keep the published file name, chat_train|dev|test_...json")
    return _SPLIT_NAMES[name]


def _record(row: Mapping[str, Any], split: str, options: MimicOptions, allow_outside: bool) -> dict[str, Any]:
    if split == "test" and row.get("generate_method", "rule-based") != "rule-based":
        raise DroppedError("test row not extracted by rules")
    view = row.get("view") if isinstance(row.get("view"), str) else ""
    if options.views.kind == "frontal" and view not in FRONTAL:
        raise DroppedError("no frontal image")
    findings, reason = row["conversations"][1].get("value"), row.get("reason")
    sections = {"findings": findings if isinstance(findings, str) else ""}
    if isinstance(reason, str):
        sections["indication"] = reason
    answer = target_text(sections, options.report)
    path = _image_path(row["image"], options.image_root, allow_outside)
    if options.check_files and not _is_nonempty_file(os.path.join(options.image_root, path)):
        raise DroppedError("no usable image file")
    identity: dict[str, Any] = {"id": str(row.get("id", path)), "view": [view], "split": split}
    hit = _IMAGE.fullmatch(path)
    if hit:
        identity |= {"subject_id": int(hit[1]), "study_id": int(hit[2]), "dicom_id": [hit[3]]}
    user = user_text(1, context_lines(sections, options.report), Prior(), options.report)
    return build_record(identity, [os.path.join(options.prefix, path)], user, answer)


def _image_path(path: str, root: str, allow_outside: bool) -> str:
    """Return an image path relative to `root`; raises `DroppedError` for one that leads out of it by .. or a link."""
    path = os.path.normpath(path.removeprefix("mimic/"))
    if "\0" in path:
        raise DroppedError("no usable image file")
    if not allow_outside and not os.path.realpath(os.path.join(root, path)).startswith(root + os.sep):
        raise DroppedError("image path leads out of --jpg_root (see --allow_outside)")
    return path


def _is_nonempty_file(path: str) -> bool:
    try:
        return os.stat(path).st_size > 0
    except OSError:
        return False
