"""Kill small trainings at random moments, resume them, and compare what they end with: python -m tests.reliability."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.reliability.rounds import KillRounds, Tally, play_rounds
from tests.reliability.starts import REPOSITORY, ForkServer
from tests.reliability.table import format_faults, format_tally, write_table


def main(argv: list[str] | None = None) -> int:
    """Play rounds until there were so many kills, print and write the table; return 1 if anything was lost or wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="how many (200)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and signals (0)")
    parser.add_argument("--no_launcher", action="store_true", help="fork every start, none through the real launcher")
    parser.add_argument(
        "--write",
        type=Path,
        nargs="?",
        const=REPOSITORY / "docs/reliability.md",
        help="document that gets the table between its marks (docs/reliability.md)",
    )
    arguments = parser.parse_args(argv)
    begin = time.monotonic()
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="reliability-") as folder, ForkServer(Path(folder)) as server:
        rounds = KillRounds(Path(folder), server, arguments.seed, tally, launcher=not arguments.no_launcher)
        told = 0
        for _ in play_rounds(rounds, arguments.kills):
            faults = f"{len(tally.lost)} lost, {len(tally.wrong)} wrong"
            sys.stderr.write(f"{tally.total} of {arguments.kills} kills, {tally.runs} runs, {faults}\n")
            if told < (found := len(tally.lost) + len(tally.wrong) + len(tally.tracebacks)):
                told = found
                sys.stderr.write(f"{format_faults(tally)}\n")
    table = format_tally(tally, arguments.seed, time.monotonic() - begin)
    sys.stdout.write(f"{table}\n\n{format_faults(tally)}\n")
    if arguments.write:
        write_table(arguments.write, table)
    return 1 if tally.lost or tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
