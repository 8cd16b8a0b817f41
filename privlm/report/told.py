"""What readers of a run are told of its privacy: privacy.json where the run is done, else what its ledger holds now.

A price that the ledger does not bear out is told by nobody: reading raises UsageError, which names file and line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from privlm.privacy.ledger import Ledger

FILES = ("privacy_ledger.jsonl", "privacy.json", "result.json")
"""Where one of these tells of privacy, the ledger is read."""


def told(
    directory: Path, privacy: dict[str, Any] | None, *, is_done: bool, is_private: Callable[[], bool]
) -> dict[str, Any] | None:
    """The content of privacy.json as it may be repeated, with `taken`: what the ledger says of each stage.

    Of a run that is not done `epsilon` is what the ledger has spent by now, `guarantee` is False, and `spent` says how
    many releases cost it; planned_epsilon and planned_steps stay beside it. Numbers that the ledger cannot give are
    None.

    privacy: the content of privacy.json. is_private: whether the configuration asks for privacy; not asked where a file
        tells of it, since to read a configuration takes longer than all else.

    Raises UsageError for a ledger that does not add up, or does not bear out what privacy.json says.
    """
    is_told = privacy is not None and privacy.get("mechanism") != "none"
    if not (is_told or (directory / FILES[0]).exists() or is_private()):
        return privacy
    from privlm.errors import UsageError
    from privlm.privacy.run_account import read_account

    account = read_account(directory)
    releases = 0 if account is None else account.ledger.head.releases
    if is_done:
        if releases and not is_told:
            raise UsageError(
                f"{directory / FILES[0]} holds {releases} releases, and privacy.json tells no price of them: restore "
                "it, or start again with --force"
            )
        if account is None or privacy is None:
            return privacy
        return privacy | {"account": account.describe(), "taken": taken(account.ledger)}
    whole = "there is no ledger" if account is None else account.describe()
    content = {"mechanism": "dp_sgd"} | (privacy or {} if is_told else {})
    content |= {"final": False, "guarantee": False, "account": whole}
    content |= {"epsilon": None, "certificate": None, "bounds": {}, "estimates": {}, "repeated_releases": 0}
    if account is None:
        return content | {"spent": None, "taken": {}}
    return content | spent(account.ledger, content) | {"taken": taken(account.ledger)}


def spent(ledger: Ledger, privacy: Mapping[str, Any]) -> dict[str, Any]:
    """What the ledger holds by now, at the delta of privacy.json."""
    if not ledger.releases:
        return {"spent": {"releases": 0, "epsilon": 0.0, "certified": True}}
    segments = ledger.segments(unit=privacy.get("unit"))
    distinct = sum(segment.steps for segment in segments)
    repeated = {"repeated_releases": distinct - sum(stage["steps"] for stage in taken(ledger).values())}
    if not {"delta", "accountant", "adjacency"} <= privacy.keys():
        return repeated | {"spent": {"releases": distinct, "epsilon": None, "certified": False}}
    from privlm.privacy import accounting
    from privlm.privacy.accounting.types import json_number

    how = {"accountant": privacy["accountant"], "adjacency": privacy["adjacency"]}
    answer = accounting.epsilon(segments, float(privacy["delta"]), **how)
    price = {"epsilon": json_number(answer.epsilon), "certified": answer.guarantee}
    return repeated | {
        "epsilon": price["epsilon"],
        "accountant": answer.accountant,
        "certificate": answer.to_dict(),
        "spent": {"releases": distinct, **price},
    }


def taken(ledger: Ledger) -> dict[str, dict[str, Any]]:
    """Of each stage: steps, releases, and its settings with the number of distinct releases of each."""
    stages: dict[str, dict[str, Any]] = {}
    noises: dict[str, dict[str, Any]] = {}
    for release in ledger.releases:
        noises.setdefault(release.stage, {}).setdefault(release.noise_id, release)
    for stage, of_noise in noises.items():
        distinct = list(of_noise.values())
        settings = Counter(release.setting for release in distinct)
        stages[stage] = {
            "steps": len({release.step for release in distinct}),
            "releases": len(distinct),
            "settings": [vars(setting) | {"releases": count} for setting, count in settings.items()],
        }
    return stages
