"""Composed configurations, for tests that only need one."""

from __future__ import annotations

from functools import cache

from privlm.cli.compose import Composed, Words, compose


@cache
def composed(*words: str) -> Composed:
    """What `privlm run WORDS` composes; once for all tests of a process, since it is read-only and takes a while."""
    return compose(Words(words))
