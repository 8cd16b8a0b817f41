"""The card of a run that is not done, and of one that was not what it had planned."""

import pytest
from support.runs import PRIVACY

from privlm.report.card import privacy_card

pytestmark = pytest.mark.torch_free

PLAN = PRIVACY | {"planned_steps": 160, "planned_epsilon": 2.998, "steps": 0, "final": False, "guarantee": False}
SPENT = {"releases": 41, "epsilon": 1.2341, "certified": True}


def setting(releases: int, **changes: float) -> dict[str, float]:
    alike = {"sampling_rate": 0.06197, "noise_multiplier": 1.388, "clipping_norm": 1.0, "expected_batch_size": 256}
    return alike | changes | {"releases": releases}


def test_what_is_spent_stands_beside_the_plan_and_nothing_is_guaranteed():
    taken = {"train": {"steps": 40, "releases": 41, "settings": [setting(41)]}}
    card = privacy_card(PLAN | {"epsilon": 1.2341, "spent": SPENT, "taken": taken, "account": "41 releases"})
    assert card.headline == (
        "not done; spent so far: ε 1.235 at δ 1e-05, certified by pld, by 41 releases"  # rounded up
    )
    facts = dict(card.facts)
    assert (facts["steps T"], facts["planned"], facts["noise multiplier σ"]) == ("40", "160 steps, ε 2.998", "1.388")
    assert card.readings == []
    assert "guarantee" not in str(card)


@pytest.mark.parametrize("spent", [{"releases": 0, "epsilon": 0.0, "certified": True}, None])
def test_before_the_first_release_nothing_of_the_plan_is_told_as_done(spent):
    card = privacy_card(PLAN | {"epsilon": None, "spent": spent, "taken": {}, "account": "0 releases"})
    assert "0.000" not in card.headline
    facts = dict(card.facts)
    assert (facts["steps T"], facts["noise multiplier σ"]) == ("0", "1.388 (planned)")


def test_a_private_run_that_has_not_planned_yet_does_not_say_that_nothing_is_protected():
    card = privacy_card({"mechanism": "dp_sgd", "final": False, "guarantee": False, "spent": None, "taken": {}})
    assert card.headline == "not done; spent so far: nothing has been released yet"


def test_releases_of_several_settings_are_told_each():
    taken = {"train": {"steps": 50, "releases": 50, "settings": [setting(20), setting(30, noise_multiplier=2.0)]}}
    facts = dict(privacy_card(PRIVACY | {"taken": taken, "steps": 160}).facts)
    assert facts["noise multiplier σ"] == "1.388 in 20 releases, 2 in 30 releases"
    assert (facts["steps T"], facts["sampling rate q"]) == ("50", "0.06197")


def test_an_epsilon_that_no_certificate_bears_out_is_no_guarantee():
    card = privacy_card(PRIVACY | {"guarantee": False})
    assert card.headline.startswith("no guarantee: (2.998, 1e-05)-differential privacy")
    assert {reading.accountant: reading.kind for reading in card.readings} == {
        "pld": "estimate", "rdp": "guarantee", "gdp": "estimate", "edgeworth, order 2": "estimate"
    }  # fmt: skip


def test_what_force_has_removed_is_told_with_the_run():
    forced = {
        "accounts": ["privacy_ledger.1.jsonl"],
        "releases": 320,
        "epsilon": 4.5,
        "certified": True,
        "problem": None,
    }
    facts = dict(privacy_card(PRIVACY | {"with_forced": forced}).facts)
    told = facts["with what --force removed"]
    assert told == "ε 4.500 at δ 1e-05, certified, by 320 releases (privacy_ledger.1.jsonl)"
