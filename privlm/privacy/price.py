"""What a run tells of its privacy: the content of privacy.json, while the run works and at its end.

While it works nothing is called a guarantee: the file says what the ledger had spent when it was written, beside the
plan, and a reader asks the ledger itself (privlm.report.told).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from privlm.errors import UsageError
from privlm.privacy.account import account, account_so_far
from privlm.privacy.accounting.types import json_number
from privlm.privacy.accounts import Accounts, read_clients
from privlm.privacy.client_plans import ClientPlans
from privlm.privacy.ledger import Ledger, Release
from privlm.privacy.ledger_paths import client_ledgers, ledgers_in
from privlm.privacy.plan import PrivacyPlan
from privlm.privacy.run_account import heads_of

PRICE_SECONDS = 10.0
"""So often at most does a working run write down what it has spent."""
_SHARE = 0.05  # of the time that telling may take: of many clients it takes seconds


class Price:
    """The plans of the private stages of a run, and how far each has come.

    stages: by name, a plan and the steps taken, or the plans of clients, whose ledgers say how far they are.
    public: stages that trained without privacy. previous: accounts that --force has put aside.
    directory: of the run, None in memory.
    """

    def __init__(self, previous: Sequence[Path] = (), directory: Path | None = None) -> None:
        self.stages: dict[str, tuple[PrivacyPlan, int] | ClientPlans] = {}
        self.public: list[str] = []
        self._previous = previous
        self._directory = directory
        self._clients: dict[str, Ledger] = {}  # that no stage of this try has opened
        self._told = time.monotonic()
        self._pause = PRICE_SECONDS

    def is_due(self) -> bool:
        """Whether the account on disk is old; then it is the caller's to write."""
        if not self.stages or time.monotonic() - self._told < self._pause:
            return False
        self._told = time.monotonic()
        return True

    def accounts(self, ledger: Ledger) -> Accounts:
        """All ledgers of the run as they are now: its own, those of the clients of all stages, and those that lie in
        its directory.

        Raises UsageError where another process has left one that does not follow what was known of it.
        """
        clients: dict[str, Ledger] = {}
        for stage in self.stages.values():
            clients |= stage.ledgers if isinstance(stage, ClientPlans) else {}
        known = {view.path for view in (*clients.values(), *self._clients.values())}
        if self._directory is not None:
            self._clients |= read_clients(path for path in client_ledgers(self._directory) if path not in known)
        whole = Accounts(ledger, self._clients | clients)
        whole.refresh()
        return whole

    def so_far(self, ledger: Ledger, flags: Sequence[str], *, quick: bool = False) -> dict[str, Any]:
        """Of a run that works. quick: on a coarse grid, which bounds the price from above."""
        start, whole = time.monotonic(), self.accounts(ledger)
        content = account_so_far(self._plans, whole, flags=flags, discretization=1e-3 if quick else None)
        self._pause = max(PRICE_SECONDS, (time.monotonic() - start) / _SHARE)
        return content | heads_of(whole)

    def final(self, ledger: Ledger, flags: Sequence[str]) -> dict[str, Any]:
        """Of a run all of whose private stages have ended."""
        whole = self.accounts(ledger)
        steps = {name: stage[1] for name, stage in self.stages.items() if not isinstance(stage, ClientPlans)}
        content = account(self._plans, whole, steps=steps, flags=flags) | heads_of(whole)
        if self._previous:
            asked = {name: content[name] for name in ("delta", "adjacency", "unit")}
            disjoint = content.get("are_disjoint", False)
            content["with_forced"] = price_with_forced(whole, self._previous, **asked, disjoint=disjoint)
        return content

    @property
    def _plans(self) -> dict[str, PrivacyPlan | ClientPlans]:
        return {name: stage if isinstance(stage, ClientPlans) else stage[0] for name, stage in self.stages.items()}


def flags(config: Any, *, public_stages: Sequence[str] = (), marks: Sequence[str] = ()) -> list[str]:
    """What a reader of the privacy statement must know besides its numbers."""
    found = {
        "seeded_noise": config.privacy.rng == "reproducible",
        "non_private_diagnostics": config.privacy.log_private_diagnostics,
        "early_stop_on_evaluation": OmegaConf.select(config, "trainer.early_stop_patience") is not None,
        "best_step_by_evaluation": bool(OmegaConf.select(config, "trainer.restore_best")),
        **{f"without_privacy: {name}": True for name in public_stages},
        **dict.fromkeys(marks, True),
        "smoke": config.scale == "smoke",
    }
    return [name for name, holds in found.items() if holds]


def price_with_forced(
    whole: Accounts,
    previous: Sequence[Path],
    *,
    delta: float,
    adjacency: str,
    unit: str | None,
    disjoint: bool = False,
) -> dict[str, Any]:
    """What a run and those that --force removed before it have spent together: {"accounts", "releases", "epsilon",
    "certified", "problem"}.

    previous: files, and folders of clients' ledgers. disjoint: whether the clients of the run are; those of the runs
    before had the same records, since the directory is that of one configuration on the same data.

    epsilon: None where an account is damaged, or noise was released with different sums; `problem` says so.
    """
    told: dict[str, Any] = {"accounts": [path.name for path in previous]}
    try:
        before = [Ledger(path) for account in previous for path in ledgers_in(account)]
        together = _together([*before, *whole.ledgers])
        answer = together.epsilon(delta, adjacency=adjacency, unit=unit, disjoint=disjoint)
    except UsageError as error:
        return told | {"releases": None, "epsilon": None, "certified": False, "problem": str(error)}
    releases = sum(segment.steps for segment in together.segments(unit=unit))
    price = {"epsilon": json_number(answer.epsilon), "certified": answer.guarantee}
    return told | {"releases": releases} | price | {"problem": None}


def _together(ledgers: Sequence[Ledger]) -> Ledger:
    """All releases in one ledger in memory. Raises UsageError where one noise hides different sums."""
    whole, of_noise = Ledger(), dict[str, Release]()
    for release in (release for ledger in ledgers for release in ledger.releases):
        before = of_noise.setdefault(release.noise_id, release)
        if (before.step, before.sums) != (release.step, release.sums) or not before.is_like(release):
            raise UsageError(
                f"step {release.step} was released with the same noise and other sums, whose difference hides nothing: "
                "no epsilon covers both. Give each run a seed of its own, or take privacy.rng=secure"
            )
        if before is release:
            view = whole.of(release.stage, release.population)
            view.record(release.step, release.setting, release.noise_id)
    return whole
