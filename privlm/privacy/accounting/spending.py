"""What one or several runs have spent together, read from their ledgers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from privlm.errors import UsageError
from privlm.privacy.accounting.types import Segment
from privlm.privacy.ledger import Ledger, Release, Setting


@dataclass(frozen=True)
class LedgerSegment:
    """A row of releases of one stage and population with the same setting in one ledger."""

    ledger: Path
    number: int
    stage: str
    population: str
    setting: Setting
    num_releases: int
    noise_ids: frozenset[str]
    """Noise that no earlier segment of this ledger has released; noise drawn again is the same release."""

    @property
    def segment(self) -> Segment:
        """What the accountants count."""
        return Segment(self.setting.sampling_rate, self.setting.noise_multiplier, len(self.noise_ids))


def read_ledger(path: Path) -> list[LedgerSegment]:
    """The segments of a ledger, in order. Raises UsageError for a missing, empty or damaged file."""
    if not path.is_file():
        raise UsageError(f"{path}: no ledger; only a run with privacy has one")
    rows: list[list[Release]] = []
    for release in Ledger(path).releases:
        if not (rows and rows[-1][-1].is_like(release)):
            rows.append([])
        rows[-1].append(release)
    if not rows:
        raise UsageError(f"{path}: nothing has been released yet")
    known: set[str] = set()
    segments = []
    for number, row in enumerate(rows):
        fresh = frozenset(release.noise_id for release in row) - known
        known |= fresh
        first = row[0]
        segments.append(LedgerSegment(path, number, first.stage, first.population, first.setting, len(row), fresh))
    return segments


def check_composition(segments: Sequence[LedgerSegment]) -> None:
    """Raises UsageError where accounting by composition would be wrong.

    Two releases with the same noise reveal their difference exactly, and the privacy of a record is not that of a user.
    """
    units = {segment.setting.unit for segment in segments}
    if len(units) > 1:
        raise UsageError(f"these ledgers protect different units ({', '.join(sorted(units))}): ask for one, --unit")
    owner: dict[str, Path] = {}
    for segment in segments:
        for noise_id in segment.noise_ids:
            if owner.setdefault(noise_id, segment.ledger) != segment.ledger:
                raise UsageError(
                    f"{owner[noise_id]} and {segment.ledger} have released with the same noise, whose difference hides "
                    "nothing: no epsilon covers both. Give runs on the same data different seeds, or privacy.rng=secure"
                )
