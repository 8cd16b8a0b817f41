"""Keeps keys and passwords out of everything that is written to be read by others."""

from __future__ import annotations

import re
from typing import Any

MASK = "***"
SECRET = re.compile(r"api_?key|secret|password|(^|[_.])token$", re.IGNORECASE)


def is_secret(key: str) -> bool:
    """Whether a configuration key holds a secret: *api_key*, *secret*, *password* or *_token (max_tokens does not)."""
    return SECRET.search(key) is not None


def mask_secrets(value: Any) -> Any:
    """A copy of nested mappings and lists in which every value of a secret key is `***`."""
    if isinstance(value, dict):
        return {
            key: MASK if item is not None and is_secret(str(key)) else mask_secrets(item) for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [mask_secrets(item) for item in value]
    return value


def mask_command(command: str) -> str:
    """A command line in which the value of every `secret_key=value` is `***`."""
    return re.sub(r"(\S+?)=\S+", lambda word: f"{word[1]}={MASK}" if is_secret(word[1]) else word[0], command)
