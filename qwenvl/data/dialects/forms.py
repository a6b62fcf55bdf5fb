"""The known forms of records, each identified by its required keys.

A form is a function from a row to its raw turns, which `read_turn` parses.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from qwenvl.data.dialects.neutral import InvalidRecordError, format_value, is_missing

# Keys that every form may have.
SHARED_KEYS = frozenset(("image", "images", "video", "videos", "system", "tools", "functions", "objects", "fps"))


class Form(NamedTuple):
    """A form of records: its required keys, all keys that it reads (including shared ones), and its reader of turns."""

    keys: tuple[str, ...]
    read: frozenset[str]
    turns: Callable[[dict[str, Any]], list[Any]]


FORMS: list[Form] = []

_Turns = Callable[[dict[str, Any]], list[Any]]


def _form(*keys: str, also: tuple[str, ...] = ()) -> Callable[[_Turns], _Turns]:
    def register(turns: _Turns) -> _Turns:
        FORMS.append(Form(keys, SHARED_KEYS | {*keys, *also}, turns))
        return turns

    return register


def find_form(row: dict[str, Any]) -> Form:
    """Return the form of a row; raises `InvalidRecordError` if it has none, or several."""
    # The first key alone rules out nearly all forms.
    found = [form for form in FORMS if row.get(form.keys[0]) is not None]
    found = [form for form in found if all(row.get(key) is not None for key in form.keys)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(" + ".join(f"`{key}`" for key in form.keys) for form in FORMS)
    if found:
        both = " and ".join("+".join(form.keys) for form in found)
        raise InvalidRecordError(f"expected one of {known}, got {both}: keep one of them")
    raise InvalidRecordError(f"expected one of {known}, got only {format_value(sorted(row))}")


@_form("conversations")
def _conversations(row: dict[str, Any]) -> list[Any]:
    """LLaVA, ShareGPT, LLaMA-Factory: turns of `from` and `value`."""
    return _list_of_turns(row["conversations"], "conversations")


@_form("messages")
def _messages(row: dict[str, Any]) -> list[Any]:
    """OpenAI, TRL, ms-swift, DashScope: turns of `role` and `content`."""
    return _list_of_turns(row["messages"], "messages")


@_form("conversation")
def _conversation(row: dict[str, Any]) -> list[Any]:
    """ms-swift's ShareGPT: pairs of `human` and `assistant`."""
    turns = []
    for number, pair in enumerate(_list_of_turns(row["conversation"], "conversation")):
        if not isinstance(pair, dict) or pair.keys() != {"human", "assistant"}:
            raise InvalidRecordError(
                f"pair {number} is {format_value(pair)}, expected an object with `human` and `assistant`"
            )
        turns += _pair(pair["human"], pair["assistant"])
    return turns


@_form("query", "response", also=("history",))
def _query_response(row: dict[str, Any]) -> list[Any]:
    """ms-swift: one question and its answer after a `history` of such pairs."""
    return [*_history(row), *_pair(row["query"], row["response"])]


@_form("instruction", "output", also=("input", "history"))
def _alpaca(row: dict[str, Any]) -> list[Any]:
    """Alpaca: an instruction, perhaps with an input on the next line, and the answer."""
    instruction, more = row["instruction"], row.get("input")
    if not isinstance(instruction, str) or not (is_missing(more) or isinstance(more, str)):
        raise InvalidRecordError(f"`instruction` and `input` are {format_value([instruction, more])}, expected texts")
    question = "\n".join(text for text in (instruction, more) if not is_missing(text))
    return [*_history(row), *_pair(question, row["output"])]


@_form("prompt", "completion")
def _prompt_completion(row: dict[str, Any]) -> list[Any]:
    """TRL: two texts, or two lists of messages; only the completion is supervised, as there."""
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    given = []
    for turn in _list_of_turns(prompt, "prompt"):
        answers = isinstance(turn, dict) and turn.get("role") == "assistant"
        given.append({**turn, "loss": False, "weight": None, "loss_scale": None} if answers else turn)
    return [*given, *_list_of_turns(completion, "completion")]


def _list_of_turns(turns: Any, key: str) -> list[Any]:
    # Older versions of `datasets` store a list of objects as an object of lists.
    if isinstance(turns, dict) and turns and all(isinstance(column, list) for column in turns.values()):
        if len(set(map(len, turns.values()))) > 1:
            raise InvalidRecordError(f"`{key}` is {format_value(turns)}, lists of different lengths: make them equal")
        turns = [dict(zip(turns, values, strict=True)) for values in zip(*turns.values(), strict=True)]
    if not isinstance(turns, list) or not turns:
        raise InvalidRecordError(f"`{key}` is {format_value(turns)}, expected a list of turns with at least one answer")
    return turns


def _history(row: dict[str, Any]) -> list[Any]:
    pairs = row.get("history")
    if is_missing(pairs):
        return []
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise InvalidRecordError(f"`history` is {format_value(pairs)}, expected a list of pairs of question and answer")
    return [turn for pair in pairs for turn in _pair(*pair)]


def _pair(question: Any, answer: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
