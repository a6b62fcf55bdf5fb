"""Golden cases of report sections and text cleaning; every report here was written for these tests."""

import pytest

from qwenvl.medical.reports import OPENI_MARK, TextPolicy, clean_text, parse_sections, section_name

# As published: a title far to the right, one space before each line, blank lines that hold one space.
PLAIN = "\n".join(
    (
        "                                 FINAL REPORT",
        " EXAMINATION:  CHEST (PA AND LAT)",
        " ",
        " INDICATION:  ___-year-old with cough.",
        " ",
        " COMPARISON:  None.",
        " ",
        " FINDINGS: ",
        " ",
        " The lungs are",
        " clear.  No effusion.",
        " ",
        " IMPRESSION: ",
        " ",
        " Normal chest.",
        "",
    )
)


def test_sections_are_found_by_a_space_capitals_and_a_colon():
    sections = parse_sections(PLAIN)
    assert {name: " ".join(text.split()) for name, text in sections.items()} == {
        "examination": "CHEST (PA AND LAT)",
        "indication": "___-year-old with cough.",
        "comparison": "None.",
        "findings": "The lungs are clear. No effusion.",
        "impression": "Normal chest.",
    }


@pytest.mark.parametrize(
    "line", ["FINDINGS: no space", " Findings: small letters", " FINDINGS; no colon", " FINDINGS:no space after it"]
)
def test_what_only_looks_like_a_header_stays_in_its_section(line: str):
    sections = parse_sections(f"x\n INDICATION: cough\n{line}\n IMPRESSION: clear\n")
    assert set(sections) == {"indication", "impression"}
    assert line.strip() in sections["indication"]


def test_the_last_of_two_sections_with_one_name_wins():
    assert (
        parse_sections("x\n FINDINGS: first\n \n IMPRESSION: a\n \n FINDINGS: second\n")["findings"].strip() == "second"
    )


def test_an_empty_duplicate_does_not_hide_the_findings_before_it():
    text = "x\n FINDINGS: the lungs are clear\n \n FINDINGS: \n \n IMPRESSION: normal\n"
    assert parse_sections(text)["findings"].strip() == "the lungs are clear"


def test_findings_and_impression_in_one_count_as_an_impression():
    sections = parse_sections("x\n INDICATION: cough\n FINDINGS AND IMPRESSION: normal\n")
    assert sections["impression"].strip() == "normal"
    assert "findings" not in sections


def test_a_view_title_counts_as_findings_and_gives_way_when_it_is_empty():
    text = "x\n CHEST, TWO VIEWS: The lungs are clear.\n IMPRESSION: normal\n"
    assert parse_sections(text)["findings"].strip() == "The lungs are clear."
    titled = "x\n PORTABLE CHEST: \n \n INDICATION: cough\n IMPRESSION: normal\n"
    assert set(parse_sections(titled)) == {"indication", "impression"}


def test_a_header_alone_on_its_line_keeps_the_next_line():
    sections = parse_sections("x\n FINDINGS:\n TECHNIQUE: this line is not looked at\n IMPRESSION: normal\n")
    assert sections["findings"].strip() == "TECHNIQUE: this line is not looked at"


def test_a_report_without_headers_has_no_sections():
    assert parse_sections("The lungs are clear.\n") == {}


def test_a_section_at_the_very_end_without_a_line_break_is_read():
    assert parse_sections("x\n IMPRESSION: normal")["impression"] == "normal"


def test_windows_line_breaks_make_no_difference():
    assert parse_sections(PLAIN.replace("\n", "\r\n")) == parse_sections(PLAIN)


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("IMPRESSON", "impression"),
        ("MPRESSION", "impression"),
        ("FINIDNGS", "findings"),
        ("FINDING", "findings"),
        ("COMPARISION", "comparison"),
        ("IDICATION", "indication"),
        ("TECHNIQUES", "technique"),
        ("CONCLUSION", "impression"),
        ("REASON FOR EXAM", "indication"),
        ("CLINICAL INFORMATION", "history"),
        ("CLINICAL HISTORY", "history"),
        ("COMPARISON FILM", "comparison"),
        ("REFERENCE FINDINGS", "findings"),
        ("PA AND LATERAL VIEWS OF THE CHEST", "findings"),
        ("LATERAL AND AP", "findings"),
        ("RECOMMENDATION(S)", "recommendations"),
        ("WET READ", "wet read"),
        ("NOTIFICATION", "notification"),
        ("CONTRAINDICATION", "contraindication"),
        ("FINAL ADDENDUM", "addendum"),
    ],
)
def test_header_names_are_normalised(header: str, name: str):
    assert section_name(header) == name


WRAPPED = "\n \n 1. Small left\n effusion.\n 2. No pneumo-\n thorax.\n \n Heart is\n  normal. \n"


@pytest.mark.parametrize(
    ("policy", "cleaned"),
    [
        ("collapse", "1. Small left effusion. 2. No pneumo- thorax. Heart is normal."),
        ("paragraphs", "1. Small left effusion.\n2. No pneumo- thorax.\nHeart is normal."),
        ("keep", "1. Small left\n effusion.\n 2. No pneumo-\n thorax.\n\n Heart is\n  normal."),
    ],
)
def test_white_space_policies(policy: str, cleaned: str):
    assert clean_text(WRAPPED, TextPolicy(white_space=policy)) == cleaned


MARKED = "Seen by Dr. ___ at ___. Stable since ___, as\n before (___). The lungs are clear."


@pytest.mark.parametrize(
    ("deid", "cleaned"),
    [
        ("keep", "Seen by Dr. ___ at ___. Stable since ___, as before (___). The lungs are clear."),
        ("remove", "Seen by Dr. at. Stable since, as before. The lungs are clear."),
        ("sentence", "The lungs are clear."),
        ("study", None),
    ],
)
def test_deid_policies(deid: str, cleaned: str | None):
    assert clean_text(MARKED, TextPolicy(deid=deid)) == cleaned


@pytest.mark.parametrize("deid", ["keep", "remove", "sentence", "study"])
def test_text_without_a_mark_is_the_same_under_every_deid_policy(deid: str):
    assert clean_text("The lungs are clear. No effusion.", TextPolicy(deid=deid)) == "The lungs are clear. No effusion."


def test_the_mark_of_open_i_is_four_capital_x():
    policy = TextPolicy(deid="remove", mark=OPENI_MARK)
    assert clean_text("Compared to XXXX. XXX is kept.", policy) == "Compared to. XXX is kept."
