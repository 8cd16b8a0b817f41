"""The price of a federated stage whose clients each add noise of their own: planned, spent, recorded, read and kept."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from support.regression import settings

from privlm import launch
from privlm.cli import accountant, audit, compare, show
from privlm.config import defaults
from privlm.errors import UsageError
from privlm.job import Stage
from privlm.privacy import accounting
from privlm.privacy.accounting import Segment
from privlm.privacy.client_plans import ClientPlans, make_client_plans
from privlm.privacy.ledger import Ledger, Setting
from privlm.privacy.ledger_paths import CLIENTS, LEDGER, client_ledger, client_ledgers
from privlm.privacy.plan import PrivacyPlan
from privlm.privacy.run_account import read_account, resumable
from privlm.privacy.schema import PrivacyConfig
from privlm.report.card import privacy_card
from privlm.report.page import write_report
from privlm.report.store import read_run
from privlm.signals import Interrupted

CONFIG = settings(steps=4, epochs=None)
PRIVACY = defaults(PrivacyConfig, "privacy", "dp_sgd", epsilon=3.0, delta="1/2N", order=1)
SIZES = {"clinic/a": 200, "clinic/b": 400, "clinic/c": 400}
STEPS = 20


def plans_of(privacy: Any = PRIVACY, *, are_disjoint: bool = True) -> dict[str, PrivacyPlan]:
    how = {"batch_size": 20, "steps": STEPS, "are_disjoint": are_disjoint}
    return make_client_plans(privacy, sizes=SIZES, **how)


def setting_of(plan: PrivacyPlan) -> Setting:
    rate, size = plan.sampling_rate, plan.expected_batch_size
    return Setting(rate, plan.noise_multiplier, plan.clipping_norm, size, plan.unit)


def work(
    folder: Path, *, are_disjoint: bool = True, until: int = STEPS, series: str = "", begin: int = 0,
    check: Callable[[Stage], None] = lambda stage: None,
) -> Path:  # fmt: skip
    """A federated stage of rounds of two steps; stopped after step `until`, where that is not its end."""
    plans = plans_of(are_disjoint=are_disjoint)
    with Stage.at(folder, trainer=CONFIG, privacy=PRIVACY) as stage:
        if stage.needed:
            ledgers = {client: stage.client_ledger(client) for client in plans}
            stage.job.price.stages[stage.name] = ClientPlans(plans, ledgers, are_disjoint)
            for before in range(begin, until, 2):
                for client, plan in plans.items():
                    view = stage.client_ledger(client, first_step=before)
                    for step in (1, 2):
                        view.record(step, setting_of(plan), f"{client} {before + step}{series}")
            stage.job.tell_price()
            check(stage)
            if until < STEPS:
                raise Interrupted(15)
    return folder


def stopped(folder: Path, **how: Any) -> Path:
    with pytest.raises(Interrupted):
        work(folder, **how)
    return folder


def dearest(steps: int) -> float:
    """Certified, of the client that pays most for so many steps."""
    of_each = ([Segment(plan.sampling_rate, plan.noise_multiplier, steps)] for plan in plans_of().values())
    return max(accounting.epsilon(segments, 1 / 800).epsilon for segments in of_each)


def told(run: Path, name: str = "privacy.json") -> dict[str, Any]:
    return json.loads((run / name).read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return work(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    shutil.copytree(finished, tmp_path / "other")
    return tmp_path / "run"


# --- plans ----------------------------------------------------------------------------------------------------------


def test_clients_are_planned_for_one_delta_which_is_the_smallest() -> None:
    plans = plans_of()
    assert {plan.delta for plan in plans.values()} == {1 / 800}
    for plan in plans.values():
        assert 3.0 - 1e-3 <= plan.epsilon <= 3.0
    assert plans["clinic/b"] is plans["clinic/c"]  # planned once
    assert plans["clinic/a"].noise_multiplier > plans["clinic/b"].noise_multiplier
    assert list(plans) == list(SIZES)


def test_clients_that_may_share_records_keep_the_budget_together() -> None:
    plans = plans_of(are_disjoint=False)
    together = [Segment(plan.sampling_rate, plan.noise_multiplier, plan.steps) for plan in plans.values()]
    assert accounting.epsilon(together, 1 / 800).epsilon <= 3.0
    assert len({plan.noise_multiplier for plan in plans.values()}) == 1
    assert accounting.epsilon(together[:1], 1 / 800).epsilon < 2.0
    equal = make_client_plans(
        PRIVACY, sizes={"a": 400, "b": 400}, batch_size=20, steps={"a": 5, "b": 15}, are_disjoint=False
    )
    segments = [Segment(plan.sampling_rate, plan.noise_multiplier, plan.steps) for plan in equal.values()]
    assert 3.0 - 1e-3 <= accounting.epsilon(segments, 1 / 800).epsilon <= 3.0  # exact where the rates are equal


def test_a_client_too_small_for_the_batch_is_named() -> None:
    sizes = {"large": 100, "small": 10}
    with pytest.raises(UsageError, match=r"client small: trainer\.batch_size=20 is larger than .* \(10 records\)"):
        make_client_plans(PRIVACY, sizes=sizes, batch_size=20, steps=3, are_disjoint=True)


# --- the price ------------------------------------------------------------------------------------------------------


def test_the_price_of_disjoint_clients_is_that_of_the_dearest(finished: Path) -> None:
    privacy, result = told(finished), told(finished, "result.json")
    plans = plans_of()
    epsilons = {
        client: accounting.epsilon([Segment(plan.sampling_rate, plan.noise_multiplier, STEPS)], 1 / 800).epsilon
        for client, plan in plans.items()
    }
    assert {client: own["epsilon"] for client, own in privacy["clients"].items()} == epsilons
    assert privacy["epsilon"] == max(epsilons.values()) == epsilons[privacy["largest_client"]]
    assert (privacy["guarantee"], privacy["unit"], privacy["delta"]) == (True, "record", 1 / 800)
    assert (privacy["num_clients"], privacy["are_disjoint"], privacy["planned_epsilon"]) == (
        3,
        True,
        max(epsilons.values()),
    )
    assert (privacy["steps"], privacy["planned_steps"], privacy["repeated_releases"]) == (STEPS, STEPS, 0)
    assert privacy["sampling_rate"] == [0.05, 0.1]
    assert privacy["dataset_size"] == [200, 400]
    rows = {row["metric"]: row["value"] for row in result["rows"]}
    assert rows["epsilon"] == privacy["epsilon"]
    assert rows["num_clients"] == 3
    assert [rows["noise_multiplier_min"], rows["noise_multiplier_max"]] == privacy["noise_multiplier"]
    assert (rows["sampling_rate_min"], rows["sampling_rate_max"]) == (0.05, 0.1)
    heads = {client: Ledger(client_ledger(finished, client)).head._asdict() for client in SIZES}
    assert result["ledgers"] == privacy["ledgers"] == heads
    assert "ledger" not in result
    assert not (finished / LEDGER).exists()


def test_the_price_of_clients_that_may_share_records_is_of_all_that_was_released(tmp_path: Path) -> None:
    run = work(tmp_path / "run", are_disjoint=False)
    privacy = told(run)
    whole = [
        Segment(plan.sampling_rate, plan.noise_multiplier, STEPS) for plan in plans_of(are_disjoint=False).values()
    ]
    assert privacy["epsilon"] == pytest.approx(accounting.epsilon(whole, 1 / 800).epsilon, rel=1e-9)
    assert privacy["epsilon"] == pytest.approx(privacy["planned_epsilon"], rel=1e-9)
    assert (privacy["are_disjoint"], privacy["largest_client"]) == (False, None)
    assert {own["epsilon"] for own in privacy["clients"].values()} == {None}
    assert "of 3 clients together: a record may be with several" in privacy_card(read_run(run).privacy).headline


def test_while_the_run_works_nothing_is_a_guarantee(tmp_path: Path) -> None:
    run = stopped(tmp_path / "run", until=6)
    privacy = told(run)
    assert (privacy["final"], privacy["guarantee"], privacy["epsilon"]) == (False, False, None)
    assert privacy["spent"]["releases"] == 18
    assert privacy["spent"]["epsilon"] == pytest.approx(dearest(6), rel=1e-9)
    assert privacy["steps"] == 6
    card = privacy_card(read_run(run).privacy)
    assert card.headline.startswith("not done; spent so far: ε ")
    assert "by 18 releases (the largest of 3 clients, whose records are disjoint)" in card.headline
    facts = dict(card.facts)
    assert (facts["steps T"], facts["planned"]) == ("6", "20 steps, ε 3.000")
    assert "ε of each client" not in facts


def test_steps_taken_again_with_fresh_noise_cost_again(tmp_path: Path) -> None:
    run = stopped(tmp_path / "run", until=6)
    work(run, begin=4, series="'")
    privacy = told(run)
    assert privacy["repeated_releases"] == 6
    plan = plans_of()[privacy["largest_client"]]
    spent = accounting.epsilon([Segment(plan.sampling_rate, plan.noise_multiplier, STEPS + 2)], 1 / 800).epsilon
    assert privacy["epsilon"] == spent
    assert privacy["clients"][privacy["largest_client"]]["steps"] == STEPS
    assert privacy["clients"][privacy["largest_client"]]["releases"] == STEPS + 2
    assert privacy["epsilon"] > 3.0


def test_a_private_stage_beside_the_clients_is_paid_for_by_each_of_them(tmp_path: Path) -> None:
    plans, of_all = plans_of(), Setting(0.2, 4.0, 1.0, 20.0, "record")

    def before(stage: Stage) -> None:
        for step in (1, 2, 3):
            stage.job.ledger.of("before").record(step, of_all, f"before {step}")

    run = work(tmp_path / "run", check=before)
    privacy = told(run)
    plan = plans[privacy["largest_client"]]
    whole = [Segment(plan.sampling_rate, plan.noise_multiplier, STEPS), Segment(0.2, 4.0, 3)]
    assert privacy["epsilon"] == pytest.approx(accounting.epsilon(whole, 1 / 800).epsilon, rel=1e-9)
    assert (privacy["ledger"]["releases"], len(privacy["ledgers"])) == (3, 3)
    assert read_account(run).describe().startswith("3 releases, whole up to release 3, recorded by result.json; 60 rel")


def test_what_a_ledger_in_the_folder_holds_is_counted_whoever_opened_it(tmp_path: Path) -> None:
    plan = plans_of()["clinic/a"]

    def stray(stage: Stage) -> None:
        other = Ledger(client_ledger(stage.job.directory, "of another process")).of("train", "of another process")
        for step in range(40):
            other.record(step, setting_of(plan), f"stray {step}")
        other.close()

    run = work(tmp_path / "run", check=stray)
    privacy = told(run)
    assert privacy["largest_client"] == "of another process"
    assert privacy["epsilon"] > 3.0
    assert set(privacy["ledgers"]) == {*SIZES, "of another process"}


# --- readers --------------------------------------------------------------------------------------------------------


def test_every_reader_tells_the_price(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show.main([str(run)]) == 0
    shown = re.sub(r"\s+", " ", capsys.readouterr().out.replace("│", " "))
    assert "differential privacy per record (the largest of 3 clients, whose records are disjoint)" in shown
    for fact in ("3, each with noise of its own", "200 to 400", "0.05 to 0.1", "each whole up to the end that was"):
        assert fact in shown
    assert show.main([str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["privacy"]["taken"]["train"]["clients"]["clinic/a"]["steps"] == STEPS
    assert compare.main([str(run), str(run.parent / "other")]) == 0
    assert read_run(run).finished
    assert "whose records are disjoint" in write_report(run).read_text()
    with pytest.raises(UsageError, match="an audit is of one training"):
        audit.main([str(run)])


def test_the_accountant_composes_the_clients_and_tells_the_dearest(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert accountant.main(["ledger", str(run), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [(row["run"], row["population"], row["distinct"]) for row in answer["segments"]] == [
        ("run", client, STEPS) for client in SIZES
    ]
    assert answer["largest_client"]["clients"] == 3
    assert answer["largest_client"]["epsilon"]["pld"] == told(run)["epsilon"]
    assert answer["composed"]["epsilon"]["pld"] > told(run)["epsilon"]
    (account,) = answer["accounts"]
    assert (account["releases"], account["recorded"], account["clients"]) == (60, 60, dict.fromkeys(SIZES, 20))
    assert accountant.main(["ledger", str(run)]) == 0
    assert "the largest of 3 clients" in re.sub(r"\s+", " ", capsys.readouterr().out)


READERS: dict[str, Callable[[Path], Any]] = {
    "show": lambda run: show.main([str(run)]),
    "show --json": lambda run: show.main([str(run), "--json"]),
    "compare": lambda run: compare.main([str(run), str(run.parent / "other")]),
    "audit": lambda run: audit.main([str(run)]),
    "accountant ledger": lambda run: accountant.main(["ledger", str(run)]),
    "page": write_report,
    "run": work,
}


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def swap(run: Path) -> None:
    a, b = (client_ledger(run, client) for client in ("clinic/a", "clinic/b"))
    content = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(content)


def stray(run: Path) -> None:
    Ledger(client_ledger(run, "x")).of("train", "x").record(1, setting_of(plans_of()["clinic/a"]), "x")


def cut(run: Path) -> None:
    path = client_ledger(run, "clinic/b")
    path.write_bytes(b"".join(lines_of(path)[:-1]))


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a line cut": (cut, r"clinic%2Fb\.jsonl: holds 19 releases, and .* has recorded 20"),
    "a file gone": (
        lambda run: client_ledger(run, "clinic/c").unlink(),
        r"clinic%2Fc\.jsonl of client clinic/c is missing, and .* has recorded its releases",
    ),
    "the folder gone": (lambda run: shutil.rmtree(run / CLIENTS), r"client clinic/. is missing, and .* has recorded"),
    "files swapped": (swap, r"clinic%2Fa\.jsonl: holds releases of client clinic/b, and is named after another"),
    "a file moved": (
        lambda run: client_ledger(run, "clinic/c").rename(client_ledger(run, "clinic/d")),
        r"clinic%2Fc\.jsonl of client clinic/c is missing",
    ),
    "a file more": (stray, r"x\.jsonl: line 1 was added after the run was done: .* 0 releases of client x"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_folder_that_does_not_add_up_is_refused_by_every_reader(
    damage: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    break_it, says = DAMAGES[damage]
    break_it(run)
    for name, read in READERS.items():
        with pytest.raises(UsageError, match=says) as refusal:
            read(run)
        assert "restore the file from a copy, or start again with --force" in str(refusal.value), name
    assert capsys.readouterr().out == ""
    assert not read_run(run).finished


def test_a_price_that_the_clients_ledgers_do_not_bear_out_is_refused(run: Path) -> None:
    privacy = told(run)
    privacy["certificate"]["segments"][0]["steps"] = 3
    (run / "privacy.json").write_text(json.dumps(privacy))
    with pytest.raises(UsageError, match=r"clinic%2F.\.jsonl: its 20 releases are not the 3 whose price"):
        show.main([str(run)])
    (run / "privacy.json").write_text('{"mechanism": "none"}')
    with pytest.raises(UsageError, match=r"privacy_ledger holds 60 releases, and privacy\.json tells no price of them"):
        show.main([str(run)])


def test_a_ledger_that_nothing_has_recorded_is_stated_while_the_run_works(tmp_path: Path) -> None:
    run = stopped(tmp_path / "run", until=6)
    stray(run)
    account = resumable(run)
    assert account is not None
    assert account.unknown_clients == ["x"]
    assert "the ledgers of 1 client are recorded by no file: x" in account.describe()
    privacy = read_run(run).privacy
    assert privacy is not None
    assert (privacy["spent"]["releases"], privacy["account"]) == (19, account.describe())


def test_a_checkpoint_of_a_round_can_tell_of_a_cut(tmp_path: Path) -> None:
    from privlm import files

    run = stopped(tmp_path / "run", until=6)
    folder = run / "checkpoints/train/rounds/round-2"
    folder.mkdir(parents=True)
    heads = {"clinic/b": told(run)["ledgers"]["clinic/b"]}
    (folder / "progress.json").write_text(json.dumps({"progress": {"ledgers": heads}}))
    files.write_digests(folder)
    (run / "privacy.json").unlink()
    assert resumable(run).last_of["clinic/b"].file == "checkpoints/train/rounds/round-2/progress.json"
    cut(run)
    with pytest.raises(UsageError, match=r"holds 5 releases, and checkpoints/train/rounds/round-2/progress\.json"):
        resumable(run)


@pytest.mark.parametrize("heads", [{"": {}}, ["x"], {"clinic/a": {"releases": 3}}])
def test_what_is_no_head_is_refused(heads: Any, run: Path) -> None:
    privacy = told(run) | {"ledgers": heads}
    (run / "privacy.json").write_text(json.dumps(privacy))
    with pytest.raises(UsageError, match=r"privacy\.json: ledger"):
        read_account(run)


# --- damage by chance -----------------------------------------------------------------------------------------------


def deleted(rng: random.Random, lines: list[bytes]) -> list[bytes]:
    start = rng.randrange(len(lines))
    return lines[:start] + lines[start + rng.randint(1, len(lines) - start) :]


def doubled(rng: random.Random, lines: list[bytes]) -> list[bytes]:
    place = rng.randint(0, len(lines))
    return [*lines[:place], rng.choice(lines), *lines[place:]]


def swapped(rng: random.Random, lines: list[bytes]) -> list[bytes]:
    i, j = rng.sample(range(len(lines)), 2)
    lines = list(lines)
    lines[i], lines[j] = lines[j], lines[i]
    return lines


def damaged(rng: random.Random, folder: Mapping[Path, list[bytes]]) -> dict[Path, list[bytes] | None]:
    """None for a file that is gone."""
    path, other = rng.sample(sorted(folder), 2)
    lines = folder[path]
    return rng.choice([
        lambda: {path: deleted(rng, lines)},
        lambda: {path: doubled(rng, lines)},
        lambda: {path: swapped(rng, lines)},
        lambda: {path: folder[other], other: lines},
        lambda: {path: lines + folder[other]},
        lambda: {path: lines[: rng.randrange(len(lines))] + folder[other][rng.randrange(len(lines)) :]},
        lambda: {path: None},
    ])()  # fmt: skip


def test_300_damages_by_chance_are_all_seen_up_to_the_recorded_ends(tmp_path: Path) -> None:
    rng, seen = random.Random(5), Counter[str]()
    run = stopped(tmp_path / "run", until=6)
    whole = {path: lines_of(path) for path in client_ledgers(run)}
    heads = told(run)["ledgers"]
    for _ in range(300):
        number = rng.randint(0, 6)
        recorded = {
            client: {"releases": number, "digest": json.loads(lines_of_client[number - 1])["digest"]}
            for client, lines_of_client in ((client, whole[client_ledger(run, client)]) for client in heads)
        } if number else {}  # fmt: skip
        (run / "privacy.json").write_text(json.dumps({"mechanism": "dp_sgd", "ledgers": recorded}))
        changed = damaged(rng, whole)
        for path, lines in changed.items():
            path.unlink() if lines is None else path.write_bytes(b"".join(lines))
        is_whole = all(lines == whole[path] for path, lines in changed.items())
        is_unseen = all(
            (lines or []) == whole[path][: len(lines or [])] and len(lines or []) >= number
            for path, lines in changed.items()
        )
        if is_unseen:
            assert read_account(run) is not None
            seen["whole" if is_whole else "cut after the record"] += 1
        else:
            with pytest.raises(UsageError, match=r"privacy_ledger/clinic%2F.\.jsonl.*restore the file"):
                read_account(run)
            seen["refused"] += 1
        for path, lines in whole.items():
            path.write_bytes(b"".join(lines))
    assert set(seen) == {"refused", "cut after the record", "whole"} or set(seen) == {"refused", "cut after the record"}
    assert seen["refused"] > 200


# --- forced ---------------------------------------------------------------------------------------------------------


def test_force_keeps_the_folder_and_tells_what_all_have_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = work(tmp_path / "run")
    first = {path.name: path.read_bytes() for path in client_ledgers(run)}
    launch._clear(run, told(run, "status.json")["run_hash"])
    assert "kept the account of the removed run: privacy_ledger.1\n" in capsys.readouterr().err
    assert sorted(path.name for path in run.iterdir()) == [".lock", "privacy_ledger.1"]
    work(run, series=" of the second run")
    assert {path.name: path.read_bytes() for path in (run / "privacy_ledger.1").iterdir()} == first
    forced = told(run)["with_forced"]
    assert forced == {
        "accounts": ["privacy_ledger.1"], "releases": 120, "epsilon": dearest(2 * STEPS), "certified": True,
        "problem": None,
    }  # fmt: skip
    assert accountant.main(["ledger", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accounts"][0]["with_forced"] == forced
    shutil.rmtree(run / "privacy_ledger.1")
    with pytest.raises(UsageError, match="line 1 does not follow the account that this one began after"):
        read_account(run)
