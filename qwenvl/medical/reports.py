"""Parse radiology reports: sections, line breaks and de-identification marks.

The section rules follow the MIMIC-CXR project (https://github.com/MIT-LCP/mimic-cxr, `txt/`, Johnson et al. 2019): a
header is at the start of a line, after one space, and consists of capitals up to a colon.
"""

import difflib
import functools
import re
from dataclasses import dataclass

MIMIC_MARK = re.compile(r"_{2,}")
OPENI_MARK = re.compile(r"\bX{4,}\b")
DEID_POLICIES = ("keep", "remove", "sentence", "study")
WHITE_SPACE_POLICIES = ("collapse", "paragraphs", "keep")

_HEADER = re.compile(r"\n ([A-Z ()/,-]+):\s")
_SYNONYMS = {
    "comparison exam": "comparison",
    "comparison film": "comparison",
    "reference exam": "comparison",
    "comparisons": "comparison",
    "conclusion": "impression",
    "clinical information": "history",
    "pfi": "history",
    "clinical indication": "indication",
    "reason for exam": "indication",
    "reason for examination": "indication",
    "exam": "examination",
    "type of examination": "examination",
    "reference findings": "findings",
    "recommendation": "recommendations",
    "recommendation(s)": "recommendations",
    "wetread": "wet read",
}
_KNOWN = ("comparison", "examination", "findings", "history", "impression", "indication", "technique")
# In order of precedence for a header that names two sections: FINDINGS AND IMPRESSION is an impression.
_NAMED_INSIDE = ("impression", "findings", "history", "comparison", "addendum")
_VIEW_TITLE = re.compile(
    r"chest|portable|ribs|bone window|two views|(?:one|pa|ap|frontal|lateral) view|frontal (?:and|upright|semi-upright)"
    r"|pa and lat|ap and lateral|lateral and (?:pa|ap)"
)
# Misspelled headers in the published reports differ from the name by one or two letters, other names by more.
_SPELLING_CUTOFF = 0.84
_LIST_ITEM = re.compile(r"(?:\d{1,2}[.)]|[-*•])\s")
_SENTENCE_END = re.compile(r"((?<=[.?!])(?<!Dr\.)(?<!Mr\.)(?<!Ms\.)(?<!Mrs\.)\s+)")


@dataclass(frozen=True)
class TextPolicy:
    """How report text is cleaned.

    Attributes:
        white_space: One of `WHITE_SPACE_POLICIES`.
        deid: One of `DEID_POLICIES`.
        mark: Matches what de-identification wrote in place of removed text.
    """

    white_space: str = "collapse"
    deid: str = "keep"
    mark: re.Pattern[str] = MIMIC_MARK


def parse_sections(text: str) -> dict[str, str]:
    """Split a MIMIC-CXR report into sections by normalized name ("findings", "impression", ...), text unchanged.

    The last of several sections with the same name wins, but empty findings and impressions are ignored. The search for
    the next header starts after the first line break of a section, so the line after a bare header is never a header.
    """
    sections: dict[str, str] = {}
    text = text.replace("\r\n", "\n")
    header = _HEADER.search(text)
    while header is not None:
        name, start = section_name(header[1]), header.end()
        line_end = text.find("\n", start)
        header = _HEADER.search(text, line_end) if line_end >= 0 else None
        body = text[start : header.start() if header else len(text)]
        if body.strip() or name not in ("findings", "impression"):
            sections[name] = body
    return sections


@functools.lru_cache(maxsize=4096)
def section_name(header: str) -> str:
    """Return the normalized name of a header; handles synonyms, misspellings and view titles ("CHEST, TWO VIEWS")."""
    name = header.lower().strip()
    name = _SYNONYMS.get(name, name)
    close = difflib.get_close_matches(name, _KNOWN, n=1, cutoff=_SPELLING_CUTOFF)
    if close:
        return close[0]
    for section in _NAMED_INSIDE:
        if section in name:
            return section
    return "findings" if _VIEW_TITLE.search(name) else name


def clean_text(text: str, policy: TextPolicy) -> str | None:
    """Apply the white-space and de-identification policy; return None where the policy "study" drops the text."""
    if policy.deid != "keep" and policy.mark.search(text):
        if policy.deid == "study":
            return None
        text = _remove_sentences(text, policy.mark) if policy.deid == "sentence" else _remove_marks(text, policy.mark)
    if policy.white_space == "collapse":
        return " ".join(text.split())
    if policy.white_space == "paragraphs":
        return "\n".join(_unwrap_lines(text))
    return "\n".join(line.rstrip() for line in text.splitlines()).strip()


def _remove_sentences(text: str, mark: re.Pattern[str]) -> str:
    pieces = [*_SENTENCE_END.split(text), ""]
    return "".join(
        sentence + gap for sentence, gap in zip(pieces[::2], pieces[1::2], strict=True) if not mark.search(sentence)
    )


def _remove_marks(text: str, mark: re.Pattern[str]) -> str:
    """Remove the marks, the brackets that are empty without them, and the spaces left in front of punctuation."""
    text = re.sub(r"\(\s*\)|\[\s*\]", "", mark.sub("", text))
    text = re.sub(r"[ \t]+(?=[.,;:?!)])", "", text)
    return re.sub(r"(?<=\S)[ \t]{2,}", " ", text)


def _unwrap_lines(text: str) -> list[str]:
    """Join hard-wrapped lines; a blank line or a list item starts a new line."""
    paragraphs: list[list[str]] = [[]]
    for line in text.splitlines():
        line = line.strip()
        if not line or _LIST_ITEM.match(line):
            paragraphs.append([])
        if line:
            paragraphs[-1].extend(line.split())
    return [" ".join(words) for words in paragraphs if words]
