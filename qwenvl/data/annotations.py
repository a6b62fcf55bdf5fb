"""Owns the step from an annotation file to checked records, and the account of the samples that could not be used."""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import unquote, urlparse

from qwenvl.data.json_rows import Row, read_rows
from qwenvl.errors import UserError

logger = logging.getLogger(__name__)

PLACEHOLDERS = {"image": "<image>", "video": "<video>"}
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
# Words that the chat template and the processor write themselves; in a text they would pass for structure.
RESERVED_TOKENS = re.compile(r"<\|(?:im_start|im_end|endoftext|vision_start|vision_end|image_pad|video_pad)\|>")
# Options that qwen-vl-utils reads from a part of a message. Here such settings belong to the run.
PART_OPTIONS = frozenset(
    ("min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width")
    + ("fps", "nframes", "min_frames", "max_frames", "video_start", "video_end")
)
STAT_THREADS = 16
STAT_CHUNK = 512


@dataclass(frozen=True, slots=True)
class Turn:
    """What one speaker says; `text` holds one `<image>` or `<video>` for each medium of the turn.

    `thought` is reasoning that the record gives apart from the text. A turn that is not `supervised` is context only.
    `tool_calls` is a JSON list in the OpenAI form.
    """

    role: Literal["system", "user", "assistant", "tool"]
    text: str
    thought: str | None = None
    supervised: bool = True
    tool_calls: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One training sample: `images` and `videos` are absolute paths in the order of their placeholders.

    `tools` is the JSON list of functions that the model may call. `row` counts rows (or JSONL lines, or the items of a
    pack) from 0; `place` says it as a reader of the file counts.
    """

    source: str
    row: int
    turns: tuple[Turn, ...]
    images: tuple[str, ...] = ()
    videos: tuple[str, ...] = ()
    place: str | None = None
    tools: str | None = None

    @property
    def where(self) -> str:
        """File and place of this record, such as "train.json row 12" or "train.jsonl line 13"."""
        place = f"row {self.row}" if self.place is None else self.place
        return f"{self.source} {place}"


@dataclass(frozen=True)
class Annotations:
    """The checked records of one or several files; `packs` lists indices into `records` when the file had packs."""

    records: list[Record]
    packs: list[list[int]] | None = None


@dataclass(frozen=True, slots=True)
class BadSample:
    """A sample that cannot be used: where it stands, the file it is about (if any) and why."""

    where: str
    path: str | None
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}" if self.path is None else f"{self.where}: {self.path}: {self.reason}"


@dataclass
class BadSampleLedger:
    """Applies `--bad_sample_policy`: "error" ends the run at the first bad sample, "skip" after `max_bad_samples`."""

    policy: Literal["error", "skip"] = "error"
    max_bad_samples: int = 100
    samples: list[BadSample] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Number of bad samples met so far."""
        return len(self.samples)

    def report(self, bad: BadSample) -> None:
        """Note a bad sample, once however often it is met; raises `UserError` if the policy allows none, or no more."""
        if any(bad.where == known.where for known in self.samples):
            return
        self.samples.append(bad)
        if self.policy == "error":
            raise UserError(f"{bad} (or leave such samples out with --bad_sample_policy skip)")
        logger.warning("bad sample left out: %s", bad)
        if self.count > self.max_bad_samples:
            raise UserError(
                f"{self.count} bad samples, more than --max_bad_samples {self.max_bad_samples}; correct the data "
                f"or raise the limit; the last one: {bad}"
            )


class _FlawError(Exception):
    """Why a record cannot be used, and the medium it is about."""

    def __init__(self, reason: str, path: str | None = None):
        super().__init__(reason)
        self.path = path


def read_annotations(annotation_path: str, media_root: str, ledger: BadSampleLedger) -> Annotations:
    """Read a JSON or JSONL file into checked records; media are looked for (not decoded) under `media_root`.

    A list among the rows is a pack of records. A bad record goes to `ledger`, and under "skip" it is missing from the
    result and from its pack. Raises `UserError` for a file that cannot be used at all or that leaves no record.
    """
    source = str(annotation_path)
    rows = read_rows(source, lambda place, reason: ledger.report(BadSample(f"{source} {place}", None, reason)))
    packed = any(isinstance(row.value, list) for row in rows)
    root = os.path.abspath(media_root)
    drafts: list[tuple[int, Record]] = []
    for pack, row in enumerate(rows):
        for item in _items(row):
            try:
                drafts.append((pack, _record(source, item, root)))
            except _FlawError as flaw:
                ledger.report(BadSample(f"{source} {item.place}", flaw.path, str(flaw)))
    missing = _missing_files({path for _, record in drafts for path in (*record.images, *record.videos)})
    records: list[Record] = []
    packs: dict[int, list[int]] = {}
    for pack, record in drafts:
        lost = next((path for path in (*record.images, *record.videos) if path in missing), None)
        if lost is not None:
            ledger.report(
                BadSample(record.where, lost, f"no such file (data_path is {media_root!r}): correct the path")
            )
            continue
        packs.setdefault(pack, []).append(len(records))
        records.append(record)
    if not records:
        raise UserError(f"{source}: no usable record among {len(rows)} rows; give at least one")
    return Annotations(records, list(packs.values()) if packed else None)


def _items(row: Row) -> Iterator[Row]:
    if not isinstance(row.value, list):
        yield row
        return
    for index, value in enumerate(row.value):
        yield Row(f"{row.place} item {index}", index, value)


def _missing_files(paths: Iterable[str]) -> set[str]:
    """Return the paths that are no files; threads, because on a network drive each question takes a round trip."""
    ordered = sorted(paths)
    chunks = [ordered[start : start + STAT_CHUNK] for start in range(0, len(ordered), STAT_CHUNK)]
    with ThreadPoolExecutor(STAT_THREADS) as pool:
        found = pool.map(lambda chunk: [path for path in chunk if not os.path.isfile(path)], chunks)
        return {path for part in found for path in part}


def _record(source: str, row: Row, media_root: str) -> Record:
    if not isinstance(row.value, dict):
        raise _FlawError(f"got a {type(row.value).__name__}, expected an object with `conversations` or `messages`")
    media = {kind: _listed_media(row.value, kind) for kind in PLACEHOLDERS}
    in_parts: dict[str, list[str]] = {kind: [] for kind in PLACEHOLDERS}
    turns = [_turn(turn, number, in_parts) for number, turn in enumerate(_raw_turns(row.value))]
    for kind, paths in in_parts.items():
        if paths and media[kind]:
            raise _FlawError(f"{kind}s given both in the record and in the parts of its messages: keep one of the two")
        media[kind] += paths
    _check_turns(turns)
    turns = _with_placeholders(turns, media)
    images, videos = (tuple(_absolute(path, media_root) for path in media[kind]) for kind in ("image", "video"))
    return Record(source, row.index, tuple(turns), images, videos, row.place)


def _listed_media(value: dict[str, Any], kind: str) -> list[str]:
    """Return the media under `image` or `images` (`video` or `videos`): a path, a list of paths, or nothing."""
    given = [value[key] for key in (kind, f"{kind}s") if value.get(key)]
    if len(given) > 1:
        raise _FlawError(f"both `{kind}` and `{kind}s` are given: keep one of the two")
    paths = given[0] if given else []
    paths = [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise _FlawError(f"`{kind}` is {_shown(given[0])}, expected a path or a list of paths")
    return list(paths)


def _raw_turns(value: dict[str, Any]) -> list[Any]:
    given = [key for key in ("conversations", "messages") if key in value]
    if len(given) != 1:
        found = "both" if given else f"only {_shown(sorted(value))}"
        raise _FlawError(f"expected either `conversations` or `messages`, got {found}")
    turns = value[given[0]]
    if not isinstance(turns, list) or not turns:
        raise _FlawError(f"`{given[0]}` is {_shown(turns)}, expected a list of turns with at least one answer")
    return turns


def _turn(raw: Any, number: int, in_parts: dict[str, list[str]]) -> Turn:
    """Check one turn and add the media that its parts bring to `in_parts`."""
    if not isinstance(raw, dict):
        raise _FlawError(f"turn {number} is {_shown(raw)}, expected an object with `from` and `value`")
    role = raw.get("from", raw.get("role"))
    if not isinstance(role, str) or role not in ROLES:
        raise _FlawError(f"turn {number} has the role {_shown(role)}, expected one of {', '.join(ROLES)}")
    content = raw.get("value", raw.get("content"))
    if isinstance(content, list):
        content = "".join(_part_text(part, number, in_parts) for part in content)
    if not isinstance(content, str):
        raise _FlawError(f"turn {number} has the content {_shown(content)}, expected a text")
    return Turn(ROLES[role], content.strip() if ROLES[role] == "assistant" else content)


def _part_text(part: Any, number: int, in_parts: dict[str, list[str]]) -> str:
    """Return a part's text, or the placeholder of its medium, whose path (if it has one) is added to `in_parts`."""
    part_type = part.get("type") if isinstance(part, dict) else None
    if part_type == "text" and isinstance(part.get("text"), str):
        return part["text"]
    kind = part_type.removesuffix("_url") if isinstance(part_type, str) else None
    if kind not in PLACEHOLDERS:
        raise _FlawError(f"turn {number} has the part {_shown(part)}, expected type text, image, image_url or video")
    options = sorted(key for key in PART_OPTIONS if part.get(key) is not None)
    if options:
        raise _FlawError(f"turn {number} sets {', '.join(options)} on one part; set it for the run, by its flag")
    medium = next((part[key] for key in (part_type, kind, "path", "url") if part.get(key)), None)
    if isinstance(medium, dict):
        medium = medium.get("url", medium.get("path"))
    if isinstance(medium, str):
        in_parts[kind].append(medium)
    elif medium is not None:
        raise _FlawError(f"turn {number} has the {kind} {_shown(medium)}, expected a path")
    return PLACEHOLDERS[kind]


def _check_turns(turns: list[Turn]) -> None:
    roles = Counter(turn.role for turn in turns)
    if not roles["assistant"]:
        raise _FlawError("no assistant turn, so there is nothing to learn: add a turn from gpt (or assistant)")
    if not roles["user"]:
        raise _FlawError("no user turn: add one from human (or user) before the answer")
    for number, turn in enumerate(turns):
        if turn.role == "system" and number > 0:
            raise _FlawError(f"turn {number} is a system turn, but only the first turn may be one")
        if turn.role == "assistant" and not turn.text:
            raise _FlawError(f"turn {number} is an empty answer: write it or delete the record")
        found = next((mark for mark in PLACEHOLDERS.values() if mark in turn.text and turn.role != "user"), None)
        if found:
            kind = "an answer" if turn.role == "assistant" else "the system prompt"
            raise _FlawError(f"turn {number}, {kind}, holds the placeholder {found}: only user turns may show media")
        if not _is_unicode(turn.text):
            raise _FlawError(
                f"turn {number} holds half of a surrogate pair, which no tokenizer takes: correct the text"
            )
        reserved = RESERVED_TOKENS.search(turn.text)
        if reserved:
            raise _FlawError(f"turn {number} holds {reserved[0]}, which the chat template writes itself: delete it")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _with_placeholders(turns: list[Turn], media: dict[str, list[str]]) -> list[Turn]:
    """Return the turns with a placeholder for each medium: where a kind has none, all go before the first user text."""
    missing = ""
    for kind, mark in PLACEHOLDERS.items():
        marks = sum(turn.text.count(mark) for turn in turns)
        if marks == 0:
            missing += mark * len(media[kind])
        elif marks != len(media[kind]):
            raise _FlawError(f"{marks} {mark} in the text but {len(media[kind])} {kind} file(s): make them equal")
    if not missing:
        return turns
    first = next(number for number, turn in enumerate(turns) if turn.role == "user")
    return [*turns[:first], Turn("user", missing + turns[first].text), *turns[first + 1 :]]


def _absolute(path: str, media_root: str) -> str:
    if path.startswith("file://"):
        path = unquote(urlparse(path).path)
    elif "://" in path or path.startswith("data:"):
        raise _FlawError("media are read from files only: download it and give the path of the file", path[:80])
    return os.path.normpath(os.path.join(media_root, path))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
