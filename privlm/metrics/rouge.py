"""ROUGE-L: how much of two texts stands in both in the same order (Lin, ROUGE, ACL workshop 2004, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence


def rouge_l(candidate: Sequence[str], reference: Sequence[str]) -> float:
    """F1 = 2 L / (m + n) of two texts of m and n words with a longest common subsequence of L; 0 where either has none.

    What a word is, the caller says (privlm.data.contamination.words_of: any script, whatever the case).
    """
    return 2 * lcs_length(candidate, reference) / max(1, len(candidate) + len(reference))


def lcs_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Words of a longest common subsequence. Bit i of `open_` is 0 where a[i] adds one to it (Hyyrö, AWOCA 2004): a
    whole column of the usual table is one addition, so that a pair of 400 words takes about 0.1 ms.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << place
    whole = (1 << len(a)) - 1
    open_ = whole
    for word in b:
        met = open_ & places.get(word, 0)
        open_ = ((open_ + met) | (open_ ^ met)) & whole
    return len(a) - open_.bit_count()
