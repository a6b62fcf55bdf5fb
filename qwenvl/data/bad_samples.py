"""Track samples that cannot be used: the reason for each, and whether there are too many."""

import logging
from dataclasses import dataclass, field
from typing import Literal

from qwenvl.data.records import Record
from qwenvl.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BadSample:
    """A sample that cannot be used: its annotation file and location there, the file at fault (if any), the reason."""

    source: str
    location: str
    path: str | None
    reason: str

    @classmethod
    def of(cls, record: Record, path: str | None, reason: str) -> "BadSample":
        """Return the bad sample for a record."""
        return cls(record.source, record.location or f"row {record.row}", path, reason)

    @property
    def full_location(self) -> str:
        """Annotation file and location in it, such as "train.json row 12"."""
        return f"{self.source} {self.location}"

    def __str__(self) -> str:
        return (
            f"{self.full_location}: {self.reason}"
            if self.path is None
            else f"{self.full_location}: {self.path}: {self.reason}"
        )


@dataclass
class BadSampleTracker:
    """Applies `--bad_sample_policy`: "error" ends the run at the first bad sample, "skip" after `max_bad_samples`."""

    policy: Literal["error", "skip"] = "error"
    max_bad_samples: int = 100
    samples: list[BadSample] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Number of bad samples reported so far."""
        return len(self.samples)

    def report(self, bad: BadSample) -> None:
        """Record a bad sample, once per location; raises `UserError` if the policy allows none, or no more of them."""
        if any(bad.full_location == known.full_location for known in self.samples):
            return
        self.samples.append(bad)
        if self.policy == "error":
            raise UserError(f"{bad} (or leave such samples out with --bad_sample_policy skip)")
        logger.warning("bad sample left out: %s", bad)
        if self.count > self.max_bad_samples:
            raise UserError(
                f"{self.count} bad samples, more than --max_bad_samples {self.max_bad_samples}; correct the data "
                f"or raise the limit; the last one: {bad}"
            )
