"""Ledgers by chance, damaged by chance: what lies up to the last recorded head is refused by name, what lies after it
is said not to be seen; and what is whole is accepted at dp-accounting's price.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from privlm.errors import UsageError
from privlm.privacy.ledger import Head, Ledger, Setting
from privlm.privacy.ledger_chain import START, decode, encode, next_segment
from privlm.privacy.run_account import LEDGER, as_json, read_account

pytestmark = pytest.mark.torch_free

SETTINGS = [Setting(rate, noise, 1.0, 1000 * rate, "record") for rate in (0.1, 0.2) for noise in (0.8, 1.2)]
ADDITIONS = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
DELTA = 1e-5
MANY = pytest.mark.slow


@pytest.fixture(autouse=True)
def no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here is killed: waiting for the disk would take most of the time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def write_by_chance(rng: random.Random, path: Path, most: int = 25) -> Ledger:
    """Stages with settings of their own, resumed now and then, with steps taken again with the same noise or another.

    A torn last line may stand at its end.
    """
    ledger, step, number = Ledger(path), 0, rng.randrange(10**9)
    setting, stage = rng.choice(SETTINGS), "first"
    taken: list[tuple[int, str]] = []
    for _ in range(rng.randint(1, most)):
        if rng.random() < 0.1:
            setting, stage, taken = rng.choice(SETTINGS), stage + "'", []
        if rng.random() < 0.15:
            ledger = Ledger(path)  # killed and resumed
        if taken and rng.random() < 0.2:
            again, noise_id = rng.choice(taken)
            if rng.random() < 0.5:
                noise_id, number = f"{number:032x}", number + 1
        else:
            again, noise_id = step, f"{number:032x}"
            step, number = step + 1, number + 1
        taken.append((again, noise_id))
        ledger.of(stage).record(again, setting, noise_id, device="cpu", sums_digest=noise_id.encode())
    ledger.close()
    if rng.random() < 0.3:
        line = path.read_bytes().splitlines(keepends=True)[-1]
        path.open("ab").write(line[: rng.randrange(len(line))])
    return ledger


# --- damage ---------------------------------------------------------------------------------------------------------

Lines = list[bytes]


def deleted(rng: random.Random, lines: Lines, other: Lines) -> Lines:
    start = rng.randrange(len(lines))
    return lines[:start] + lines[start + rng.randint(1, len(lines) - start) :]


def doubled(rng: random.Random, lines: Lines, other: Lines) -> Lines:
    place = rng.randint(0, len(lines))
    return [*lines[:place], rng.choice(lines), *lines[place:]]


def swapped(rng: random.Random, lines: Lines, other: Lines) -> Lines:
    changed = list(lines)
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    changed[i], changed[j] = changed[j], changed[i]
    return changed


VALUES: dict[str, list[Any]] = {
    "schema": [1, 3, None], "stage": ["other", ""], "population": ["north"], "segment": [7, -1], "step": [99, True],
    "sampling_rate": [0, 0.05, 1, 1.5], "noise_multiplier": [0.0, 50.0, True], "clipping_norm": [0, 2.0],
    "expected_batch_size": [-16, 5.0], "unit": ["client", "x"], "device": ["cuda"], "derivation": [1, 9],
    "noise_id": ["f" * 32], "sums": ["", "00"], "before": [64 * "0", 64 * "a"], "digest": [64 * "0"], "more": [1],
}  # fmt: skip


def edited(rng: random.Random, lines: Lines, other: Lines) -> Lines:
    place = rng.randrange(len(lines))
    fields = json.loads(lines[place])
    name = rng.choice(list(VALUES))
    if name in fields and rng.random() < 0.2:
        del fields[name]
    else:
        fields[name] = rng.choice(VALUES[name])
    return [*lines[:place], json.dumps(fields).encode() + b"\n", *lines[place + 1 :]]


def joined(rng: random.Random, lines: Lines, other: Lines) -> Lines:
    return lines[: rng.randint(0, len(lines))] + other[rng.randint(0, len(other)) :]


def forged(rng: random.Random, lines: Lines, other: Lines) -> Lines:
    """Less noise told than was there is what a cheat would write; every digest from there on is computed anew."""
    place, before, last = rng.randrange(len(lines)), START, None
    written: Lines = []
    for number, (was, _) in enumerate(decode(Path("whole"), b"".join(lines), START)):
        release = was
        if number >= place:
            setting = replace(was.setting, noise_multiplier=was.setting.noise_multiplier + 50)
            other_noise = replace(was, setting=setting, noise_id=f"{number:032x}")
            release = replace(other_noise, segment=next_segment(last, other_noise) if last else 0)
        text, before = encode(release, before)
        written.append(text)
        last = release
    return written


DAMAGES = (deleted, doubled, swapped, edited, joined, forged)


def record_head(rng: random.Random, run: Path, lines: Lines, number: int) -> str:
    """Has one of the files that keep heads record the first `number` lines; its name."""
    digest = json.loads(lines[number - 1])["digest"] if number else START
    head = as_json(Head(number, digest))
    name = rng.choice(["result.json", "privacy.json", "stages/train/model/training.json"])
    path = run / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"ledger": head}))
    return name


def one_pair(rng: random.Random, folder: Path) -> str:
    """Writes two ledgers, damages the first, and holds what is said of it against what was done. Returns that."""
    run, other = folder / "run", folder / "other"
    run.mkdir(parents=True)
    other.mkdir()
    for place in (run, other):
        write_by_chance(rng, place / LEDGER)
    whole, foreign = (
        [line for line in (place / LEDGER).read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        for place in (run, other)
    )
    number = rng.randint(0, len(whole))
    recorder = record_head(rng, run, whole, number)
    damage = rng.choice(DAMAGES)
    lines = damage(rng, whole, foreign)
    (run / LEDGER).write_bytes(b"".join(lines))

    is_a_part = lines == whole[: len(lines)]
    in_record = lines[:number] != whole[:number]
    starts_anew = number == 0 and lines == foreign[: len(lines)]  # nothing was recorded: it may as well be this
    is_unseen = not in_record and (is_a_part or starts_anew or damage is forged)
    if not is_unseen:
        with pytest.raises(UsageError, match=rf"{LEDGER}: (line \d+|holds \d+ releases).* restore the file"):
            read_account(run)
        return f"refused, {'recorded' if in_record else 'after the record'}"
    account = read_account(run)
    assert account is not None
    if len(lines) > number:
        assert "but a cut at their end is not seen" in account.describe()
        assert f"whole up to release {number}, recorded by {recorder};" in account.describe()
    return "not detectable" if lines != whole else "whole"


def seen_in(folder: Path, seed: int, number: int) -> Counter[str]:
    rng = random.Random(seed)
    return Counter(one_pair(rng, folder / str(pair)) for pair in range(number))


def test_damage_of_100_ledgers_is_seen_up_to_the_last_recorded_head(tmp_path: Path) -> None:
    seen = seen_in(tmp_path, 1, 100)
    assert set(seen) == {"refused, recorded", "refused, after the record", "not detectable", "whole"}


@MANY
def test_damage_of_2000_ledgers_is_seen_up_to_the_last_recorded_head(tmp_path: Path) -> None:
    seen = seen_in(tmp_path, 2, 2000)
    print(dict(seen))
    assert seen.total() == 2000


# --- what is whole --------------------------------------------------------------------------------------------------


def price_of(path: Path, accountant: Any) -> float:
    """By dp-accounting, from the file as JSON: each noise once."""
    lines = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    kinds = Counter({line["noise_id"]: (line["sampling_rate"], line["noise_multiplier"]) for line in lines}.values())
    for (rate, noise), steps in sorted(kinds.items()):
        accountant.compose(dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise)), steps)
    return accountant.get_epsilon(DELTA)


def accept(folder: Path, seed: int, number: int, with_pld: int) -> None:
    rng = random.Random(seed)
    for run in (folder / str(one) for one in range(number)):
        run.mkdir()
        write_by_chance(rng, run / LEDGER)
        account = read_account(run)
        assert account is not None
        ours = account.ledger.epsilon(DELTA, accountant="rdp").epsilon
        assert ours == pytest.approx(price_of(run / LEDGER, RdpAccountant()), rel=1e-9)
        if int(run.name) < with_pld:
            theirs = price_of(run / LEDGER, PLDAccountant(ADDITIONS, 1e-4))
            assert account.ledger.epsilon(DELTA).epsilon == pytest.approx(theirs, abs=1e-3)


def test_whole_ledgers_cost_what_dp_accounting_says(tmp_path: Path) -> None:
    accept(tmp_path, 3, 10, with_pld=1)


@MANY
def test_200_whole_ledgers_cost_what_dp_accounting_says(tmp_path: Path) -> None:
    accept(tmp_path, 4, 200, with_pld=20)
