"""Write the results of the suite as JSON and as a Markdown table, and read those of an earlier call."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qwenvl.bench.machine import Machine
from qwenvl.bench.results import Result
from qwenvl.errors import UserError

_HEAD = (
    "recipe",
    "samples/s",
    "tokens/s",
    "of the matmul rate",
    "GPU idle",
    "data wait",
    "peak GiB",
    "estimated",
    "first step after",
    "aim",
    "met",
)


def write_json(path: Path, machine: Machine, results: Sequence[Result]) -> None:
    """Write machine, versions and all results."""
    content = {"machine": asdict(machine), "rows": [asdict(result) for result in results]}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_results(path: Path, machine: Machine) -> list[Result]:
    """Return the results of an earlier call with the same device and versions; none if there was no such call."""
    if not path.is_file():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        before, results = content["machine"], [Result(**row) for row in content["rows"]]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} holds no results of this suite; name another file, or remove it") from None
    now = asdict(machine)
    if any(before[name] != now[name] for name in ("device", "gpus", "driver", "versions")):
        return []
    for result in results:  # the keys of a JSON object are text
        result.losses = {int(step): loss for step, loss in result.losses.items()}
    return results


def format_markdown(machine: Machine, results: Sequence[Result]) -> str:
    """Return a section with the machine, the table, the rows without numbers, and the commands."""
    measured = [result for result in results if result.status == "measured"]
    others = [result for result in results if result.status != "measured"]
    table = [_HEAD, ("---",) * len(_HEAD), *map(_table_row, measured)]
    lines = [machine.describe(), "", *(f"| {' | '.join(row)} |" for row in table), ""]
    tokens = [f"{result.name} {result.tokens_per_sample:.0f}" for result in measured if result.tokens_per_sample]
    if tokens:
        lines += [f"Measured tokens per sample: {', '.join(tokens)}.", ""]
    lines += [f"- {result.recipe}: {result.status}: {result.problem}" for result in others]
    lines += [""] if others else []
    commands = [f"# {result.name}\n{shlex.join(result.command)}" for result in results if result.command]
    return "\n".join([*lines, "```bash", *commands, "```"]) + "\n"


def _table_row(result: Result) -> tuple[str, ...]:
    met = "" if not result.met else "yes" if all(result.met.values()) else "no"
    return (
        result.recipe,
        _number(result.samples_per_second, ".1f"),
        _number(result.tokens_per_second, ",.0f"),
        _number(result.matmul_share, ".0%"),
        _number(result.gpu_idle_share, ".1%"),
        _number(result.data_wait_share, ".1%"),
        _number(result.peak_gib, ".1f"),
        _number(result.estimated_gib, ".1f"),
        _number(result.seconds_to_first_step, ".0f", " s"),
        _describe_aim(result.aim),
        met,
    )


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"


def _describe_aim(aim: dict[str, Any]) -> str:
    forms = {
        "samples_per_second": "{:g} samples/s",
        "peak_gib": "{:g} GiB",
        "seconds_to_first_step": "{:g} s",
        "share_of_row": "{:.0%} of `{row}` on each GPU",
        "loss_within": "loss within {:.0%} of `{row}`",
    }
    given = [form.format(aim[name], row=aim["of_row"]) for name, form in forms.items() if aim[name] is not None]
    return ", ".join(given)
