"""From stored scores and coins to a verdict."""

import json
import math

import numpy as np
import pytest

from privlm.errors import UsageError
from privlm.privacy.accounting import Segment
from privlm.privacy.audit.verdict import Claim, claim_of, describe_lira, judge

pytestmark = pytest.mark.torch_free

SETTINGS = {"canaries": "dirac", "guesses_in": 100, "guesses_out": 100, "confidence": 0.95, "seed": 0}
CLAIM = Claim(1.0, 1e-5, "add_remove", "record", "pld", True, (Segment(0.06197, 3.1281, 160),))
NO_CLAIM = Claim(math.inf, 0.0, "none", "none", "none", False, ())


def write(folder, scores, is_in, **others):
    folder.mkdir(exist_ok=True)
    (folder / "scores.json").write_text(json.dumps({"scores": list(scores), **others}))
    (folder / "coins.json").write_text(json.dumps({"seed": 0, "is_in": [bool(coin) for coin in is_in]}))


def coins(seed=0, size=1000):
    return np.random.default_rng(seed).random(size) < 0.5


def test_scores_that_show_the_coins_fail_both_tests(tmp_path):
    write(tmp_path, coins().astype(float), coins())
    audit = judge(tmp_path, SETTINGS, CLAIM)
    assert audit["verdict"] == "FAIL"
    assert audit["epsilon_lower_bound"] == pytest.approx(4.166490, abs=1e-6)
    assert audit["curve_rejected"]
    assert (audit["num_guesses"], audit["num_correct"]) == (200, 200)
    assert sum(audit["histogram"]["in"]) == coins().sum()


def test_scores_that_show_nothing_pass_and_are_no_proof(tmp_path):
    write(tmp_path, np.random.default_rng(1).random(1000), coins())
    audit = judge(tmp_path, SETTINGS, CLAIM)
    assert audit["verdict"] == "PASS"
    assert "not a proof" in audit["note"]
    assert audit["exposure"] is None


def test_guesses_are_stored_before_the_coins_are_read(tmp_path):
    write(tmp_path, np.arange(1000.0), coins())
    (tmp_path / "coins.json").unlink()
    with pytest.raises(UsageError, match=r"coins\.json is missing"):
        judge(tmp_path, SETTINGS, CLAIM)
    guesses = np.array(json.loads((tmp_path / "guesses.json").read_text()))
    assert [(guesses == value).sum() for value in (0, 1, -1)] == [100, 100, 800]


def test_a_run_without_privacy_claims_nothing_and_passes(tmp_path):
    write(tmp_path, coins().astype(float), coins())
    audit = judge(tmp_path, SETTINGS, claim_of({"mechanism": "none"}))
    assert audit["verdict"] == "PASS"
    assert audit["claimed_epsilon"] == math.inf
    assert audit["epsilon_lower_bound"] > 4


def test_equal_scores_are_a_warning_and_no_bound(tmp_path):
    write(tmp_path, [0.0] * 1000, coins())
    audit = judge(tmp_path, SETTINGS, CLAIM)
    assert audit["epsilon_lower_bound"] == 0
    assert "equal" in audit["warnings"][0]


def test_exposure_tells_memorised_canaries_from_others(tmp_path):
    noise = np.random.default_rng(2).random(1000)
    settings = SETTINGS | {"canaries": "random_tokens"}
    bits = []
    for signal in (0.0, 5.0):
        write(tmp_path, noise + signal * coins(), coins())
        bits.append(judge(tmp_path, settings, NO_CLAIM)["exposure"]["mean_bits"])
    assert bits[0] == pytest.approx(1.44, abs=0.2)
    assert bits[1] == pytest.approx(np.log2((~coins()).sum() + 1))


def test_scores_that_are_nan_or_missing_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"scores\.json holds no scores"):
        judge(tmp_path, SETTINGS, CLAIM)
    write(tmp_path, ["nan"] * 1000, coins())
    with pytest.raises(UsageError, match="1000 canary scores are NaN"):
        judge(tmp_path, SETTINGS, CLAIM)


def test_noise_of_another_source_is_refused():
    with pytest.raises(UsageError, match="dp_fedavg"):
        claim_of({"mechanism": "dp_fedavg"})


def test_lira_finds_memorised_canaries_and_leaves_out_those_without_reference(tmp_path):
    rng = np.random.default_rng(3)
    folders = [tmp_path / str(number) for number in range(5)]
    for number, folder in enumerate(folders):
        losses = np.exp(rng.normal(0.0, 0.3, 1000) - 2.0 * coins(number))
        write(folder, np.zeros(1000), coins(number), final_losses=losses.tolist())
    lira = describe_lira(folders[0], folders[1:])
    assert lira["rates"]["auc"]["ci_low"] > 0.9
    assert 900 < lira["num_records"] < 1000
