"""Configurations as the command line composes them, each made once: they are read-only."""

from __future__ import annotations

from functools import cache

from omegaconf import DictConfig

from privlm.cli.compose import Composed, Words, compose


@cache
def composition(*words: str) -> Composed:
    """What `privlm run WORDS` would run, without a user's own folders, and how it came about."""
    return compose(Words(words))


def composed(*words: str) -> DictConfig:
    """What `privlm run WORDS` would run, without a user's own folders."""
    return composition(*words).config
