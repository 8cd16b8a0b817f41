"""An audit on the page of its run, and in its privacy card."""

import json

import pytest

from privlm.report.audit import facts, lira_table
from privlm.report.card import privacy_card
from privlm.report.page import render_report
from privlm.report.store import read_run

pytestmark = pytest.mark.torch_free

AUDIT = {
    "schema": 1, "verdict": "FAIL", "claimed_epsilon": 1.0, "delta": 1e-5, "adjacency": "add_remove", "unit": "record",
    "accountant": "pld", "certified": True, "epsilon_lower_bound": 3.5, "confidence": 0.95, "curve_rejected": True,
    "mu_estimate": 1.2, "epsilon_estimate": 5.1, "canaries": "dirac", "threat_model": "white box: sees all",
    "num_canaries": 1000, "guesses_in": 100, "guesses_out": 100, "num_guesses": 200, "num_correct": 195,
    "num_thresholds": 1, "exposure": None, "warnings": ["a warning"], "note": "PASS is not a proof",
    "audited_run": "twin", "is_twin": True,
    "histogram": {"edges": [0.0, 1.0, 2.0], "in": [1, 9], "out": [8, 2], "guessed": [0.5, 1.5]},
}  # fmt: skip


def test_a_failed_audit_stands_on_the_page_and_in_the_card(make_run, tmp_path):
    path = make_run(tmp_path)
    assert ("audit", "not audited") in privacy_card(read_run(path).privacy).facts
    (path / "audit.json").write_text(json.dumps(AUDIT))
    page = render_report(read_run(path))
    for text in ("FAIL: ε ≥ 3.500 at 95% confidence, white box", "195 of 200", "rejected", "a warning", "canaries out",
                 "guessed in"):  # fmt: skip
        assert text in page
    assert "Audited run:" not in page


def test_an_audited_run_says_so(make_run, tmp_path):
    path = make_run(tmp_path, config={"privacy": {"audit": {"canaries": "dirac"}}})
    assert "Audited run: canaries stand in place of training records" in render_report(read_run(path))


def test_a_run_without_privacy_has_no_claim():
    named = dict(facts(AUDIT | {"claimed_epsilon": "inf", "epsilon_estimate": None}))
    assert named["claimed ε"] == "no claim"
    assert "ε if the mechanism were Gaussian" not in named


def test_a_rate_that_cannot_be_resolved_is_named():
    rate = {"value": None, "ci_low": None, "ci_high": None}
    lira = {"method": "offline LiRA", "num_records": 9, "num_shadow_runs": 4, "rates": {"tpr_at_fpr_0.001": rate}}
    assert lira_table(lira).rows == [["tpr_at_fpr_0.001", "not resolvable", ""]]
