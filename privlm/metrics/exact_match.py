"""Exact match of short answers, after normalisation (as of SQuAD: Rajpurkar et al., EMNLP 2016)."""

from __future__ import annotations

import re

ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def normalised(text: str) -> str:
    """In lower case, without articles and punctuation, single blanks."""
    words = re.sub(r"[^\w\s]", " ", text.lower())
    return " ".join(ARTICLES.sub(" ", words).split())


def exact_match(answer: str, reference: str) -> bool:
    """Whether they are equal after normalisation; an answer of which nothing is left is never right."""
    return bool(normalised(answer)) and normalised(answer) == normalised(reference)
