"""The privacy ledger: every release is on disk before its noise is used.

Guarantee: the epsilon of the ledger covers all noise that was ever drawn for releases, across kills, resumes, stages
and populations. Noise drawn again for the same sums (equal noise id) is the same release and costs nothing more; fresh
noise for a repeated step is another release and counts again; the same noise for other sums is refused.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Container
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from privlm.errors import UsageError
from privlm.files import sync_directory
from privlm.privacy import keyed_random

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


class _Kind(NamedTuple):
    """Releases that an epsilon may count together: steps of one segment of an accountant, for one unit."""

    unit: str
    population: str
    sampling_rate: float
    noise_multiplier: float


@dataclass(frozen=True)
class Release:
    """One line of the ledger. A line of an older version names no stage, population, device or derivation."""

    segment: int  # counts runs of releases of one stage and population with the same setting
    step: int
    setting: Setting
    noise_id: str
    stage: str = ""
    population: str = ""  # whose units: "" where there is one population, or for units of all
    device: str = ""  # that drew the noise
    derivation: int = 1  # keyed_random.DERIVATION of that time

    @property
    def kind(self) -> _Kind:
        setting = self.setting
        return _Kind(setting.unit, self.population, setting.sampling_rate, setting.noise_multiplier)

    def is_like(self, other: Release) -> bool:
        """Whether the two belong to one segment where no other lies between them."""
        return (self.stage, self.population, self.setting) == (other.stage, other.population, other.setting)

    def to_json(self) -> str:
        first = {name: getattr(self, name) for name in ("stage", "population", "segment", "step")}
        last = {name: getattr(self, name) for name in ("device", "derivation", "noise_id")}
        return json.dumps(first | asdict(self.setting) | last, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Release:
        """Raises ValueError, TypeError or KeyError on anything that `to_json` does not write."""
        fields = json.loads(line)
        setting = Setting(**{name: fields.pop(name) for name in Setting.__dataclass_fields__})
        release = cls(**fields, setting=setting)
        numbers = [setting.sampling_rate, setting.noise_multiplier, setting.clipping_norm, setting.expected_batch_size]
        texts = [setting.unit, release.noise_id, release.stage, release.population, release.device]
        if not (all(map(math.isfinite, numbers)) and all(isinstance(text, str) for text in texts)):
            raise ValueError("a number is not finite, or a name or the noise id is no text")
        if not all(isinstance(number, int) for number in (release.segment, release.step, release.derivation)):
            raise ValueError("the segment, the step or the derivation is no whole number")
        return release


class Ledger:
    """Append-only record of releases in a JSON-lines file, or in memory where `path` is None.

    What `of` gives is the same ledger as one stage sees it: its releases are recorded under the stage's name, and
    `len` and `through_step` are of them alone, while budget and epsilon are always of the whole ledger.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Raises UsageError for a file that is damaged elsewhere than in an unfinished last line.

        An unfinished last line was being written when the run was killed; its noise was not used, so it is
        cut.
        """
        self._book = _Book(path)
        self._stage: str | None = None
        self._population = ""
        self._search: object = None  # what the two bounds below were found for
        self._affordable: float = 0
        self._unaffordable = math.inf

    def of(self, stage: str, population: str = "") -> Ledger:
        """This ledger as the stage called `stage` sees it, in releases of `population`."""
        view = Ledger()
        view._book, view._stage, view._population = self._book, stage, population
        return view

    @property
    def releases(self) -> tuple[Release, ...]:
        """All lines, of every stage."""
        return tuple(self._book.releases)

    def record(
        self, step: int, setting: Setting, noise_id: str, *, device: str = "", sums_digest: bytes | None = None
    ) -> None:
        """Writes one release and returns when it is durable.

        sums_digest: of the sums before noise. It is kept in memory and never written, since it tells of private data.

        Raises UsageError where the noise was released before with another stage, step, population or setting, or (as
        far as this process knows) with other sums: two releases of different sums with the same noise reveal their
        difference, which no accounting covers.
        """
        where = {"stage": self._stage or "", "population": self._population, "device": device}
        self._book.add(Release(0, step, setting, noise_id, **where, derivation=keyed_random.DERIVATION), sums_digest)

    def __len__(self) -> int:
        """Releases recorded, repeated ones included; in the view of a stage, its own."""
        return sum(map(self._is_mine, self._book.releases))

    def segments(self, through_step: int | None = None, *, unit: str | None = None) -> list[Segment]:
        """Steps per sampling rate and noise multiplier, each distinct noise counted once.

        through_step: of the releases that `len` counts only those of steps up to this one, and all others.
        unit: releases that protect this unit; what others cost is not in the answer.

        Raises UsageError where there are releases of several units and none is named.
        """
        num_steps = self._book.num_steps
        if through_step is not None:
            within = [r for r in self._book.releases if r.step <= through_step or not self._is_mine(r)]
            num_steps = Counter({r.noise_id: r.kind for r in within}.values())
        return _segments(num_steps, unit)

    def epsilon(
        self,
        delta: float,
        *,
        accountant: str = "pld",
        adjacency: str = "add_remove",
        unit: str | None = None,
        disjoint: bool = False,
    ) -> Guarantee:
        """What all releases together spend at `delta`.

        disjoint: whether the caller has seen that no unit belongs to two populations. Then a unit pays for the releases
        of its own population (and for those that name none): the largest of these epsilons. Otherwise it may belong to
        all of them, and the releases of all are composed.

        Raises UsageError where there are releases of several units and none is named.
        """
        from privlm.privacy import accounting

        def spent(segments: list[Segment]) -> Guarantee:
            return accounting.epsilon(segments, delta, accountant=accountant, adjacency=adjacency)

        num_steps = self._book.num_steps
        populations = sorted({kind.population for kind in num_steps} - {""}) if disjoint else []
        if not populations:
            return spent(_segments(num_steps, unit))
        of_each = [_segments(num_steps, unit, {"", population}) for population in populations]
        return max(map(spent, of_each), key=lambda guarantee: guarantee.epsilon)

    def budget_allows(
        self,
        next_step: Segment,
        *,
        target_epsilon: float,
        delta: float,
        accountant: str = "pld",
        adjacency: str = "add_remove",
        unit: str | None = None,
    ) -> bool:
        """Whether epsilon stays at or below the target after `next_step`; `unit` as for `segments`.

        A query of the accountant takes about a second. Epsilon grows with the steps, so it is enough to
        remember how many are known to be affordable and how many are not: doubling, then bisection, 2
        log2(steps) queries in a whole run.
        """
        from privlm.privacy import accounting

        kind = (next_step.sampling_rate, next_step.noise_multiplier)
        steps, others = next_step.steps, []
        for segment in self.segments(unit=unit):
            if (segment.sampling_rate, segment.noise_multiplier) == kind:
                steps += segment.steps
            else:
                others.append(segment)
        search = (kind, others, target_epsilon, delta, accountant, adjacency)
        if search != self._search:
            self._search, self._affordable, self._unaffordable = search, 0, math.inf
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

    def _is_mine(self, release: Release) -> bool:
        return self._stage is None or (release.stage, release.population) == (self._stage, self._population)


class _Book:
    """The lines of a ledger, on disk and in memory, which all views of it share."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._size = 0
        self.releases: list[Release] = []
        self._of_noise: dict[str, Release] = {}  # the first with each noise
        self.num_steps: Counter[_Kind] = Counter()  # distinct noise
        self._digests: dict[str, bytes] = {}  # of sums, by noise
        if path is not None and path.exists():
            self._load(path.read_bytes())

    def add(self, release: Release, sums_digest: bytes | None) -> None:
        before = self._other_with_this_noise(release)
        if before is not None:
            raise UsageError(
                f"step {release.step} would use noise again that was released at step {before.step} with "
                f"{_described(before)}, now with {_described(release)}: give the stage another seed, or take "
                "privacy.rng=secure"
            )
        if sums_digest is not None and self._digests.get(release.noise_id, sums_digest) != sums_digest:
            raise UsageError(
                f"step {release.step} would use noise again that this run has released with other sums, and the "
                "difference of the two would show them: give each stage another seed, or take privacy.rng=secure "
                "(a step that was taken again on a GPU needs trainer.deterministic=true)"
            )
        if self.releases:
            last = self.releases[-1]
            release = replace(release, segment=last.segment + (not release.is_like(last)))
        if self._path is not None:
            self._append(self._path, release.to_json().encode() + b"\n")
        self._count(release)
        if sums_digest is not None:
            self._digests[release.noise_id] = sums_digest

    def _other_with_this_noise(self, release: Release) -> Release | None:
        before = self._of_noise.get(release.noise_id)
        return None if before is None or (before.is_like(release) and before.step == release.step) else before

    def _load(self, content: bytes) -> None:
        self._size = content.rfind(b"\n") + 1
        for number, line in enumerate(content[: self._size].splitlines(), start=1):
            try:
                release = Release.from_json(line.decode())
                if self._other_with_this_noise(release) is not None:
                    raise ValueError("its noise is that of an earlier line, and its stage, step or setting is not")
                self._count(release)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise UsageError(
                    f"{self._path}: line {number} is not a release ({error}). The privacy spent so far is unknown, "
                    "so the run cannot go on: restore the file, or start a new run"
                ) from error

    def _count(self, release: Release) -> None:
        self.releases.append(release)
        if release.noise_id not in self._of_noise:
            self._of_noise[release.noise_id] = release
            self.num_steps[release.kind] += 1

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


def _segments(num_steps: Counter[_Kind], unit: str | None, populations: Container[str] | None = None) -> list[Segment]:
    """What an accountant counts: releases for `unit`, of these populations, or of all."""
    from privlm.privacy.accounting import Segment

    units = {kind.unit for kind in num_steps}
    if unit is None and len(units) > 1:
        raise UsageError(f"the ledger protects different units ({', '.join(sorted(units))}): ask for each alone, unit=")
    steps: Counter[tuple[float, float]] = Counter()
    for kind, count in num_steps.items():
        if unit in (None, kind.unit) and (populations is None or kind.population in populations):
            steps[kind.sampling_rate, kind.noise_multiplier] += count
    return [Segment(rate, multiplier, count) for (rate, multiplier), count in steps.items()]


def _described(release: Release) -> str:
    names = {"stage": release.stage, "population": release.population}
    return ", ".join([*(f"{name} {value}" for name, value in names.items() if value), str(release.setting)])
