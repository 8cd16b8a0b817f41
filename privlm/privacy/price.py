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
from privlm.privacy.accounting.types import json_number
from privlm.privacy.ledger import Ledger, Release
from privlm.privacy.plan import PrivacyPlan, account, account_so_far
from privlm.privacy.run_account import KEY, as_json

PRICE_SECONDS = 10.0
"""So often at most does a working run write down what it has spent."""


class Price:
    """The plans of the private stages of a run, and how far each has come.

    public: stages that trained without privacy. previous: accounts that --force has put aside.
    """

    def __init__(self, previous: Sequence[Path] = ()) -> None:
        self.stages: dict[str, tuple[PrivacyPlan, int]] = {}
        self.public: list[str] = []
        self._previous = previous
        self._told = time.monotonic()

    def is_due(self) -> bool:
        """Whether the account on disk is old; then it is the caller's to write."""
        if not self.stages or time.monotonic() - self._told < PRICE_SECONDS:
            return False
        self._told = time.monotonic()
        return True

    def so_far(self, ledger: Ledger, flags: Sequence[str], *, quick: bool = False) -> dict[str, Any]:
        """Of a run that works. quick: on a coarse grid, which bounds the price from above."""
        plans = {name: plan for name, (plan, _) in self.stages.items()}
        content = account_so_far(plans, ledger, flags=flags, discretization=1e-3 if quick else None)
        return content | {KEY: as_json(ledger.head)}

    def final(self, ledger: Ledger, flags: Sequence[str]) -> dict[str, Any]:
        """Of a run all of whose private stages have ended."""
        plans = {name: plan for name, (plan, _) in self.stages.items()}
        steps = {name: steps for name, (_, steps) in self.stages.items()}
        content = account(plans, ledger, steps=steps, flags=flags) | {KEY: as_json(ledger.head)}
        if self._previous:
            asked = {name: content[name] for name in ("delta", "adjacency", "unit")}
            content["with_forced"] = price_with_forced(ledger, self._previous, **asked)
        return content


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
    ledger: Ledger, previous: Sequence[Path], *, delta: float, adjacency: str, unit: str | None
) -> dict[str, Any]:
    """What a run and those that --force removed before it have spent together: {"accounts", "releases", "epsilon",
    "certified", "problem"}.

    epsilon: None where an account is damaged, or noise was released with different sums; `problem` says so.
    """
    told: dict[str, Any] = {"accounts": [path.name for path in previous]}
    try:
        whole = _together([*(Ledger(path) for path in previous), ledger])
        answer = whole.epsilon(delta, adjacency=adjacency, unit=unit)
    except UsageError as error:
        return told | {"releases": None, "epsilon": None, "certified": False, "problem": str(error)}
    releases = sum(segment.steps for segment in whole.segments(unit=unit))
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
