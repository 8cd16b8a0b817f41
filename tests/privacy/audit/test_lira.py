"""LiRA on simulated logits: it finds members where there is a signal, and claims nothing where there is none."""

import numpy as np
import pytest

from privlm.errors import UsageError
from privlm.privacy.audit.lira import attack_rates, confidence_logit, lira_scores

pytestmark = pytest.mark.torch_free


def simulate(signal, num_runs=25, num_records=2000, seed=0):
    """(logits, membership), [S, N], of runs in which a member's logit is `signal` higher."""
    rng = np.random.default_rng(seed)
    member_sn = rng.random((num_runs, num_records)) < 0.5
    return signal * member_sn + 3 * rng.standard_normal(num_records) + rng.standard_normal(member_sn.shape), member_sn


@pytest.mark.parametrize("online", [True, False])
def test_members_are_found_where_there_is_a_signal(online):
    logits, member = simulate(signal=2.0)
    scores = lira_scores(logits[0], logits[1:], member[1:], online=online)
    rates = attack_rates(scores, member[0])
    assert rates["auc"].ci_low > 0.8
    assert rates["balanced_accuracy"].value > 0.7
    assert rates["tpr_at_fpr_0.01"].value > 0.1


def test_no_signal_gives_an_auc_of_one_half():
    logits, member = simulate(signal=0.0)
    auc = attack_rates(lira_scores(logits[0], logits[1:], member[1:], online=False), member[0])["auc"]
    assert auc.ci_low < 0.5 < auc.ci_high


def test_a_rate_below_one_in_the_number_of_non_members_is_not_resolvable():
    scores, member = np.arange(200.0), np.arange(200) % 2 == 0
    rates = attack_rates(scores, member)
    assert rates["tpr_at_fpr_0.001"].value is None
    assert rates["tpr_at_fpr_0.01"].value is not None


def test_perfect_scores_have_an_auc_of_one():
    member = np.arange(100) >= 50
    assert attack_rates(np.arange(100.0), member)["auc"].value == 1
    assert attack_rates(np.arange(100.0), member)["tpr_at_fpr_0.01"].value is None


def test_confidence_logit_is_the_logit_of_the_probability():
    p = np.array([1e-9, 0.2, 0.5, 0.999])
    assert confidence_logit(-np.log(p)) == pytest.approx(np.log(p / (1 - p)))
    assert np.isfinite(confidence_logit(np.array([0.0]))).all()


def test_a_record_that_every_shadow_run_saw_is_refused():
    logits, member = simulate(signal=1.0)
    member[1:, 7] = True
    with pytest.raises(UsageError, match="1 records were left out by no shadow run"):
        lira_scores(logits[0], logits[1:], member[1:], online=False)
