"""From the scores of an audited run to a verdict on its claim.

The order is part of the method: guesses are made from scores and stored, and only then are the coins read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from privlm import files
from privlm.errors import UsageError
from privlm.privacy import keyed_random
from privlm.privacy.accounting import Segment
from privlm.privacy.accounting.gdp import gaussian_epsilon
from privlm.privacy.audit.lira import attack_rates, confidence_logit, lira_scores
from privlm.privacy.audit.one_run import ABSTAIN, IN, OUT, epsilon_lower_bound, guess, mu_lower_bound, rejects
from privlm.privacy.audit.trade_off import certified_trade_off

THREAT_MODELS = {
    "dirac": "white box: the adversary plants gradients and sees every noisy sum",
    "mislabel": "black box: the adversary plants mislabelled records and sees losses of the first and the last model",
    "random_tokens": "black box: the adversary plants random texts and sees losses of the first and the last model",
}
NO_PROOF = (
    "PASS is not a proof: one run finds gross defects only (noise too small by a factor of ten, no clipping), and the "
    "lower bound can lie far below the true epsilon."
)
NUM_BINS = 30


@dataclass(frozen=True)
class Claim:
    """What a run says about its privacy; epsilon is infinite where it says nothing, and `segments` then empty."""

    epsilon: float
    delta: float
    adjacency: str
    unit: str
    accountant: str
    is_certified: bool
    segments: tuple[Segment, ...]


def claim_of(privacy: Mapping[str, Any] | None) -> Claim:
    """The claim in privacy.json. Raises UsageError for noise that did not come from the privacy engine."""
    if privacy is None or privacy["mechanism"] == "none":
        return Claim(math.inf, 0.0, "none", "none", "none", False, ())
    if privacy["mechanism"] != "dp_sgd":
        raise UsageError(f"an audit is of the privacy engine (dp_sgd), and this run used {privacy['mechanism']}")
    if not privacy.get("final", True):
        raise UsageError("the run is not done: an audit is of what a run has spent, not of its plan")
    segments = (
        Segment(part["sampling_rate"], float(part["noise_multiplier"]), part["steps"])
        for part in privacy["certificate"]["segments"]
    )
    return Claim(
        epsilon=float(privacy["epsilon"]),
        delta=float(privacy["delta"]),
        adjacency=privacy["adjacency"],
        unit=privacy["unit"],
        accountant=privacy["accountant"],
        is_certified=privacy["guarantee"],
        segments=tuple(segments),
    )


def judge(folder: Path, settings: Mapping[str, Any], claim: Claim) -> dict[str, Any]:
    """The content of audit.json.

    Args:
        folder: `audit` in the directory of the audited run, which holds scores and coins.
        settings: privacy.audit of its configuration.

    FAIL where the binary bound exceeds the claimed epsilon, or the certified trade-off curve of the mechanism is
    rejected. Raises UsageError where scores or coins are missing or unusable.
    """
    scores_m = _scores(folder, "scores")
    rng = keyed_random.generator("equal scores", settings["seed"])
    guesses_m = guess(scores_m, settings["guesses_in"], settings["guesses_out"], rng)
    files.write_json(folder / "guesses.json", guesses_m.tolist())

    is_in_m = _coins(folder)
    is_guessed_m = guesses_m != ABSTAIN
    num_guesses = int(is_guessed_m.sum())
    num_correct = int(((guesses_m == IN) == is_in_m)[is_guessed_m].sum())
    counts = (len(scores_m), num_guesses, num_correct)
    confidence = settings["confidence"]
    bound = epsilon_lower_bound(*counts, delta=claim.delta, confidence=confidence)
    mu = mu_lower_bound(*counts, confidence=confidence)
    rejected = bool(claim.segments) and rejects(certified_trade_off(claim.segments), *counts, confidence=confidence)
    return {
        "schema": 1,
        "verdict": "FAIL" if bound > claim.epsilon or rejected else "PASS",
        "claimed_epsilon": claim.epsilon,
        "delta": claim.delta,
        "adjacency": claim.adjacency,
        "unit": claim.unit,
        "accountant": claim.accountant,
        "certified": claim.is_certified,
        "segments": [vars(segment) for segment in claim.segments],
        "epsilon_lower_bound": bound,
        "confidence": confidence,
        "curve_rejected": rejected,
        "mu_estimate": mu,
        "epsilon_estimate": gaussian_epsilon(mu, claim.delta) if claim.segments and mu else None,
        "canaries": settings["canaries"],
        "threat_model": THREAT_MODELS[settings["canaries"]],
        "num_canaries": len(scores_m),
        "guesses_in": settings["guesses_in"],
        "guesses_out": settings["guesses_out"],
        "num_guesses": num_guesses,
        "num_correct": num_correct,
        "num_thresholds": 1,
        "exposure": None if settings["canaries"] == "dirac" else _exposure(scores_m, is_in_m),
        "warnings": ["all scores are equal: the audit sees nothing"] if np.ptp(scores_m) == 0 else [],
        "note": NO_PROOF,
        "histogram": _histogram(scores_m, is_in_m, guesses_m),
    }


def describe_lira(target: Path, shadows: list[Path]) -> dict[str, Any]:
    """The content of lira.json: offline LiRA on the canaries of a target run, from shadow runs with other coins.

    Each path is the folder `audit` of a run. Canaries that every shadow run trained on cannot be scored and are left
    out; their number depends on the shadow runs' coins alone.
    """
    member_sn = np.stack([_coins(folder) for folder in shadows])
    usable_n = ~member_sn.all(axis=0)
    logits_sn = np.stack([confidence_logit(_scores(folder, "final_losses")) for folder in (target, *shadows)])
    scores_n = lira_scores(logits_sn[0, usable_n], logits_sn[1:, usable_n], member_sn[:, usable_n], online=False)
    rates = attack_rates(scores_n, _coins(target)[usable_n])
    return {
        "schema": 1,
        "method": "offline LiRA",
        "num_shadow_runs": len(shadows),
        "num_records": int(usable_n.sum()),
        "rates": {name: vars(rate) for name, rate in rates.items()},
        "note": "LiRA describes the risk of membership inference; it gives no verdict on epsilon.",
    }


def _exposure(scores_m: np.ndarray, is_in_m: np.ndarray) -> dict[str, float]:
    """Exposure in bits of the canaries that are in, against those that are out (Carlini et al., arXiv 1802.08232).

    log2 of the number of candidates over the canary's rank among them: 1.44 on average where nothing is memorised.
    """
    reference = np.sort(scores_m[~is_in_m])
    rank = 1 + len(reference) - np.searchsorted(reference, scores_m[is_in_m], side="right")
    bits = np.log2(len(reference) + 1) - np.log2(rank)
    return {"mean_bits": float(bits.mean()), "max_bits": float(bits.max())}


def _histogram(scores_m: np.ndarray, is_in_m: np.ndarray, guesses_m: np.ndarray) -> dict[str, Any]:
    """Scores of canaries in and out, and the scores up to which and from which canaries were guessed."""
    edges = np.histogram_bin_edges(scores_m, NUM_BINS)
    counts = {name: np.histogram(scores_m[chosen], edges)[0] for name, chosen in (("in", is_in_m), ("out", ~is_in_m))}
    highest_out = scores_m[guesses_m == OUT].max(initial=edges[0])
    lowest_in = scores_m[guesses_m == IN].min(initial=edges[-1])
    return {
        "edges": edges.tolist(),
        **{name: count.tolist() for name, count in counts.items()},
        "guessed": [float(highest_out), float(lowest_in)],
    }


def _scores(folder: Path, name: str) -> np.ndarray:
    content = files.read_json(folder / "scores.json")
    if content is None or name not in content:
        raise UsageError(f"{folder / 'scores.json'} holds no {name}: run the audited run again with --force")
    return np.array(content[name], dtype=np.float64)


def _coins(folder: Path) -> np.ndarray:
    content = files.read_json(folder / "coins.json")
    if content is None:
        raise UsageError(
            f"{folder / 'coins.json'} is missing: nobody can say which canaries were in, so the audited run has to be "
            "run again with --force"
        )
    return np.array(content["is_in"], dtype=bool)
