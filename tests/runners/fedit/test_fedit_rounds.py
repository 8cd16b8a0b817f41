"""Task fedit with clients and a server: rounds, kills, privacy, what is kept, what is never told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.runs import outcome
from support.zygote import Finished, Zygote

from privlm import files, registry
from privlm.cli.compose import Words, compose
from privlm.errors import UsageError

KINDS = ("open_qa", "classification", "summarization")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 rows of 3 clients to learn, each of one category, 12 held out."""
    folder = tmp_path_factory.mktemp("rows")
    for name, numbers in {"train": range(36), "test": range(100, 112)}.items():
        lines = [
            {
                "instruction": f"What comes after kestrel {n}?",
                "response": f"lantern {n + 1}",
                "category": KINDS[n % 3],
            }
            | ({"client": f"aviary {n % 3}"} if name == "train" else {})
            for n in numbers
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def run(zygote: Zygote, runs: Path, rows: Path, *words: str, fault: tuple[str, int] | None = None) -> Finished:
    given = (
        "federated=fedavg", "federated.partition=by_column", "federated.num_clients=null", "federated.rounds=2",
        "data=instructions", f"data.path={rows}", "data.template=plain", "task.questions=null", "task.max_new_tokens=4",
        "task.num_generated=0", "model.max_length=64", "trainer.steps=2",
    )  # fmt: skip
    return zygote.run("run", "task=fedit", "scale=smoke", f"runs={runs}", *given, *words, fault=fault)


def only_run(runs: Path) -> Path:
    (directory,) = (runs / "fedit").iterdir()
    return directory


def table(directory: Path) -> dict[tuple[str, str | None], Any]:
    return {(row["metric"], row["split"]): row for row in files.read_json(directory / "result.json")["rows"]}


@pytest.fixture(scope="module")
def plain(zygote: Zygote, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    runs = tmp_path_factory.mktemp("plain")
    finished = run(zygote, runs, rows)
    assert finished.status == 0, finished.output
    return only_run(runs), finished


@pytest.mark.medium
def test_the_budget_and_what_travelled_are_told(plain: tuple[Path, Finished]) -> None:
    directory, _ = plain
    found = {name: row["value"] for (name, _), row in table(directory).items()}
    budget = {name: found[name] for name in ("clients", "rounds", "replies", "failures", "steps", "rows_seen")}
    assert budget == {"clients": 3, "rounds": 2, "replies": 6, "failures": 0, "steps": 12, "rows_seen": 48}
    sent = found["trainable_parameters"] * 4 / 1e6
    assert sent < found["upload_per_reply"] < 1.6 * sent
    assert found["upload"] == pytest.approx(6 * found["upload_per_reply"])
    assert found["nll_gain"] > 0
    rows_of = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    clients = {row["client"] for row in rows_of if "client" in row}
    assert clients == {"aviary 0", "aviary 1", "aviary 2"}


@pytest.mark.medium
def test_no_text_of_a_client_is_written_or_told(plain: tuple[Path, Finished]) -> None:
    directory, finished = plain
    for path in directory.rglob("*"):
        assert not path.is_file() or not any(word in path.read_bytes() for word in (b"kestrel", b"lantern")), path
    assert "kestrel" not in finished.output


@pytest.mark.medium
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_a_killed_federation_goes_on_and_ends_equal(
    share: float, plain: tuple[Path, Finished], rows: Path, zygote: Zygote, tmp_path: Path
) -> None:
    directory, whole = plain
    killed = run(zygote, tmp_path, rows, fault=("kill", round(share * whole.writes)))
    assert killed.status == -9, killed.output
    finished = run(zygote, tmp_path, rows)
    assert finished.status == 0, finished.output
    ours, theirs = (outcome(one) for one in (only_run(tmp_path), directory))
    assert ours == theirs


@pytest.mark.medium
@pytest.mark.parametrize(
    ("words", "unit", "told"),
    [
        (
            ("privacy=dp_sgd", "federated.lora=ffa", "trainer.batch_size=3"),
            "record",
            "per record (the largest of 3 clients, whose records are disjoint)",
        ),
        (
            ("privacy=dp_fedavg", "privacy.delta=0.05", "federated.lora=ffa"),
            "client",
            "per client",
        ),
    ],
)
def test_privacy_is_one_switch_by_record_and_by_client(
    words: tuple[str, ...], unit: str, told: str, rows: Path, zygote: Zygote, tmp_path: Path
) -> None:
    finished = run(zygote, tmp_path, rows, *words)
    assert finished.status == 0, finished.output
    assert told in finished.output
    directory = only_run(tmp_path)
    privacy = files.read_json(directory / "privacy.json")
    assert (privacy["unit"], privacy["guarantee"]) == (unit, True)
    assert 0 < privacy["epsilon"] <= 8.0
    assert privacy["epsilon"] <= privacy["bounds"]["rdp"] + 1e-9
    ledgers = sorted(path.name for path in directory.rglob("*.jsonl") if "privacy_ledger" in str(path))
    assert len(ledgers) == (3 if unit == "record" else 1)
    again = run(zygote, tmp_path, rows, *words)
    assert "already done" in again.output


@pytest.mark.medium
def test_a_part_that_is_fixed_is_not_counted_as_trained(
    plain: tuple[Path, Finished], rows: Path, zygote: Zygote, tmp_path: Path
) -> None:
    finished = run(zygote, tmp_path, rows, "federated.lora=ffa")
    assert finished.status == 0, finished.output
    fixed, free = (table(one)["trainable_parameters", None]["value"] for one in (only_run(tmp_path), plain[0]))
    assert 0 < fixed < free


@pytest.mark.medium
def test_what_the_rounds_put_into_the_base_is_exported_with_it(rows: Path, zygote: Zygote, tmp_path: Path) -> None:
    finished = run(zygote, tmp_path, rows, "federated.lora=stack")
    assert finished.status == 0, finished.output
    directory = only_run(tmp_path)
    measured = zygote.run("evaluate", str(directory), f"data.path={rows}", "--json")
    assert str(table(directory)["perplexity", "test"]["value"])[:8] in measured.output
    exported = zygote.run("export", str(directory), str(tmp_path / "model"))
    assert exported.status == 0, exported.output
    from safetensors.numpy import load_file

    weights = load_file(tmp_path / "model" / "model.safetensors")
    assert not any("lora" in name for name in weights)
    assert all(np.isfinite(value).all() for value in weights.values())


@pytest.mark.torch_free
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("federated.fraction=0",), "federated.fraction must be greater than 0"),
        (("federated.fraction=1.5",), "federated.fraction must be greater than 0 and at most 1"),
        (("federated.num_clients=null",), "federated.partition=shards needs federated.num_clients"),
        (("federated.weights=clipped",), "federated.weights=clipped needs federated.max_weight"),
        (("federated.ranks={a: 2}",), "federated.ranks: mixed ranks need federated.lora=svd, stack or zero_pad"),
        (("federated=scaffold",), "federated=scaffold corrects plain gradient steps: set trainer.optimizer=sgd"),
        (("federated=fedadam", "federated.lora=stack"), "federated.lora=stack makes the mean itself"),
        (("federated.lora=stack", "adapter=full"), "federated.lora=stack needs adapter=lora, not full"),
        (("federated.lora=stack", "federated.secure_aggregation=true"), "shows the server a sum alone"),
        (("trainer.evaluate_every=2",), "trainer.evaluate_every has no place in a client's training"),
        (("adapter=none",), "federated=fedavg: adapter=none trains nothing that clients could send"),
        (("task.only_client=1",), "task.only_client is of an arm without a server"),
        (
            ("privacy=dp_fedavg", "privacy.delta=0.01", "federated.weights=samples"),
            "federated.weights=samples lets a client's size set its share",
        ),
        (
            ("privacy=dp_fedavg", "privacy.delta=0.01", "federated.fraction=0.5"),
            "federated.sampling=fixed draws a fixed number of clients",
        ),
        (("privacy=dp_sgd", "federated.lora=residual"), "multiplies the noise of both factors"),
        (("federated=none", "privacy=dp_fedavg", "privacy.delta=0.01"), "federated=none has none"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError) as refusal:
        compose(Words(("task=fedit", "federated=fedavg", *words)))
    assert message in str(refusal.value)


@pytest.mark.medium
@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("federated.partition=by_column", "federated.partition=by_column: rows without a client"),
        ("federated.partition=explicit federated.manifest=none.json", "federated.manifest=none.json: the file cannot"),
        ("federated.num_clients=300", "300"),
    ],
)
def test_what_cannot_be_dealt_out_leaves_no_run_behind(word: str, message: str, zygote: Zygote, tmp_path: Path) -> None:
    words = ("federated=fedavg", "federated.num_clients=null", *word.split())
    refused = zygote.run("run", "task=fedit", "scale=smoke", f"runs={tmp_path}", *words)
    assert (refused.status, message in refused.output) == (2, True), refused.output
    assert not list(tmp_path.rglob("status.json"))


@pytest.mark.torch_free
def test_another_allocation_is_another_run(rows: Path, tmp_path: Path) -> None:
    found = set()
    for number in range(2):
        manifest = tmp_path / f"{number}.json"
        manifest.write_text(json.dumps({"a": [number], "b": [place for place in range(36) if place != number]}))
        words = ("federated=fedavg", "federated.partition=explicit", "federated.num_clients=null")
        given = ("task=fedit", "scale=smoke", *words, f"federated.manifest={manifest}")
        config = compose(Words((*given, "data=instructions", f"data.path={rows}"))).config
        found.add(registry.entry_of(config).inputs(config)["federated.manifest"])
    assert len(found) == 2


@pytest.mark.torch_free
def test_a_dry_run_tells_rounds_steps_and_price(rows: Path) -> None:
    words = ("task=fedit", "scale=smoke", "federated=fedavg", "federated.rounds=5", "federated.fraction=0.5")
    given = (*words, "federated.num_clients=4", "data.max_train_examples=null", "privacy=dp_sgd")
    plan = registry.entry_of(compose(Words(given)).config).plan(compose(Words(given)).config)
    assert (plan["clients"], plan["rounds"], plan["replies"], plan["steps"]) == (4, 5, 10, 30)
    assert sum(plan["rows_per_client"].values()) == plan["training_rows"] == 161
    assert 0 < plan["epsilon"] <= 8
