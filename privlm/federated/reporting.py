"""What the rounds of a federation cost, as rows of result.json."""

from __future__ import annotations

from privlm.federated.outcome import Federated
from privlm.job import Stage

MEGABYTE = 1e6


def report_budget(stage: Stage, *, steps: int, rows_seen: int) -> None:
    """Of an arm, its clients together: two arms are comparable where it is the same."""
    stage.report(split="train", unit="steps", steps=steps)
    stage.report(split="train", unit="rows", rows_seen=rows_seen)


def report_rounds(stage: Stage, trained: Federated) -> None:
    """The budget, and what travelled; nothing that tells how many clients a secret draw has asked."""
    outcome, sent = trained.outcome, trained.outcome.replies
    stage.report(unit="rounds", rounds=outcome.rounds)
    stage.report(unit="clients", clients=len(trained.federation.clients))
    if outcome.steps is None or outcome.examples is None or not sent:
        return
    report_budget(stage, steps=outcome.steps, rows_seen=outcome.examples)
    up, down = (total / MEGABYTE for total in (outcome.bytes_up or 0, outcome.bytes_down or 0))
    stage.report(unit="MB", upload=up, download=down, upload_per_reply=up / sent, traffic_per_reply=(up + down) / sent)
    stage.report(unit="replies", replies=sent, failures=outcome.failures or 0)
