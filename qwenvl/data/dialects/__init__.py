"""Convert a row of any known dialect to one neutral form: `to_conversation`.

A dialect is a form of records (`forms`); its turns (`turns`, `parts`), media (`media`) and functions (`tools`) are
read in the same way in all of them. Keys that are not read are reported (`unread`).
"""

from typing import Any

from qwenvl.data.dialects.forms import find_form
from qwenvl.data.dialects.media import listed_media, read_fps
from qwenvl.data.dialects.neutral import (
    PLACEHOLDERS,
    Conversation,
    InvalidRecordError,
    Medium,
    UnreadMediumError,
    format_value,
    is_missing,
)
from qwenvl.data.dialects.objects import has_object_marks
from qwenvl.data.dialects.parts import PartMedia
from qwenvl.data.dialects.tools import read_tools
from qwenvl.data.dialects.turns import ROLES, join_calls, read_turn
from qwenvl.data.dialects.unread import note_unread
from qwenvl.data.records import Turn

__all__ = ["PLACEHOLDERS", "ROLES", "Conversation", "InvalidRecordError", "UnreadMediumError", "to_conversation"]

_AUDIO_KEYS = ("audio", "audios")
_PREFERENCE_KEYS = ("chosen", "rejected", "rejected_response", "rejected_messages", "rejected_images", "kto_tag")


def to_conversation(row: Any) -> Conversation:
    """Return the neutral form of a row; raises `InvalidRecordError` for a row of no known form.

    Texts, and whether media and placeholders match, are not checked here.
    """
    if not isinstance(row, dict):
        expected = "an object with `conversations` or `messages`"
        raise InvalidRecordError(f"got a {type(row).__name__}, expected {expected}")
    form = find_form(row)
    unread: list[str] = []
    in_parts = PartMedia()
    turns = [read_turn(turn, number, in_parts, unread) for number, turn in enumerate(form.turns(row))]
    if len(turns) > 2:
        turns = join_calls(turns)
    conversation = Conversation(turns, unread=unread)
    for kind in PLACEHOLDERS:
        own = _record_media(row, kind)
        conversation.media[kind] = _merge_media(own, in_parts.slots[kind], kind) if in_parts.slots[kind] else own
    if row.keys() - form.keys - {"image", "id"}:
        _read_other_keys(row, form.read, conversation)
    return conversation


def _read_other_keys(row: dict[str, Any], read: frozenset[str], conversation: Conversation) -> None:
    for key in _AUDIO_KEYS:
        if not is_missing(row.get(key)):
            raise InvalidRecordError(
                f"`{key}` is given, but the model takes no audio: delete it, or leave the record out"
            )
    for key in _PREFERENCE_KEYS:
        if not is_missing(row.get(key)):
            raise InvalidRecordError(
                f"`{key}` is given: preference pairs are not supported; keep only the chosen answer"
            )
    note_unread(row, read, "record", conversation.unread, has_media=any(conversation.media.values()))
    conversation.tools = read_tools(_offered_functions(row))
    _add_system(row.get("system"), conversation)
    if not is_missing(row.get("objects")):
        if has_object_marks(conversation.turns):
            conversation.objects = row["objects"]
        else:
            conversation.unread.append("`objects`")
    fps = row.get("fps")
    conversation.fps = [read_fps(each) for each in fps] if isinstance(fps, list) else read_fps(fps)


def _offered_functions(row: dict[str, Any]) -> Any:
    """Return the functions that a record offers: `tools`, or `functions` as in OpenAI's older records."""
    given = [key for key in ("tools", "functions") if not is_missing(row.get(key))]
    if len(given) > 1:
        raise InvalidRecordError("both `tools` and `functions` are given: keep one of the two")
    return row[given[0]] if given else None


def _record_media(row: dict[str, Any], kind: str) -> list[Medium]:
    given = [key for key in (kind, f"{kind}s") if key in row and not is_missing(row[key])]
    if not given:
        return []
    if len(given) > 1:
        raise InvalidRecordError(f"both `{kind}` and `{kind}s` are given: keep one of the two")
    return listed_media(row[given[0]], kind)


def _merge_media(own: list[Medium], slots: list[Medium | int | None], kind: str) -> list[Medium]:
    """Return the media in the order of the parts, which contain a medium, give the index of one, or take the next."""
    numbers = [slot for slot in slots if isinstance(slot, int)]
    if len(numbers) == len(slots):
        if max(numbers) >= len(own):
            raise InvalidRecordError(f"a part shows the {kind} with index {max(numbers)}, but there are {len(own)}")
        unused = sorted(set(range(len(own))) - set(numbers))
        if unused:
            raise InvalidRecordError(f"no part shows the {kind} with index {unused[0]}: add one, or delete the {kind}")
        return [own[number] for number in numbers]
    given = [slot for slot in slots if slot is not None]
    if numbers or (given and len(given) < len(slots)):
        raise InvalidRecordError(
            f"some parts give the index of their {kind} and others do not: give it in all or in none"
        )
    if given and own:
        raise InvalidRecordError(
            f"{kind}s given both in the record and in the parts of its messages: keep one of the two"
        )
    return given or own


def _add_system(system: Any, conversation: Conversation) -> None:
    if is_missing(system):
        return
    if not isinstance(system, str):
        raise InvalidRecordError(f"`system` is {format_value(system)}, expected a text")
    first = conversation.turns[0]
    if first.role == "system" and first.text != system:
        raise InvalidRecordError("a system prompt is given both in `system` and as the first turn: keep one of the two")
    if first.role != "system":
        conversation.turns.insert(0, Turn("system", system))
