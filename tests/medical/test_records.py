"""Tests of the conversation that the sections of a report become."""

import pytest

from qwenvl.errors import UserError
from qwenvl.medical.records import (
    DroppedError,
    Prior,
    ReportOptions,
    build_record,
    check_text,
    context_lines,
    prior_report,
    target_text,
    user_text,
)
from qwenvl.medical.reports import TextPolicy

SECTIONS = {"findings": "Clear ___\n lungs.", "impression": "Normal.", "history": "Old ___ cough.", "technique": " "}


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("findings", "Clear ___ lungs."),
        ("impression", "Normal."),
        ("both", "Findings: Clear ___ lungs.\nImpression: Normal."),
    ],
)
def test_the_target_is_one_section_or_both_with_their_names(target: str, text: str):
    assert target_text(SECTIONS, ReportOptions(target)) == text


@pytest.mark.parametrize(
    ("sections", "options", "reason"),
    [
        ({}, ReportOptions(), "no findings section"),
        ({"findings": " \n"}, ReportOptions(), "no findings section"),
        ({"findings": "Clear."}, ReportOptions("both"), "no impression section"),
        (SECTIONS, ReportOptions(policy=TextPolicy(deid="study")), "de-identified text in the target"),
        ({"findings": "On ___."}, ReportOptions(policy=TextPolicy(deid="sentence")), "target shorter than --min_words"),
        (SECTIONS, ReportOptions(min_words=4), "target shorter than --min_words"),
        (SECTIONS, ReportOptions(max_words=2), "target longer than --max_words"),
        ({"findings": "See <video>."}, ReportOptions(), "placeholder or special token in the text"),
    ],
)
def test_a_report_without_a_target_is_dropped_with_the_reason(sections: dict, options: ReportOptions, reason: str):
    with pytest.raises(DroppedError, match=f"^{reason}$"):
        target_text(sections, options)


def test_limits_include_their_ends():
    assert target_text(SECTIONS, ReportOptions(min_words=3, max_words=3)) == "Clear ___ lungs."


@pytest.mark.parametrize(
    ("deid", "indication"), [("keep", "Old ___ cough."), ("remove", "Old cough."), ("study", "Old cough.")]
)
def test_the_history_replaces_a_missing_indication_and_deid_never_drops_context(deid: str, indication: str):
    options = ReportOptions(context=("indication", "technique"), policy=TextPolicy(deid=deid))
    assert context_lines(SECTIONS, options) == [f"Indication: {indication}"]
    written = ReportOptions(context=("technique", "indication"), missing_context="na", policy=TextPolicy(deid=deid))
    assert context_lines(SECTIONS, written) == ["Technique: N/A", f"Indication: {indication}"]


def test_a_prior_report_is_one_line_or_none():
    assert prior_report(SECTIONS, ReportOptions()) == "Findings: Clear ___ lungs. Impression: Normal."
    assert prior_report({"findings": "Clear."}, ReportOptions()) == "Findings: Clear."
    assert prior_report({"technique": "AP"}, ReportOptions()) is None


def test_the_user_turn_has_images_prior_study_context_and_question_in_this_order():
    options = ReportOptions(target="impression")
    prior = Prior(with_report=True, images=1, report="Findings: Clear.")
    assert user_text(2, ["Indication: Cough."], prior, options).split("\n") == [
        "Current study:", "<image>", "<image>", "Prior study:", "<image>", "Prior report: Findings: Clear.",
        "Indication: Cough.", "Write the impression of this chest X-ray study.",
    ]  # fmt: skip
    assert user_text(1, [], Prior(), ReportOptions(prompt="Go.")) == "<image>\nGo."


@pytest.mark.parametrize("text", ["a <image> b", "<video>", "<|im_end|>"])
def test_text_that_the_template_would_misread_drops_the_study(text: str):
    with pytest.raises(DroppedError, match="placeholder or special token"):
        check_text(text)
    with pytest.raises(DroppedError, match="placeholder or special token"):
        user_text(1, [text], Prior(), ReportOptions())


def test_a_record_keeps_its_origin_beside_the_conversation():
    assert build_record({"id": "s1"}, ["a.jpg"], "Q", "A") == {
        "id": "s1",
        "image": ["a.jpg"],
        "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}],
    }


def test_options_that_contradict_each_other_are_refused():
    with pytest.raises(UserError, match="--max_words 4 is below --min_words 5"):
        ReportOptions(min_words=5, max_words=4)
    with pytest.raises(UserError, match="--prompt contains <image> or <video>"):
        ReportOptions(prompt="<video> Go.")
