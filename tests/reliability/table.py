"""Lay out what the kills have shown as Markdown, and put it into a document."""

import re
from pathlib import Path

from tests.reliability.rounds import PHASES, SIGNALS, Tally

BEGIN, END = "<!-- kills: begin -->", "<!-- kills: end -->"
_HEADINGS = {"start": "start", "step": "steps", "save": "saves", "evaluation": "evaluation", "end": "end"}


def format_tally(tally: Tally, seed: int, seconds: float) -> str:
    """Return the tables: kills by signal and phase, and what came of them."""
    lines = [f"| kills | {' | '.join(_HEADINGS.values())} | all |", "|---|" + "---|" * (len(PHASES) + 1)]
    for each in SIGNALS:
        counts = [tally.kills[each.name, phase] for phase in PHASES]
        lines.append(f"| {each.name} | {' | '.join(map(str, counts))} | {sum(counts)} |")
    by_phase = [sum(tally.kills[each.name, phase] for each in SIGNALS) for phase in PHASES]
    lines.append(f"| all | {' | '.join(map(str, by_phase))} | {tally.total} |")
    disks = f"{tally.full_disks} of {tally.small_disks} small ones"
    if tally.disks_refused:
        disks += f" ({tally.disks_refused} could not be mounted here)"
    rows = [
        ("kills", tally.total),
        ("of them through the launcher", tally.through_launcher),
        ("runs", tally.runs),
        ("resumes", tally.resumes),
        ("broken files in the newest checkpoint", tally.broken_files),
        ("full disks", disks),
        ("starts that printed a traceback", len(tally.tracebacks)),
        ("**lost**: runs that could not be finished, or began again before what was saved", len(tally.lost)),
        ("**wrong**: finished runs with other weights or steps than the undisturbed one", len(tally.wrong)),
        ("seed", seed),
        ("minutes", f"{seconds / 60:.1f}"),
    ]
    return "\n".join(
        [*lines, "", "| what | how many |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    )


def format_faults(tally: Tally) -> str:
    """Return the faults in words, one a line."""
    lines = [f"lost: {each}" for each in tally.lost] + [f"wrong: {each}" for each in tally.wrong]
    return "\n".join([*lines, *(f"traceback: {each}" for each in tally.tracebacks)])


def write_table(document: Path, table: str) -> None:
    """Put a table between the two marks of a document."""
    text = document.read_text(encoding="utf-8")
    replaced, count = re.subn(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n{table}\n{END}", text, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{document} has not the marks {BEGIN} and {END} once")
    document.write_text(replaced, encoding="utf-8")
