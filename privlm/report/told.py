"""What readers of a run are told of its privacy: privacy.json where the run is done, else what its ledger holds now.

A price that the ledger does not bear out is told by nobody: reading raises UsageError, which names file and line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from privlm.privacy.accounts import Accounts
    from privlm.privacy.ledger import Release

LEDGERS = ("privacy_ledger.jsonl", "privacy_ledger")
"""Of the run, and the folder of its clients'. Where there is one, or privacy.json tells of privacy, they are read."""


def told(
    directory: Path, privacy: dict[str, Any] | None, *, is_done: bool, mechanism: Callable[[], str]
) -> dict[str, Any] | None:
    """The content of privacy.json as it may be repeated, with `taken`: what the ledgers say of each stage.

    Of a run that is not done `epsilon` is what the ledger has spent by now, `guarantee` is False, and `spent` says how
    many releases cost it; planned_epsilon and planned_steps stay beside it. Numbers that the ledger cannot give are
    None.

    privacy: the content of privacy.json. mechanism: that of the configuration; not asked where a file tells of privacy,
        since to read a configuration takes longer than all else.

    Raises UsageError for a ledger that does not add up, or does not bear out what privacy.json says.
    """
    is_told = privacy is not None and privacy.get("mechanism") != "none"
    if not (is_told or any((directory / name).exists() for name in LEDGERS) or mechanism() != "none"):
        return privacy
    from privlm.errors import UsageError
    from privlm.privacy.run_account import read_account

    account = read_account(directory)
    releases = 0 if account is None else account.whole.num_releases
    if is_done:
        if account is not None and releases and not is_told:
            raise UsageError(
                f"{account.written_in} holds {releases} releases, and privacy.json tells no price of them: restore "
                "it, or start again with --force"
            )
        if account is None or privacy is None:
            return privacy
        return privacy | {"account": account.describe(), "taken": taken(account.whole)}
    whole = "there is no ledger" if account is None else account.describe()
    content = privacy if is_told and privacy is not None else {"mechanism": mechanism()}
    content |= {"final": False, "guarantee": False, "account": whole}
    content |= {"epsilon": None, "certificate": None, "bounds": {}, "estimates": {}, "repeated_releases": 0}
    if account is None:
        return content | {"spent": None, "taken": {}}
    return content | spent(account.whole, content) | {"taken": taken(account.whole)}


def spent(whole: Accounts, privacy: Mapping[str, Any]) -> dict[str, Any]:
    """What the ledgers hold by now, at the delta of privacy.json; of disjoint clients, what the one that pays most has
    spent.
    """
    if not whole.num_releases:
        return {"spent": {"releases": 0, "epsilon": 0.0, "certified": True}}
    distinct = sum(segment.steps for segment in whole.segments(unit=privacy.get("unit")))
    repeated = {"repeated_releases": distinct - sum(stage["steps"] for stage in taken(whole).values())}
    if not {"delta", "accountant", "adjacency"} <= privacy.keys():
        return repeated | {"spent": {"releases": distinct, "epsilon": None, "certified": False}}
    from privlm.privacy import composition
    from privlm.privacy.accounting.types import json_number

    how = {"accountant": privacy["accountant"], "adjacency": privacy["adjacency"]}
    groups = whole.groups(privacy.get("unit"), disjoint=bool(privacy.get("are_disjoint")))
    answer = composition.epsilon(groups, float(privacy["delta"]), **how)
    price = {"epsilon": json_number(answer.epsilon), "certified": answer.guarantee}
    return repeated | {
        "epsilon": price["epsilon"],
        "accountant": answer.accountant,
        "certificate": answer.to_dict(),
        "spent": {"releases": distinct, **price},
    }


def taken(whole: Accounts) -> dict[str, dict[str, Any]]:
    """Of each stage: steps (of clients all together), releases, and its settings with the number of distinct releases
    of each.
    """
    stages: dict[str, dict[str, Any]] = {}
    noises: dict[str, dict[str, Any]] = {}
    for release in whole.releases:
        noises.setdefault(release.stage, {}).setdefault(release.noise_id, release)
    for stage, of_noise in noises.items():
        distinct = list(of_noise.values())
        settings = Counter(release.setting for release in distinct)
        stages[stage] = {
            "steps": len({(release.population, release.step) for release in distinct}),
            "releases": len(distinct),
            "settings": [vars(setting) | {"releases": count} for setting, count in settings.items()],
        }
        if of_clients := _by_client(distinct):
            stages[stage]["clients"] = of_clients
    return stages


def _by_client(releases: Iterable[Release]) -> dict[str, dict[str, int]]:
    """Steps and releases of each client that adds noise of its own."""
    steps: dict[str, list[int]] = {}
    for release in releases:
        if release.population:
            steps.setdefault(release.population, []).append(release.step)
    return {client: {"steps": len(set(of)), "releases": len(of)} for client, of in steps.items()}
