"""LiRA, the likelihood-ratio membership attack (Carlini et al., S&P 2022, arXiv 2112.03570).

It describes the risk of membership inference. It says nothing about epsilon by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from privlm.errors import UsageError
from privlm.metrics.detection import auc, mean_of_rates
from privlm.metrics.estimate import Estimate
from privlm.metrics.shares import share

MIN_RUNS_FOR_OWN_VARIANCE = 64
"""With fewer shadow runs all records share one variance: their own would be too noisy."""


def confidence_logit(loss: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)) of the probability p = exp(-loss) of the right answer, in float64; close to normal.

    Losses of exactly 0 (p = 1 in float32) count as the smallest positive float32 spacing at 1.
    """
    loss = np.maximum(np.asarray(loss, dtype=np.float64), float(np.finfo(np.float32).eps))
    return -loss - np.log(-np.expm1(-loss))


def lira_scores(target_n: np.ndarray, shadow_sn: np.ndarray, member_sn: np.ndarray, *, online: bool) -> np.ndarray:
    """How strongly the target run speaks for each record having been in its training data, float64 [N].

    Args:
        target_n: confidence logits of the records under the target run, [N].
        shadow_sn: the same under S shadow runs, [S, N]; each trains on a random half of the records.
        member_sn: which records each shadow run trained on, bool [S, N].
        online: the likelihood ratio of in and out; otherwise how improbable the logit is for a record that is out.

    Raises UsageError for a record that no shadow run left out, or (online) none trained on.
    """
    mean_out, std_out = _fit(shadow_sn, ~member_sn, "left out")
    if not online:
        return norm.logcdf(target_n, mean_out, std_out)
    mean_in, std_in = _fit(shadow_sn, member_sn, "trained on")
    return norm.logpdf(target_n, mean_in, std_in) - norm.logpdf(target_n, mean_out, std_out)


def _fit(shadow_sn: np.ndarray, chosen_sn: np.ndarray, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean [N] and standard deviation, [N] or [1], of the chosen runs of each record."""
    counts_n = chosen_sn.sum(axis=0)
    if (counts_n == 0).any():
        raise UsageError(f"{int((counts_n == 0).sum())} records were {what} by no shadow run: train more of them")
    mean_n = np.where(chosen_sn, shadow_sn, 0).sum(axis=0) / counts_n
    squares_n = (np.where(chosen_sn, shadow_sn - mean_n, 0) ** 2).sum(axis=0)
    if len(shadow_sn) >= MIN_RUNS_FOR_OWN_VARIANCE:
        return mean_n, np.sqrt(squares_n / (counts_n - 1)) + 1e-12
    degrees_of_freedom = max(1, counts_n.sum() - len(counts_n))
    return mean_n, np.sqrt([squares_n.sum() / degrees_of_freedom]) + 1e-12


@dataclass(frozen=True)
class Rate:
    """A figure with its 95 % interval; `value` is None where the data cannot resolve it."""

    value: float | None
    ci_low: float | None
    ci_high: float | None

    @classmethod
    def of(cls, estimate: Estimate) -> Rate:
        return cls(estimate.value, estimate.ci_low, estimate.ci_high)


def attack_rates(scores_n: np.ndarray, member_n: np.ndarray) -> dict[str, Rate]:
    """auc, balanced_accuracy, tpr_at_fpr_0.01 and tpr_at_fpr_0.001 of membership scores [N] against bool [N].

    Intervals are those of privlm.metrics; that of a true-positive rate is about its threshold as it is, not about where
    other non-members would put it. A false-positive rate is resolvable with at least 1 / rate non-members. Balanced
    accuracy takes the median score as its threshold, which needs no knowledge of the members.
    """
    positive, negative = scores_n[member_n], scores_n[~member_n]
    if not len(positive) or not len(negative):
        raise UsageError("an attack is measured on members and on non-members: one of the two is missing")
    threshold = np.median(scores_n)
    balanced = mean_of_rates(share(positive > threshold), share(negative <= threshold))
    return {
        "auc": Rate.of(auc(positive, negative)),
        "balanced_accuracy": Rate.of(balanced),
        "tpr_at_fpr_0.01": _true_positives_at(0.01, positive, negative),
        "tpr_at_fpr_0.001": _true_positives_at(0.001, positive, negative),
    }


def _true_positives_at(rate: float, positive: np.ndarray, negative: np.ndarray) -> Rate:
    num_allowed = int(rate * len(negative) + 1e-9)
    if num_allowed == 0:
        return Rate(None, None, None)
    threshold = np.sort(negative)[-num_allowed - 1]
    return Rate.of(share(positive > threshold))
