"""The privacy ledger: every release is on disk before its noise is used.

Guarantee: the epsilon of the ledger covers all noise that was ever drawn for releases, across kills and
resumes. Noise drawn again (equal noise id) is the same release and costs nothing more; fresh noise for a
repeated step is another release and counts again.
"""

import json
import math
import os
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from privlm.errors import UsageError
from privlm.files import sync_directory

if TYPE_CHECKING:
    from privlm.privacy.accounting import Guarantee, Segment


@dataclass(frozen=True)
class Setting:
    """What the accounting of a release depends on, and what its noise is scaled to."""

    sampling_rate: float
    noise_multiplier: float
    clipping_norm: float
    expected_batch_size: float
    unit: str  # what one clipped gradient belongs to: "record", "user", "client"


@dataclass(frozen=True)
class Release:
    """One line of the ledger."""

    segment: int  # counts runs of releases with the same setting
    step: int
    setting: Setting
    noise_id: str

    def to_json(self) -> str:
        fields = {"segment": self.segment, "step": self.step, **asdict(self.setting), "noise_id": self.noise_id}
        return json.dumps(fields, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> "Release":
        """Raises ValueError, TypeError or KeyError on anything that `to_json` does not write."""
        fields = json.loads(line)
        release = cls(
            fields.pop("segment"), fields.pop("step"), noise_id=fields.pop("noise_id"), setting=Setting(**fields)
        )
        setting = release.setting
        numbers = [setting.sampling_rate, setting.noise_multiplier, setting.clipping_norm, setting.expected_batch_size]
        if not (all(math.isfinite(number) for number in numbers) and isinstance(release.noise_id, str)):
            raise ValueError("a number is not finite or the noise id is no text")
        return release


class Ledger:
    """Append-only record of releases in a JSON-lines file, or in memory where `path` is None."""

    def __init__(self, path: Path | None = None) -> None:
        """Raises UsageError for a file that is damaged elsewhere than in an unfinished last line.

        An unfinished last line was being written when the run was killed; its noise was not used, so it is
        cut.
        """
        self._path = path
        self._releases: list[Release] = []
        self._setting_of_noise: dict[str, Setting] = {}
        self._num_steps: Counter[tuple[float, float]] = Counter()  # (q, sigma) -> distinct noise
        self._size = 0
        self._search: object = None  # what the two bounds below were found for
        self._affordable: float = 0
        self._unaffordable = math.inf
        if path is not None and path.exists():
            self._load(path.read_bytes())

    def record(self, step: int, setting: Setting, noise_id: str) -> None:
        """Writes one release and returns when it is durable.

        Raises UsageError where the noise was released under another setting: two releases of different sums
        with the same noise reveal their difference, which no accounting covers.
        """
        if self._setting_of_noise.get(noise_id, setting) != setting:
            raise UsageError(
                f"step {step} would use noise again that was released with {self._setting_of_noise[noise_id]}, "
                f"now with {setting}: give the run another seed, or privacy.rng=secure"
            )
        segment = 0
        if self._releases:
            last = self._releases[-1]
            segment = last.segment + (last.setting != setting)
        release = Release(segment, step, setting, noise_id)
        if self._path is not None:
            self._append(self._path, release.to_json().encode() + b"\n")
        self._count(release)

    def __len__(self) -> int:
        """Releases recorded, repeated ones included."""
        return len(self._releases)

    def segments(self, through_step: int | None = None) -> "list[Segment]":
        """Steps per sampling rate and noise multiplier, each distinct noise counted once.

        through_step: only releases of steps up to this one.
        """
        from privlm.privacy.accounting import Segment

        num_steps = self._num_steps
        if through_step is not None:
            settings = {r.noise_id: r.setting for r in self._releases if r.step <= through_step}
            num_steps = Counter((s.sampling_rate, s.noise_multiplier) for s in settings.values())
        return [Segment(rate, multiplier, steps) for (rate, multiplier), steps in num_steps.items()]

    def epsilon(self, delta: float, *, accountant: str = "pld", adjacency: str = "add_remove") -> "Guarantee":
        """What all releases together spend at `delta`."""
        from privlm.privacy import accounting

        return accounting.epsilon(self.segments(), delta, accountant=accountant, adjacency=adjacency)

    def budget_allows(
        self,
        next_step: "Segment",
        *,
        target_epsilon: float,
        delta: float,
        accountant: str = "pld",
        adjacency: str = "add_remove",
    ) -> bool:
        """Whether epsilon stays at or below the target after `next_step`.

        A query of the accountant takes about a second. Epsilon grows with the steps, so it is enough to
        remember how many are known to be affordable and how many are not: doubling, then bisection, 2
        log2(steps) queries in a whole run.
        """
        from privlm.privacy import accounting

        kind = (next_step.sampling_rate, next_step.noise_multiplier)
        others = [segment for segment in self.segments() if (segment.sampling_rate, segment.noise_multiplier) != kind]
        search = (kind, others, target_epsilon, delta, accountant, adjacency)
        if search != self._search:
            self._search, self._affordable, self._unaffordable = search, 0, math.inf
        steps = self._num_steps[kind] + next_step.steps
        while self._affordable < steps < self._unaffordable:
            probe = 2 * steps if self._unaffordable == math.inf else (steps + int(self._unaffordable)) // 2
            spent = accounting.epsilon(
                [*others, replace(next_step, steps=probe)], delta, accountant=accountant, adjacency=adjacency
            )
            if spent.epsilon <= target_epsilon:
                self._affordable = probe
            else:
                self._unaffordable = probe
        return steps <= self._affordable

    def _load(self, content: bytes) -> None:
        self._size = content.rfind(b"\n") + 1
        for number, line in enumerate(content[: self._size].splitlines(), start=1):
            try:
                self._count(Release.from_json(line.decode()))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise UsageError(
                    f"{self._path}: line {number} is not a release ({error}). The privacy spent so far is unknown, "
                    "so the run cannot go on: restore the file, or start a new run"
                ) from error

    def _count(self, release: Release) -> None:
        self._releases.append(release)
        if release.noise_id not in self._setting_of_noise:
            self._setting_of_noise[release.noise_id] = release.setting
            self._num_steps[release.setting.sampling_rate, release.setting.noise_multiplier] += 1

    def _append(self, path: Path, line: bytes) -> None:
        is_new = not path.exists()
        with path.open("ab") as file:
            file.truncate(self._size)  # what a kill or a full disk left of an unfinished line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync_directory(path.parent)
        self._size += len(line)
