"""Ledgers of clients: their files, their steps over rounds, several processes, and all of them read as one."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from privlm.errors import PrivLMError, UsageError
from privlm.privacy.accounts import Accounts, read_clients
from privlm.privacy.ledger import Ledger, Setting
from privlm.privacy.ledger_paths import (
    CLIENTS,
    LEDGER,
    client_ledger,
    client_ledgers,
    file_name,
    kept_accounts,
    previous_accounts,
    put_aside,
)

pytestmark = pytest.mark.torch_free

DELTA = 1e-3
SETTINGS = {
    "north": Setting(0.1, 1.0, 1.0, 10.0, "record"),
    "south": Setting(0.4, 1.0, 1.0, 10.0, "record"),
    "a/ü..~ 1": Setting(0.2, 1.5, 1.0, 10.0, "record"),
}
ROUNDS, STEPS_A_ROUND = 3, 4


def federated(directory: Path, *, first_round: int = 0, rounds: int = ROUNDS, series: str = "") -> dict[str, Ledger]:
    """Ledgers of clients that have each taken some steps in some rounds, by a count that starts anew in each."""
    ledgers = {client: Ledger(client_ledger(directory, client)) for client in SETTINGS}
    for number in range(first_round, first_round + rounds):
        for client, setting in SETTINGS.items():
            view = ledgers[client].of("train", client, first_step=number * STEPS_A_ROUND)
            for step in range(1, 1 + STEPS_A_ROUND):
                view.record(step, setting, f"{client} {number} {step}{series}")
    for ledger in ledgers.values():
        ledger.close()
    return ledgers


def price(*releases: tuple[Setting, int], delta: float = DELTA) -> float:
    """By dp-accounting, on the grid of the project."""
    whole = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=1e-4)
    for setting, steps in releases:
        noise = dp_accounting.GaussianDpEvent(setting.noise_multiplier)
        event = dp_accounting.PoissonSampledDpEvent(setting.sampling_rate, noise)
        whole.compose(dp_accounting.SelfComposedDpEvent(event, steps))
    return whole.get_epsilon(delta)


# --- files ----------------------------------------------------------------------------------------------------------


@given(st.sets(st.text(min_size=1), min_size=2, max_size=20))
@settings(deadline=None, max_examples=200)
def test_different_clients_have_different_files_of_safe_names(clients: set[str]) -> None:
    names = {file_name(client) for client in clients}
    assert len(names) == len(clients)
    for name in names:
        assert name.isascii()
        assert len(name) <= 126
        assert not set(name.removesuffix(".jsonl")) & set('/\\.:*?"<>| \0')


@pytest.mark.parametrize("client", ["..", ".", "a/b", "a" * 500, "ü" * 500, "\ud800", "privacy_ledger", "x.jsonl", "~"])
def test_a_ledger_of_a_client_of_any_name_is_read_back_as_its_own(client: str, tmp_path: Path) -> None:
    path = client_ledger(tmp_path, client)
    Ledger(path).of("train", client).record(1, SETTINGS["north"], "a")
    assert path.parent == tmp_path / CLIENTS
    assert list(read_clients(client_ledgers(tmp_path))) == [client]
    path.write_text("")
    assert list(read_clients([path], known=[client, "other"])) == [client]


def test_long_names_that_begin_alike_or_look_like_digests_stay_apart() -> None:
    long, longer = "a" * 500, "a" * 501
    imitation = file_name(long).removesuffix(".jsonl")
    assert len({file_name(name) for name in (long, longer, imitation, "a%2F", "a/", "A", "a")}) == 7


# --- steps over rounds ----------------------------------------------------------------------------------------------


def test_steps_that_each_round_counts_anew_grow_in_the_ledger(tmp_path: Path) -> None:
    ledger = federated(tmp_path)["north"]
    assert [release.step for release in ledger.releases] == list(range(1, 13))
    assert {release.segment for release in ledger.releases} == {0}
    view = ledger.of("train", "north", first_step=4)
    assert [sum(part.steps for part in view.segments(through_step=step)) for step in (0, 1, 4, 99)] == [4, 5, 8, 12]
    assert len(view) == 12
    other = ledger.of("train", "south", first_step=0)
    assert sum(part.steps for part in other.segments(through_step=0)) == 12  # nothing is its own


def test_noise_of_another_round_is_no_noise_of_the_same_step(tmp_path: Path) -> None:
    ledger = federated(tmp_path)["north"]
    setting = SETTINGS["north"]
    ledger.of("train", "north", first_step=4).record(2, setting, "north 1 2")  # taken again with the same noise
    assert sum(part.steps for part in ledger.segments()) == 12
    with pytest.raises(UsageError, match="step 10 would use noise again that was released at step 6"):
        ledger.of("train", "north", first_step=8).record(2, setting, "north 1 2")


# --- processes ------------------------------------------------------------------------------------------------------


def _work(directory: Path, number: int) -> None:
    view = Ledger(client_ledger(directory, "north")).of("train", "north", first_step=number * 2)
    for step in (1, 2):
        view.record(step, SETTINGS["north"], f"by the worker {number} {step}")


def test_what_another_process_writes_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    federated(tmp_path, rounds=1)
    ledger = Ledger(client_ledger(tmp_path, "north"))
    view, head = ledger.of("train", "north"), ledger.head
    for number in (2, 3):
        worker = multiprocessing.get_context("spawn").Process(target=_work, args=(tmp_path, number))
        worker.start()
        worker.join()
        assert worker.exitcode == 0
    assert ledger.head == head
    view.refresh()
    assert len(view) == 8
    ledger.require(head, "what was known")
    view.record(9, SETTINGS["north"], "here again")
    assert len(Ledger(client_ledger(tmp_path, "north")).releases) == 9


def test_a_ledger_that_was_written_anew_is_no_continuation(tmp_path: Path) -> None:
    federated(tmp_path, rounds=1)
    ledger = Ledger(client_ledger(tmp_path, "north"))
    client_ledger(tmp_path, "north").unlink()
    federated(tmp_path, rounds=2, series="'")
    with pytest.raises(UsageError, match="line 4 is not the release that this process has recorded"):
        ledger.refresh()


def test_two_writers_of_one_client_are_refused_and_of_two_clients_are_not(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    worker = context.Process(target=_work, args=(tmp_path, 0))
    ledger = Ledger(client_ledger(tmp_path, "north"))
    ledger.of("train", "north").record(1, SETTINGS["north"], "mine")
    worker.start()
    worker.join()
    assert worker.exitcode == 1  # it was refused
    ledger.close()
    Ledger(client_ledger(tmp_path, "south")).of("train", "south").record(1, SETTINGS["south"], "theirs")
    again = Ledger(client_ledger(tmp_path, "north"))
    worker = context.Process(target=_work, args=(tmp_path, 0))
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    with pytest.raises(PrivLMError, match="has changed since it was read"):
        again.of("train", "north").record(2, SETTINGS["north"], "not mine")


# --- all as one -----------------------------------------------------------------------------------------------------


def test_disjoint_clients_cost_what_the_dearest_of_them_costs_and_others_what_all_cost(tmp_path: Path) -> None:
    federated(tmp_path)
    run = Ledger(tmp_path / LEDGER)
    of_all = Setting(0.3, 2.0, 1.0, 5.0, "record")
    for step in range(5):
        run.of("before").record(step, of_all, f"run {step}")
    whole = Accounts(run, read_clients(client_ledgers(tmp_path)))
    assert whole.num_releases == 5 + 3 * 12

    from privlm.privacy import composition

    answers = composition.of_each(whole.groups("record", disjoint=True), DELTA)
    for client, setting in SETTINGS.items():
        assert answers[client].epsilon == pytest.approx(price((of_all, 5), (setting, 12)), rel=1e-6)
    assert composition.largest(answers.values()) == answers["south"]
    together = composition.epsilon(whole.groups("record", disjoint=False), DELTA)
    everything = price((of_all, 5), *((setting, 12) for setting in SETTINGS.values()))
    assert together.epsilon == pytest.approx(everything, rel=1e-6)
    assert together.epsilon > answers["south"].epsilon


def test_one_client_that_nothing_certifies_leaves_no_guarantee() -> None:
    from privlm.privacy import composition
    from privlm.privacy.accounting import Segment

    groups = {"many": (Segment(0.5, 5.0, 10),), "few": (Segment(0.5, 20.0, 1),)}
    answers = composition.of_each(groups, DELTA)
    assert composition.largest(answers.values()).guarantee
    estimated = composition.of_each(groups, DELTA, accountant="gdp")
    mixed = composition.largest([answers["many"], estimated["few"]])
    assert mixed.epsilon == answers["many"].epsilon
    assert not mixed.guarantee


def test_a_client_that_has_released_nothing_pays_for_what_the_run_has_released(tmp_path: Path) -> None:
    run = Ledger()
    run.of("before").record(1, SETTINGS["south"], "run")
    whole = Accounts(run, {"idle": Ledger(client_ledger(tmp_path, "idle"))})
    assert whole.groups("record", disjoint=True) == {"idle": tuple(run.segments())}


def test_equal_clients_are_asked_about_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from privlm.privacy import accounting, composition
    from privlm.privacy.accounting import Segment

    asked = []
    compute = accounting.epsilon
    monkeypatch.setattr(accounting, "epsilon", lambda *a, **k: asked.append(a) or compute(*a, **k))
    groups = {str(client): (Segment(0.1, 3.0, 5), Segment(0.2, 3.0, 5 + client % 2)) for client in range(50)}
    assert len(composition.of_each(groups, DELTA)) == 50
    assert len(asked) == 2


def test_the_same_noise_in_two_ledgers_is_refused(tmp_path: Path) -> None:
    for client, setting in SETTINGS.items():
        Ledger(client_ledger(tmp_path, client)).of("train", client).record(1, setting, "one noise")
    with pytest.raises(UsageError, match=r"have released with the same noise, whose difference hides nothing"):
        Accounts(Ledger(), read_clients(client_ledgers(tmp_path)))


# --- put aside ------------------------------------------------------------------------------------------------------


def test_accounts_that_were_put_aside_are_a_part_of_each_clients_chain(tmp_path: Path) -> None:
    federated(tmp_path)
    Ledger(tmp_path / LEDGER).of("before").record(1, SETTINGS["south"], "run")
    assert [path.name for path in put_aside(tmp_path)] == ["privacy_ledger.1.jsonl", "privacy_ledger.1"]
    assert client_ledgers(tmp_path) == []
    assert put_aside(tmp_path) == []
    federated(tmp_path, series="'")
    put_aside(tmp_path)
    federated(tmp_path, series="''")
    assert [path.name for path in kept_accounts(tmp_path)] == [
        "privacy_ledger.1", "privacy_ledger.1.jsonl", "privacy_ledger.2"
    ]  # fmt: skip
    path = client_ledger(tmp_path, "north")
    assert previous_accounts(path) == [tmp_path / f"privacy_ledger.{number}" / path.name for number in (1, 2)]
    kept = previous_accounts(path)[1]
    assert len(Ledger(kept).releases) == len(Ledger(path).releases) == 12
    lines = kept.read_bytes().splitlines(keepends=True)
    kept.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(UsageError, match=r"line 1 does not follow the account that this one began after"):
        Ledger(path)


def test_a_ledger_in_a_folder_of_another_name_follows_nothing(tmp_path: Path) -> None:
    federated(tmp_path)
    put_aside(tmp_path)
    assert previous_accounts(tmp_path / "elsewhere" / "north.jsonl") == []
