"""The privacy ledger: every release is on disk before its noise is used.

Guarantee: the epsilon of the ledger covers all noise that was ever drawn for releases, across kills, resumes, stages
and populations. Noise drawn again for the same sums (equal noise id) is the same release and costs nothing more; fresh
noise for a repeated step is another release and counts again; the same noise for other sums is refused. The lines form
a chain (privlm.privacy.ledger_chain), and one process at a time writes them (privlm.privacy.ledger_file).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import KeysView
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from privlm.errors import UsageError
from privlm.privacy import composition, keyed_random
from privlm.privacy.ledger_chain import (
    REMEDY,
    START,
    Head,
    Kind,
    Line,
    Release,
    Setting,
    decode,
    described,
    encode,
    heads,
    next_segment,
)
from privlm.privacy.ledger_file import LedgerFile
from privlm.privacy.ledger_paths import start_of

if TYPE_CHECKING:
    from privlm.privacy.accounting import Guarantee, Segment

__all__ = ["Head", "Ledger", "Release", "Setting"]


class Ledger:
    """Append-only record of releases in a JSON-lines file, or in memory where `path` is None.

    What `of` gives is the same ledger as one stage sees it: its releases are recorded under the stage's name, and
    `len` and `through_step` are of them alone, while budget and epsilon are always of the whole ledger.

    A run has one ledger, or one for each client that adds noise of its own (privlm.privacy.accounts joins them).
    """

    def __init__(self, path: Path | None = None) -> None:
        """Raises UsageError for a file that is damaged elsewhere than in an unfinished last line.

        An unfinished last line was being written when the run was killed; its noise was not used, so it is
        absent, and cut by the next release.
        """
        self._book = _Book(path)
        self._stage: str | None = None
        self._population = ""
        self._first_step = 0
        self._search: object = None  # what the two bounds below were found for
        self._affordable: float = 0
        self._unaffordable = math.inf

    def of(self, stage: str, population: str = "", *, first_step: int = 0) -> Ledger:
        """This ledger as the stage called `stage` sees it, in releases of `population`.

        first_step: that of the stage after which the steps of this view count from 1: a Trainer does so in each
            federated round anew, while the steps of a stage grow in the ledger.
        """
        assert first_step >= 0, "steps of a stage count from 1"
        view = Ledger()
        view._book, view._stage, view._population = self._book, stage, population
        view._first_step = first_step
        return view

    @property
    def path(self) -> Path | None:
        """None in memory."""
        return self._book.path

    @property
    def population(self) -> str:
        """Whose units the releases of this view are of."""
        return self._population

    @property
    def releases(self) -> tuple[Release, ...]:
        """All lines, of every stage."""
        return tuple(line.release for line in self._book.lines)

    @property
    def head(self) -> Head:
        """The end of the whole ledger, for whoever keeps something that was made of its releases."""
        return self._book.head

    @property
    def is_chained(self) -> bool:
        """False for one of an older version, whose lines hold no digests."""
        return self._book.is_chained

    def require(self, head: Head, recorded_by: str) -> None:
        """Raises UsageError unless `head` is an end that this ledger has had."""
        self._book.require(head, recorded_by)

    def refresh(self) -> None:
        """Reads what another process has written meanwhile, for all views of this ledger.

        Raises UsageError where that does not follow what was known.
        """
        self._book.refresh()

    def close(self) -> None:
        """Lets others write the file; a further release takes it again."""
        self._book.close()

    def record(
        self, step: int, setting: Setting, noise_id: str, *, device: str = "", sums_digest: bytes | None = None
    ) -> None:
        """Writes one release and returns when it is durable.

        sums_digest: of the sums before noise, sealed (Noise.seal), since it tells of private data. None: the noise is
            never drawn again, or the caller knows that it is for equal sums.

        Raises UsageError for values that no release has, and where the noise was released before with another stage,
        step, population or setting, or with other sums: two releases of different sums with the same noise reveal
        their difference, which no accounting covers. Raises PrivLMError where another process writes the file.
        """
        where = {"stage": self._stage or "", "population": self._population, "device": device}
        sums = "" if sums_digest is None else sums_digest.hex()
        step += self._first_step
        self._book.add(Release(0, step, setting, noise_id, **where, derivation=keyed_random.DERIVATION, sums=sums))

    def __len__(self) -> int:
        """Releases recorded, repeated ones included; in the view of a stage, its own."""
        return sum(map(self._is_mine, self.releases))

    def segments(self, through_step: int | None = None, *, unit: str | None = None) -> list[Segment]:
        """Steps per sampling rate and noise multiplier, each distinct noise counted once.

        through_step: of the releases that `len` counts only those of steps up to this one, by the count of this view,
            and all others.
        unit: releases that protect this unit; what others cost is not in the answer.

        Raises UsageError where there are releases of several units and none is named.
        """
        num_steps = self._book.num_steps
        if through_step is not None:
            last = self._first_step + through_step
            within = [r for r in self.releases if r.step <= last or not self._is_mine(r)]
            num_steps = Counter({r.noise_id: r.kind for r in within}.values())
        return composition.segments(num_steps, unit)

    def groups(self, unit: str | None, *, disjoint: bool) -> dict[str, tuple[Segment, ...]]:
        """The releases that a unit pays for, by its population; see composition.groups."""
        return composition.groups(self.num_steps, unit, disjoint=disjoint)

    @property
    def noise_ids(self) -> KeysView[str]:
        """Of the whole ledger, each once."""
        return self._book.noise_ids

    @property
    def num_steps(self) -> Counter[Kind]:
        """Distinct noise of the whole ledger, by what an epsilon may count together."""
        return self._book.num_steps

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
        how = {"accountant": accountant, "adjacency": adjacency}
        return composition.epsilon(self.groups(unit, disjoint=disjoint), delta, **how)

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
        self.path = path
        self._read()

    def _read(self) -> None:
        path = self.path
        self._file = None if path is None else LedgerFile(path)
        self._start = START if path is None else start_of(path)
        self.lines: list[Line] = []
        self._of_noise: dict[str, Release] = {}  # the first with each noise
        self.num_steps: Counter[Kind] = Counter()  # distinct noise
        if path is not None and self._file is not None:
            self._load(path, self._file.lines)

    @property
    def noise_ids(self) -> KeysView[str]:
        return self._of_noise.keys()

    def refresh(self) -> None:
        if self._file is None or self._file.is_current:
            return
        before = self.head
        self.close()
        self._read()
        self.require(before, "this process")

    @property
    def head(self) -> Head:
        return Head(len(self.lines), self.lines[-1].digest if self.lines else self._start)

    @property
    def is_chained(self) -> bool:
        return not self.lines or self.lines[0].digest != ""

    def require(self, head: Head, recorded_by: str) -> None:
        if head.releases > len(self.lines):
            raise UsageError(
                f"{self.path}: holds {len(self.lines)} releases, and {recorded_by} has recorded {head.releases}. "
                f"{REMEDY}"
            )
        if head not in heads(self.lines[: head.releases], self._start):
            raise UsageError(
                f"{self.path}: line {head.releases} is not the release that {recorded_by} has recorded: this is "
                f"another account, or one that was written anew. {REMEDY}"
            )

    def add(self, release: Release) -> None:
        if not self.is_chained:
            raise UsageError(
                f"{self.path} is of an older version, whose lines hold no digests: nothing says that it is whole, so "
                "that no run goes on from it. Start again with --force, which keeps this account beside the new one"
            )
        if (fault := self._fault_of_noise(release)) is not None:
            raise UsageError(fault)
        if self.lines:
            release = replace(release, segment=next_segment(self.lines[-1].release, release))
        try:
            text, digest = encode(release, self.head.digest)
        except ValueError as error:
            raise UsageError(f"a release that no ledger can hold: {error}") from error
        if self._file is not None:
            self._file.append(text)
        self._count(Line(release, digest))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _fault_of_noise(self, release: Release) -> str | None:
        """What is wrong with the noise of a release, where an earlier one has it."""
        before = self._of_noise.get(release.noise_id)
        if before is None:
            return None
        if before.step != release.step or not before.is_like(release):
            return (
                f"step {release.step} would use noise again that was released at step {before.step} with "
                f"{described(before)}, now with {described(release)}: give the stage another seed, or take "
                "privacy.rng=secure"
            )
        if before.sums != release.sums:
            return (
                f"step {release.step} would use noise again that has been released with other sums, and the "
                "difference of the two would show them: give each stage another seed, or take privacy.rng=secure. (A "
                "step that is taken again, after a kill, must give the same sums bit for bit: the same data, learning "
                "rate and number of threads, on a GPU trainer.deterministic=true)"
            )
        return None

    def _load(self, path: Path, content: bytes) -> None:
        for number, line in enumerate(decode(path, content, self._start), start=1):
            if self._fault_of_noise(line.release) is not None:
                raise UsageError(
                    f"{path}: line {number} is not a release (its noise is that of an earlier line, and its stage, "
                    f"step, setting or sums are not). {REMEDY}"
                )
            self._count(line)

    def _count(self, line: Line) -> None:
        self.lines.append(line)
        release = line.release
        if release.noise_id not in self._of_noise:
            self._of_noise[release.noise_id] = release
            self.num_steps[release.kind] += 1
