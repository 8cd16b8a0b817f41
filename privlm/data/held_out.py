"""The rule that holds rows out where files have no splits: by their own text, whatever else is in the file."""

from __future__ import annotations

import hashlib


def is_held_out(text: str) -> bool:
    """A fifth of all texts (sha256 mod 5 = 0). Equal texts are on one side; a row more changes no other row's side."""
    return int(digest(text), 16) % 5 == 0


def digest(text: str) -> str:
    """64 hexadecimal digits: an order of texts that none of them knows of the others."""
    return hashlib.sha256(text.encode()).hexdigest()
