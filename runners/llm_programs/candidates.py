"""The paragraphs that a question is asked beside: its true ones among those of other questions, drawn by key."""

from __future__ import annotations

import random
from collections.abc import Sequence

from privlm.errors import UsageError

from .strategyqa import Paragraph, Question


def draw_distractors(question: Question, pool: Sequence[Paragraph], count: int, seed: int) -> list[Paragraph]:
    """Paragraphs of other questions, the same for a question whichever others are asked.

    Raises UsageError where the pool has too few.
    """
    own = {paragraph.id for paragraph in question.paragraphs}
    if count > len(pool) - len(own):
        raise UsageError(
            f"task.num_candidates: only {len(pool) - len(own)} paragraphs belong to other questions than "
            f"{question.id}; lower it, or use more data"
        )
    drawn = random.Random(f"{seed} {question.id}").sample(range(len(pool)), count + len(own))
    return [pool[index] for index in drawn if pool[index].id not in own][:count]


def filter_candidates(
    question: Question, pool: Sequence[Paragraph], count: int, seed: int
) -> tuple[list[Paragraph], int]:
    """One true paragraph among `count`, and its place: the set-up of the filter's table."""
    rng = random.Random(f"{seed} {question.id} place")
    true = rng.choice(question.paragraphs)
    candidates = draw_distractors(question, pool, count - 1, seed)
    place = rng.randrange(count)
    candidates.insert(place, true)
    return candidates, place


def tree_candidates(question: Question, pool: Sequence[Paragraph], count: int, seed: int) -> list[Paragraph]:
    """All true paragraphs among `count`, shuffled: what the search chooses from. The distractors are the filter's."""
    true = list(question.paragraphs[:count])
    candidates = true + draw_distractors(question, pool, count - len(true), seed)
    random.Random(f"{seed} {question.id} order").shuffle(candidates)
    return candidates
