"""The ledgers of a run read as one: its own, and one of each client that adds noise of its own.

Guarantee: every release of every ledger counts once. A unit pays for the releases of its own client and for those that
name none where the clients are known to be disjoint, and for all where they are not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from privlm.errors import UsageError
from privlm.privacy import composition
from privlm.privacy.ledger import Head, Ledger, Release
from privlm.privacy.ledger_chain import REMEDY, Kind
from privlm.privacy.ledger_paths import client_of, file_name

if TYPE_CHECKING:
    from privlm.privacy.accounting import Segment


class Accounts:
    """Read-only: what the ledgers hold now, those that other processes write after `refresh`."""

    def __init__(self, run: Ledger, clients: Mapping[str, Ledger]) -> None:
        """clients: by their ids. Raises UsageError where two ledgers hold the same noise."""
        self.run = run
        self.clients = dict(clients)
        self._refuse_shared_noise()

    def refresh(self) -> None:
        """Raises UsageError where a ledger does not follow what was known of it, or two hold the same noise."""
        for ledger in self.ledgers:
            ledger.refresh()
        self._refuse_shared_noise()

    @property
    def ledgers(self) -> tuple[Ledger, ...]:
        return self.run, *self.clients.values()

    @property
    def releases(self) -> tuple[Release, ...]:
        """All lines of all ledgers, those of one ledger in their order."""
        return tuple(release for ledger in self.ledgers for release in ledger.releases)

    @property
    def num_releases(self) -> int:
        return sum(ledger.head.releases for ledger in self.ledgers)

    @property
    def is_chained(self) -> bool:
        """False where one is of an older version, whose lines hold no digests."""
        return all(ledger.is_chained for ledger in self.ledgers)

    @property
    def heads(self) -> dict[str, Head]:
        """The ends of the clients' ledgers."""
        return {client: ledger.head for client, ledger in self.clients.items()}

    @property
    def num_steps(self) -> Counter[Kind]:
        """Distinct noise, by what an epsilon may count together."""
        return sum((ledger.num_steps for ledger in self.ledgers), Counter[Kind]())

    def segments(self, *, unit: str | None = None) -> list[Segment]:
        """Steps of all ledgers, per sampling rate and noise multiplier. Raises UsageError as Ledger.segments."""
        return composition.segments(self.num_steps, unit)

    def groups(self, unit: str | None, *, disjoint: bool) -> dict[str, tuple[Segment, ...]]:
        """The releases that a unit pays for, by its client; see composition.groups.

        A client that has released nothing pays for what the run's own ledger holds.
        """
        found = composition.groups(self.num_steps, unit, disjoint=disjoint)
        if not (disjoint and self.clients):
            return found
        of_all = tuple(composition.segments(self.num_steps, unit, {""}))
        return {client: found.get(client, of_all) for client in {**self.clients, **found} if client}

    def _refuse_shared_noise(self) -> None:
        owner: dict[str, str] = {}
        for client, ledger in {"": self.run, **self.clients}.items():
            name = str(ledger.path or f"the ledger of {client or 'the run'}")
            for noise_id in ledger.noise_ids:
                if owner.setdefault(noise_id, name) != name:
                    raise UsageError(
                        f"{owner[noise_id]} and {name} have released with the same noise, whose difference hides "
                        "nothing: no epsilon covers both. Give each client a series of its own (Stage.seed), or take "
                        "privacy.rng=secure"
                    )


def read_clients(paths: Iterable[Path], known: Iterable[str] = ()) -> dict[str, Ledger]:
    """The ledgers in these files by the clients that they are of: as their lines say, or as their names, where they
    have none yet.

    known: ids that the files of some may be named after. Raises UsageError for a damaged file, and for one that holds
    releases of another client than it is named after.
    """
    named = {file_name(client): client for client in known}
    found = {}
    for path in paths:
        ledger = Ledger(path)
        populations = dict.fromkeys(release.population for release in ledger.releases)
        for population in populations:
            if file_name(population) != path.name:
                raise UsageError(
                    f"{path}: holds releases of {f'client {population}' if population else 'no client'}, and is named "
                    f"after another: files were moved or swapped. {REMEDY}"
                )
        found[next(iter(populations), named.get(path.name, client_of(path)))] = ledger
    return found
