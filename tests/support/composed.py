"""Configurations as the command line composes them, each made once: they are read-only."""

from __future__ import annotations

from functools import cache

from omegaconf import DictConfig

from privlm.cli.compose import Words, compose


@cache
def composed(*words: str) -> DictConfig:
    """What `privlm run WORDS` would run, without a user's own folders."""
    return compose(Words(words)).config
