"""Turn the sections of a radiology report into one conversation: target, context, prior study, limits."""

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwenvl.data.annotations import PLACEHOLDERS, RESERVED_TOKENS
from qwenvl.errors import UserError
from qwenvl.medical.reports import DEID_POLICIES, WHITE_SPACE_POLICIES, TextPolicy, clean_text
from qwenvl.utils.cli import ToolParser, positive_int

TARGETS = {"findings": ("findings",), "impression": ("impression",), "both": ("findings", "impression")}
# What stands in for a context section that the report does not have.
CONTEXT = {"indication": ("indication", "history"), "technique": ("technique",), "comparison": ("comparison",)}
MISSING_CONTEXT = ("omit", "na")
PROMPTS = {
    "findings": "Describe the findings of this chest X-ray study.",
    "impression": "Write the impression of this chest X-ray study.",
    "both": "Write the findings and the impression of this chest X-ray study.",
}


class DroppedError(Exception):
    """A study that gives no record; the message is the reason that it is counted under."""


@dataclass(frozen=True)
class ReportOptions:
    """What a conversation is made of; one field for each option of `add_report_options`."""

    target: str = "findings"
    context: tuple[str, ...] = ("indication",)
    missing_context: str = "omit"
    policy: TextPolicy = TextPolicy()
    min_words: int = 1
    max_words: int | None = None
    prompt: str | None = None

    @property
    def question(self) -> str:
        """The last line of what the user says."""
        return PROMPTS[self.target] if self.prompt is None else self.prompt

    @property
    def context_policy(self) -> TextPolicy:
        """How context is cleaned: almost each indication has a removed age, so it never costs a sentence or a study."""
        deid = "keep" if self.policy.deid == "keep" else "remove"
        return TextPolicy(self.policy.white_space, deid, self.policy.mark)


@dataclass(frozen=True)
class Prior:
    """What is told of an earlier study: `wanted` that it is asked for at all, its number of images, its report."""

    wanted: bool = False
    images: int = 0
    report: str | None = None


def target_text(sections: Mapping[str, str], options: ReportOptions) -> str:
    """Return the answer that the model learns; raises `DroppedError` when the report gives none within the limits."""
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
    return check_text(_labelled(parts) if len(parts) > 1 else next(iter(parts.values())))


def context_lines(sections: Mapping[str, str], options: ReportOptions) -> list[str]:
    """Return one line for each context section asked for, by the policy for those that are missing."""
    lines = []
    for name in options.context:
        texts = (clean_text(sections.get(source, ""), options.context_policy) for source in CONTEXT[name])
        text = next(filter(None, texts), None)
        lines += _line(name.capitalize(), text, options)
    return lines


def prior_report(sections: Mapping[str, str], options: ReportOptions) -> str | None:
    """Return findings and impression of an earlier report as one text; None when it has neither."""
    found = {name: clean_text(sections.get(name, ""), options.context_policy) for name in TARGETS["both"]}
    return " ".join(_labelled({name: text for name, text in found.items() if text}).split("\n")) or None


def user_text(images: int, context: list[str], prior: Prior, options: ReportOptions) -> str:
    """Return what the user says: one `<image>` for each of `images`, the prior study, the context, the question.

    Raises `DroppedError` when the context holds a placeholder or a token of the chat template.
    """
    lines = [PLACEHOLDERS["image"]] * images
    if prior.images:
        lines = ["Current study:", *lines, "Prior study:", *[PLACEHOLDERS["image"]] * prior.images]
    told = _line("Prior report", prior.report, options) if prior.wanted else []
    return "\n".join([*lines, *map(check_text, [*told, *context]), options.question])


def conversation(user: str, answer: str) -> list[dict[str, str]]:
    """Return the two turns in this project's format."""
    return [{"from": "human", "value": user}, {"from": "gpt", "value": answer}]


def check_text(text: str) -> str:
    """Return `text`; raises `DroppedError` where it would pass for a picture or for the chat template."""
    if RESERVED_TOKENS.search(text) or any(placeholder in text for placeholder in PLACEHOLDERS.values()):
        raise DroppedError("placeholder or special token in the text")
    return text


def add_report_options(parser: ToolParser) -> None:
    """Add the options that decide what a conversation is made of."""
    group = parser.add_argument_group("what the model reads and writes")
    group.add_argument("--target", choices=list(TARGETS), default="findings", help="section(s) that the model writes")
    group.add_argument(
        "--context",
        nargs="*",
        choices=list(CONTEXT),
        default=["indication"],
        help="sections told with the images; the history stands in for a missing indication; give none for no context",
    )
    group.add_argument(
        "--missing_context", choices=MISSING_CONTEXT, default="omit", help="leave a missing one out, or write N/A"
    )
    group.add_argument("--prompt", help="the question after images and context, instead of the target's own")
    group.add_argument(
        "--deid",
        choices=DEID_POLICIES,
        default="keep",
        help="text removed by de-identification in the target: keep the mark, remove the mark, remove its sentence, or "
        "drop the study; in the context the mark is kept or removed",
    )
    group.add_argument(
        "--white_space",
        choices=WHITE_SPACE_POLICIES,
        default="collapse",
        help="one line, one line a paragraph or list item, or the report's own lines",
    )
    group.add_argument("--min_words", type=positive_int, default=1, help="drop studies with a shorter target")
    group.add_argument("--max_words", type=positive_int, help="drop studies with a longer target")


def report_options(args: argparse.Namespace, mark: re.Pattern[str]) -> ReportOptions:
    """Return the options of parsed arguments; `mark` finds what de-identification removed. Raises `UserError`."""
    if args.max_words is not None and args.max_words < args.min_words:
        raise UserError(f"--max_words {args.max_words} is below --min_words {args.min_words}; give a range")
    if args.prompt is not None and any(placeholder in args.prompt for placeholder in PLACEHOLDERS.values()):
        raise UserError("--prompt holds <image> or <video>; leave them out, they are put in front of the text")
    return ReportOptions(
        target=args.target,
        context=tuple(args.context),
        missing_context=args.missing_context,
        policy=TextPolicy(args.white_space, args.deid, mark),
        min_words=args.min_words,
        max_words=args.max_words,
        prompt=args.prompt,
    )


def _labelled(parts: Mapping[str, str]) -> str:
    return "\n".join(f"{name.capitalize()}: {text}" for name, text in parts.items())


def _line(name: str, text: str | None, options: ReportOptions) -> list[str]:
    if text:
        return [f"{name}: {text}"]
    return [f"{name}: N/A"] if options.missing_context == "na" else []


def sample(identity: Mapping[str, Any], images: list[str], user: str, answer: str) -> dict[str, Any]:
    """Return one record of this project's format, with what tells where it comes from kept beside it."""
    return {**identity, "image": images, "conversations": conversation(user, answer)}
