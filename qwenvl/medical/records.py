"""Turn the sections of a radiology report into one conversation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwenvl.data.annotations import PLACEHOLDERS, RESERVED_TOKENS
from qwenvl.errors import UserError
from qwenvl.medical.reports import TextPolicy, clean_text

TARGETS = {"findings": ("findings",), "impression": ("impression",), "both": ("findings", "impression")}
# The sections that are looked for, in order, to fill each section of the context.
CONTEXT = {"indication": ("indication", "history"), "technique": ("technique",), "comparison": ("comparison",)}
MISSING_CONTEXT = ("omit", "na")
PROMPTS = {
    "findings": "Describe the findings of this chest X-ray study.",
    "impression": "Write the impression of this chest X-ray study.",
    "both": "Write the findings and the impression of this chest X-ray study.",
}


class DroppedError(Exception):
    """Raised for a study that yields no record; the message is the reason under which it is counted."""


@dataclass(frozen=True)
class ReportOptions:
    """What a conversation contains.

    Attributes:
        target: The section(s) that the model writes, a key of `TARGETS`.
        context: The sections shown to the model with the images, keys of `CONTEXT`.
        missing_context: `omit` leaves a missing section out, `na` writes N/A.
        policy: How the text of the target is cleaned.
        min_words: The fewest words of a target.
        max_words: The most words of a target; None for no limit.
        prompt: The question to the model; None for that of the target.

    Raises:
        UserError: For limits that allow no target, or a prompt with a media placeholder.
    """

    target: str = "findings"
    context: tuple[str, ...] = ("indication",)
    missing_context: str = "omit"
    policy: TextPolicy = TextPolicy()
    min_words: int = 1
    max_words: int | None = None
    prompt: str | None = None

    def __post_init__(self) -> None:
        if self.max_words is not None and self.max_words < self.min_words:
            raise UserError(f"--max_words {self.max_words} is below --min_words {self.min_words}; give a range")
        if self.prompt is not None and any(placeholder in self.prompt for placeholder in PLACEHOLDERS.values()):
            raise UserError(
                "--prompt contains <image> or <video>; leave them out, they are written in front of the text"
            )

    @property
    def question(self) -> str:
        """The last line of the user turn."""
        return PROMPTS[self.target] if self.prompt is None else self.prompt

    @property
    def context_policy(self) -> TextPolicy:
        """The policy for context: it never drops a sentence or study, as most indications have a de-identified age."""
        deid = "keep" if self.policy.deid == "keep" else "remove"
        return TextPolicy(self.policy.white_space, deid, self.policy.mark)


@dataclass(frozen=True)
class Prior:
    """The part of an earlier study that a record includes.

    Attributes:
        with_report: Whether the report of an earlier study was asked for, even if there is none.
        images: The number of images of the earlier study.
        report: The text of the earlier report; None if there is none.
    """

    with_report: bool = False
    images: int = 0
    report: str | None = None


def target_text(sections: Mapping[str, str], options: ReportOptions) -> str:
    """Return the assistant turn; raises `DroppedError` for a report without a target within the limits."""
    parts = {}
    for name in TARGETS[options.target]:
        raw = sections.get(name, "")
        if not raw.strip():
            raise DroppedError(f"no {name} section")
        cleaned = clean_text(raw, options.policy)
        if cleaned is None:
            raise DroppedError("de-identified text in the target")
        parts[name] = cleaned
    words = sum(len(text.split()) for text in parts.values())
    if words < options.min_words or not all(parts.values()):
        raise DroppedError("target shorter than --min_words")
    if options.max_words is not None and words > options.max_words:
        raise DroppedError("target longer than --max_words")
    return check_text(_join_labeled(parts) if len(parts) > 1 else next(iter(parts.values())))


def context_lines(sections: Mapping[str, str], options: ReportOptions) -> list[str]:
    """Return one line for each requested context section; missing ones follow `options.missing_context`."""
    lines = []
    for name in options.context:
        texts = (clean_text(sections.get(source, ""), options.context_policy) for source in CONTEXT[name])
        text = next(filter(None, texts), None)
        lines += _format_section(name.capitalize(), text, options)
    return lines


def prior_report(sections: Mapping[str, str], options: ReportOptions) -> str | None:
    """Return findings and impression of an earlier report in one line; None if it has neither."""
    found = {name: clean_text(sections.get(name, ""), options.context_policy) for name in TARGETS["both"]}
    return " ".join(_join_labeled({name: text for name, text in found.items() if text}).split("\n")) or None


def user_text(images: int, context: list[str], prior: Prior, options: ReportOptions) -> str:
    """Return the user turn: an `<image>` for each of `images`, then the prior study, the context and the question.

    Raises `DroppedError` for a context with a media placeholder or a token of the chat template.
    """
    lines = [PLACEHOLDERS["image"]] * images
    if prior.images:
        lines = ["Current study:", *lines, "Prior study:", *[PLACEHOLDERS["image"]] * prior.images]
    earlier = _format_section("Prior report", prior.report, options) if prior.with_report else []
    return "\n".join([*lines, *map(check_text, [*earlier, *context]), options.question])


def conversation(user: str, answer: str) -> list[dict[str, str]]:
    """Return the user turn and the assistant turn in the annotation format."""
    return [{"from": "human", "value": user}, {"from": "gpt", "value": answer}]


def check_text(text: str) -> str:
    """Return `text`; raises `DroppedError` if it contains a media placeholder or a token of the chat template."""
    if RESERVED_TOKENS.search(text) or any(placeholder in text for placeholder in PLACEHOLDERS.values()):
        raise DroppedError("placeholder or special token in the text")
    return text


def build_record(identity: Mapping[str, Any], images: list[str], user: str, answer: str) -> dict[str, Any]:
    """Return one annotation record; `identity` holds the keys on its origin, which training does not read."""
    return {**identity, "image": images, "conversations": conversation(user, answer)}


def _join_labeled(parts: Mapping[str, str]) -> str:
    return "\n".join(f"{name.capitalize()}: {text}" for name, text in parts.items())


def _format_section(name: str, text: str | None, options: ReportOptions) -> list[str]:
    if text:
        return [f"{name}: {text}"]
    return [f"{name}: N/A"] if options.missing_context == "na" else []
