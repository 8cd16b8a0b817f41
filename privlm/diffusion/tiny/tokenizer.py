"""A CLIP tokenizer of a few hundred entries: every byte, and each word of the captions as one token."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from privlm.diffusion import captions
from privlm.diffusion.scenes import every_scene

MAX_LENGTH = 24
END_OF_WORD = "</w>"
START, END = "<|startoftext|>", "<|endoftext|>"

Pair = tuple[str, str]


def make_tokenizer() -> CLIPTokenizer:
    """Words of the captions by keywords and of the plain sentences are one token; any other text is spelt in bytes."""
    letters = sorted(ByteLevel.alphabet())
    merges = _merges(_words())
    entries = [*letters, *(letter + END_OF_WORD for letter in letters), *(a + b for a, b in merges), START, END]
    vocab = {entry: number for number, entry in enumerate(entries)}
    pairs: Any = merges  # which transformers takes as well as lines of text
    return CLIPTokenizer(vocab=vocab, merges=pairs, model_max_length=MAX_LENGTH)


def _words() -> list[str]:
    plain = [captions.narrative(scene, t) for scene in every_scene() for t in range(len(captions.NARRATIVE))]
    texts = [*map(captions.keyword, every_scene()), *plain]
    return sorted({word for text in texts for word in re.findall(r"[a-z]+|[^a-z\s]+", text.lower())})


def _merges(words: list[str]) -> list[Pair]:
    """Byte pair encoding until each word is one token; the most frequent pair first, then the first by name."""
    spelt = [[*word[:-1], word[-1] + END_OF_WORD] for word in words]
    merges: list[Pair] = []
    while pairs := Counter(pair for word in spelt for pair in pairwise(word)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelt = [_merged(word, best) for word in spelt]
    return merges


def _merged(word: list[str], pair: Pair) -> list[str]:
    merged: list[str] = []
    for part in word:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged
