"""Rounds over a network of nodes, each with a folder of its own: the model, the price and the faults of the other
engines.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.federation import CLIENTS, config_of, federation
from support.flower import Network

from privlm.config import PrivacyConfig, defaults
from privlm.errors import UsageError
from privlm.federated.flower.engine import Flower
from privlm.federated.flower.ledger_copies import LedgerCopies, written_after
from privlm.federated.outcome import Federated
from privlm.federated.rounds import rounds
from privlm.job import Stage
from privlm.privacy.ledger import Ledger
from privlm.privacy.ledger_paths import client_ledger

TWO_NODES = {number: {"partition-id": number - 7, "num-partitions": 2} for number in (7, 8)}


def private() -> Any:
    values = {"mechanism": "dp_sgd", "noise_multiplier": 1.0, "epsilon": None, "rng": "reproducible"}
    return defaults(PrivacyConfig, "privacy", "dp_sgd", **values, delta=1e-3, allow_large_delta=True)


class Trained:
    """The rounds of a federation over a network, in `folder`; the network is there to be broken before."""

    def __init__(
        self, folder: Path, nodes: Any = None, name: str = "fedavg", privacy: Any = None, **changes: Any
    ) -> None:
        base = {"engine": "flower", "timeout_s": 0.3, "connect_timeout_s": 1}
        self.config = config_of(name, privacy, **(base | changes))
        self.folder = folder
        self.make = partial(federation, self.config)
        self.network = Network(self.make, folder / "nodes", nodes or TWO_NODES)

    def run(self) -> Federated:
        config, run = self.config, self.folder / "run"
        with (
            pytest.MonkeyPatch.context() as patch,
            Stage.at(run, trainer=config.trainer, privacy=config.privacy) as stage,
        ):
            self.network.use(patch)
            self.notes: list[str] = []
            return rounds(
                stage,
                self.make(),
                engine=lambda worker: Flower(self.network, worker.federation, worker.place, self.notes.append),
            )


def in_process(folder: Path, name: str = "fedavg", privacy: Any = None, **changes: Any) -> Federated:
    config = config_of(name, privacy, **changes)
    with Stage.at(folder, trainer=config.trainer, privacy=config.privacy) as stage:
        return rounds(stage, federation(config))


@pytest.mark.parametrize(
    ("name", "changes"),
    [("fedavg", {}), ("scaffold", {}), ("fedadam", {"optimizer_state": "keep"}), ("fedavg", {"wire": "int8"})],
)
def test_a_network_gives_the_model_of_one_process(tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
    found = Trained(tmp_path, name=name, **changes).run()
    assert found.outcome == in_process(tmp_path / "one", name, **changes).outcome
    assert found.outcome.replies == 4 * len(CLIENTS)


def test_what_a_client_keeps_lies_with_its_node_alone(tmp_path: Path) -> None:
    Trained(tmp_path, name="scaffold").run()
    kept = {str(path.relative_to(tmp_path)).split("/")[0] for path in tmp_path.rglob("round-*.safetensors")}
    assert kept == {"nodes"}
    assert {path.parent.name for path in (tmp_path / "nodes" / "8").rglob("round-*")} == {"c1", "c3"}


# --- the price --------------------------------------------------------------------------------------------------------


def price(run: Path) -> dict[str, Any]:
    return json.loads((run / "privacy.json").read_text())


def test_the_server_tells_the_price_from_copies_of_the_nodes_ledgers(tmp_path: Path) -> None:
    trained = Trained(tmp_path, privacy=private())
    found = trained.run()
    alone = in_process(tmp_path / "one", privacy=private())
    assert found.outcome.digest == alone.outcome.digest
    assert price(tmp_path / "run")["epsilon"] == price(tmp_path / "one")["epsilon"]
    for client in CLIENTS:
        copy = client_ledger(tmp_path / "run", client)
        (own,) = (tmp_path / "nodes").rglob(f"privacy_ledger/{copy.name}")
        assert copy.read_bytes() == own.read_bytes()
        assert len(Ledger(copy)) == 4 * 3
    assert trained.notes == []


def test_what_a_lost_reply_has_spent_is_counted_with_the_next_one_or_noted(tmp_path: Path) -> None:
    trained = Trained(tmp_path, privacy=private(), rounds=3)
    trained.network.mute = {(7, "2"), (8, "3")}
    found = trained.run()
    assert found.outcome.failures == 4
    assert len(Ledger(client_ledger(tmp_path / "run", "c0"))) == 3 * 3
    assert len(Ledger(client_ledger(tmp_path / "run", "c1"))) == 2 * 3
    (note,) = trained.notes
    assert note.startswith("the ledgers of c1, c3 were not heard of again")


def test_a_ledger_that_does_not_follow_the_copy_ends_the_run(tmp_path: Path) -> None:
    path = tmp_path / "c0.jsonl"
    path.write_bytes(b"one\ntwo\ntor")
    assert written_after(path, 4) == b"two\n"
    with pytest.raises(UsageError, match="ends before what the server has"):
        written_after(path, 9)
    copies = LedgerCopies(tmp_path)
    copies.take("c0", 0, b"one\n")
    with pytest.raises(UsageError, match="written by somebody else"):
        copies.take("c0", 0, b"one\n")


def test_a_private_run_is_not_forced_while_its_ledgers_lie_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "privacy_ledger.1").mkdir()
    with pytest.raises(UsageError, match="give it another seed"):
        LedgerCopies(tmp_path)


def test_a_node_with_other_numbers_of_rows_adds_no_noise_that_was_planned_for_these(tmp_path: Path) -> None:
    trained = Trained(tmp_path, {7: {"partition-id": 0}, 8: {"client": "c1"}}, privacy=private(), rounds=1)
    work = trained.network.work
    trained.network.work = lambda settings, fields, body: work(settings, fields | {"rows": 99}, body)
    with pytest.raises(Exception, match="planned for 99"):
        trained.run()
    assert not list((tmp_path / "nodes").rglob("privacy_ledger/*"))


# --- who serves whom, and who does not --------------------------------------------------------------------------------


def test_clients_of_a_node_that_does_not_answer_fail_and_the_round_goes_on(tmp_path: Path) -> None:
    trained = Trained(tmp_path, rounds=3)
    trained.network.mute = {(8, "2")}
    found = trained.run()
    assert (found.outcome.replies, found.outcome.failures) == (10, 2)
    told = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert [json.loads(line)["value"] for line in told.splitlines() if '"failures"' in line] == [0, 2, 0]


def test_a_node_that_comes_back_under_another_id_goes_on_with_its_folder(tmp_path: Path) -> None:
    trained = Trained(tmp_path, name="scaffold", rounds=3)
    settings, work = trained.network.settings, trained.network.work

    def restart(own: Any, fields: Any, body: bytes) -> Any:
        answered = work(own, fields, body)
        if fields["client"] == "c3" and 8 in settings:
            settings[9] = settings.pop(8)
        return answered

    trained.network.work = restart
    assert trained.run().outcome == in_process(tmp_path / "one", "scaffold", rounds=3).outcome


def test_an_error_of_flowers_is_told_by_its_number_since_its_text_may_hold_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained = Trained(tmp_path, rounds=2)
    work = trained.network.work

    def breaking(own: Any, fields: Any, body: bytes) -> Any:
        trained.network.broken = {8}
        return work(own, fields, body)

    trained.network.work = breaking
    found = trained.run()
    assert found.outcome.failures == 4  # c1 and c3 in both rounds: c0 comes before them
    assert "c3 is left out: its SuperNode gave Flower's error 5" in caplog.text
    assert "secret" not in caplog.text


def test_an_error_in_a_client_is_told_by_its_place_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained = Trained(tmp_path, rounds=1)

    def losses(*_: Any) -> None:
        raise ValueError("a row of the client")

    make = trained.make

    def failing() -> Any:
        made = make()
        object.__setattr__(made.objective, "losses", losses)
        return made

    trained.network = Network(failing, tmp_path / "nodes", TWO_NODES)
    with pytest.raises(Exception, match=r"ValueError at test_flower_engine\.py"):
        trained.run()
    assert "a row of the client" not in caplog.text


def test_a_client_that_nobody_serves_fails_and_two_nodes_for_one_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = Trained(tmp_path / "a", {7: {"partition-id": 0}, 8: {"client": "c2"}, 9: {}}, rounds=1).run()
    assert (found.outcome.replies, found.outcome.failures) == (2, 2)
    assert "c1 is left out: no SuperNode serves it" in caplog.text
    assert "SuperNode 9 serves no client of this run" in caplog.text
    with pytest.raises(UsageError, match="both serve client c2"):
        Trained(tmp_path / "b", {7: {"client": "c2"}, 8: {"partition-id": 2}}).run()


def test_a_resumed_run_finds_the_state_of_its_round_at_the_nodes(tmp_path: Path) -> None:
    trained = Trained(tmp_path, name="scaffold", on_too_few="fail", min_clients=4)
    trained.network.mute = {(8, "3")}
    with pytest.raises(Exception, match="2 of the 4 replies"):
        trained.run()
    trained.network.mute = set()
    assert trained.run().outcome == in_process(tmp_path / "one", "scaffold").outcome
