"""What a reader of the numbers must know of how they were made, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from privlm.data.causal_lm import CausalSplit
from privlm.privacy.schema import is_private
from privlm.report.card import privacy_card
from privlm.report.store import read_run

from .config import RETRIEVED
from .reading import Reading


def notes(config: Any) -> list[str]:
    """Known before anything is asked."""
    task = config.task
    said = [
        f"backgrounds: greedy, at most {task.background_max_tokens} tokens; answers at most {task.answer_max_tokens}; "
        f"the black box is sent {'messages' if task.chat else 'raw text'}"
    ]
    if used := [guide for guide in task.guides if guide in RETRIEVED]:
        pool = {
            "global": "the distinct backgrounds of both splits, the test questions' own among them",
            "item": "each question's own passages; of FM2 they hold all its gold sentences",
        }
        number = "the nearest" if task.num_passages == 1 else f"the {task.num_passages} nearest"
        said.append(
            f"{', '.join(used)}: {number} of {pool[task.retrieval_pool]} (retrieval_pool={task.retrieval_pool})"
        )
        if is_private(config) and task.retrieval_pool == "global":
            said.append(
                f"the guarantee is about the guide: {', '.join(used)} show the black box rows to learn from as they are"
            )
    if "pkg" in task.guides and config.data.kind == "claim" and config.data.train_split == "dev":
        said.append("the guide is trained on dev, since the training split is not at hand: not the paper's setting")
    return said


def price_of_guide(run: str) -> str:
    """Of a guide that another run has aligned."""
    return f"guide: aligned by the run {run}, with {privacy_card(read_run(Path(run)).privacy).headline}"


def what_is_cut(train: CausalSplit, max_length: int) -> str:
    """Of the rows to learn."""
    return (
        f"{train.num_truncated:,} backgrounds to learn cut to {max_length} tokens; {train.num_skipped:,} left out, of "
        "which no token is left to learn"
    )


def what_private_mode_hides(config: Any, readings: Mapping[str, Sequence[Reading]]) -> str | None:
    """What was looked for and found, what private mode hides, and what it does not."""
    task = config.task
    if not task.private_mode:
        return None
    found = {
        guide: sum(reading.line["leaks"] > 0 for reading in answers)
        for guide, answers in readings.items()
        if any(reading.line["leaks"] for reading in answers)
    }
    leaks = ", ".join(f"{guide} {count}" for guide, count in found.items()) or "none"
    training = (
        "the guide was trained with differential privacy, which bounds that"
        if is_private(config)
        else "train the guide with privacy=dp_sgd to bound that"
    )
    return (
        f"private mode ({task.on_leak}): no whole text of the alignment set and no 13 words of one in a row may leave, "
        f"unless the question has them; questions whose prompt held some: {leaks}. It hides the corpus, not the "
        f"questions, and a background may tell training data in other words: {training}"
    )
