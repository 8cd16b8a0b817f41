"""Keeps keys and passwords out of everything that is written, and refuses a configuration that holds one.

A key belongs into an environment variable; a configuration names the variable. Whatever else could hold one (messages,
the command line, what a tracker is told) is masked: by the name of its field, by the values of variables that are named
like secrets, and by the looks of the keys that well-known services give out.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

MASK = "***"
_NAMES = r"api[-_]?key|access[-_]?key|secret|passw(?:or)?d|passphrase|credential"
SECRET = re.compile(rf"(?:{_NAMES}|(?:^|[_.-])token$)(?!.*_(?:env|field)$)", re.IGNORECASE)
_HELD = re.compile(
    rf"(?:{_NAMES}|(?:^|[_.-])(?:auth|access|hub|hf|bearer|refresh)[-_]?token$|(?:^|\.)token$)(?!.*_(?:env|field)$)",
    re.IGNORECASE,
)
"""As SECRET, but no pad_token or other word of a vocabulary: what no configuration may hold."""

VARIABLE = re.compile(
    r"(?:^|_)(?:API_?KEY|ACCESS_?KEY|KEY|TOKEN|SECRETS?|PASSW(?:OR)?D|PASSPHRASE|CREDENTIALS?)(?:_|\d|$)", re.IGNORECASE
)
"""Names of environment variables whose values are secrets."""

SHORTEST = 8
"""Characters of a value that is looked for in other texts: `false` of TOKENIZERS_PARALLELISM is no secret."""

LOOKS = re.compile(
    r"\b(?:[spr]k-[\w-]{16,}|hf_\w{16,}|gh[opsur]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[abeprs]-[\w-]{10,}"
    r"|A[KS]IA[0-9A-Z]{16}|AIza[\w-]{30,}|gsk_\w{20,}|nvapi-[\w-]{20,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+)"
)
"""Keys of well-known services, and signed web tokens."""

USER = re.compile(r"(\w+://)[^/\s@?#]+@")
QUERY = re.compile(
    r"([?&;#](?:[\w-]*(?:key|token|secret|password)|sig|signature|auth|code)=)[^&\s#'\"]+", re.IGNORECASE
)
HEADER = re.compile(
    r"((?:authorization|[\w-]*api[-_]?key|password)[\"']?\s*:\s*[\"']?(?:bearer\s+|basic\s+)?|\bbearer\s+)[^\s\"',}]+",
    re.IGNORECASE,
)
OPTION = re.compile(rf"(--?[\w-]*(?:{_NAMES}|token)(?:\s+))[^\s-]\S*", re.IGNORECASE)
ASSIGNMENT = re.compile(r"([\w.+~/-]+)=([^\s&]+)")
FROM_ENVIRONMENT = re.compile(r"\$\{oc\.env:\s*([^,}\s]+)")


def is_secret(key: str) -> bool:
    """Whether a configuration key holds a secret: *api_key*, *secret*, *password* or *_token (max_tokens does not, and
    api_key_env holds a name).
    """
    return SECRET.search(key) is not None


def secret_variables(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment variables that are named like secrets, with their values; paths and short values are none."""
    environ = os.environ if environ is None else environ
    return {
        name: value
        for name, value in environ.items()
        if VARIABLE.search(name) and len(value) >= SHORTEST and not value.startswith(("/", "~", "."))
    }


def mask_secrets(value: Any) -> Any:
    """A copy of nested mappings and lists in which every value of a secret key is `***`, and every text is masked."""
    if isinstance(value, dict):
        return {
            key: MASK if item is not None and is_secret(str(key)) else mask_secrets(item) for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [mask_secrets(item) for item in value]
    return mask_text(value) if isinstance(value, str) else value


def mask_text(text: str, secrets: Iterable[str] = ()) -> str:
    """A text, a command line or an address in which every secret is `***`. secrets: further values to be masked."""
    for value in sorted({*secrets, *secret_variables().values()}, key=len, reverse=True):
        text = text.replace(value, MASK)
    for pattern, replacement in ((LOOKS, MASK), *((each, rf"\1{MASK}") for each in (QUERY, HEADER, OPTION))):
        text = pattern.sub(replacement, text)
    text = USER.sub(rf"\1{MASK}@", text)
    return ASSIGNMENT.sub(lambda found: f"{found[1]}={MASK}" if is_secret(found[1]) else found[0], text)


def holds_key(text: str) -> bool:
    """Whether a line holds what looks like a key or password that is not masked."""
    if any(value in text for value in secret_variables().values()):
        return True
    if any(MASK not in found[0] for pattern in (LOOKS, USER, QUERY, HEADER) for found in pattern.finditer(text)):
        return True
    return any(_HELD.search(found[1]) and found[2] != MASK for found in ASSIGNMENT.finditer(text))


def held_in_words(words: Iterable[str]) -> list[str]:
    """What is wrong with overrides that hold a key, one sentence each, without the key."""
    problems = []
    for word in words:
        key, _, value = word.lstrip("+~").partition("=")
        name = next((name for name in FROM_ENVIRONMENT.findall(value) if VARIABLE.search(name)), None)
        if name is not None:
            problems.append(f"{key} takes the value of the environment variable {name}, {_WRITTEN}{_remedy(key, name)}")
        else:
            problems += _held(key, value, {})
    return problems


def held_in_config(config: Mapping[str, Any]) -> list[str]:
    """The same for a resolved configuration, whose texts are all written down."""
    named = (config.get("llm") or {}).get("api_key_env")
    variables = {named: value} if isinstance(named, str) and len(value := os.environ.get(named, "")) >= SHORTEST else {}
    return [problem for key, value in _texts(config) for problem in _held(key, value, variables)]


_WRITTEN = "which would be written down: "


def _held(key: str, value: str, variables: Mapping[str, str]) -> list[str]:
    if not value or value in ("null", MASK, "''", '""'):
        return []
    for name, secret in {**secret_variables(), **variables}.items():
        if secret in value:
            return [f"{key} holds the value of the environment variable {name}, {_WRITTEN}{_remedy(key, name)}"]
    if _HELD.search(key) and not re.fullmatch(r"-?[\d.]+|true|false", value, re.IGNORECASE):
        return [f"{key} holds a key or password, {_WRITTEN}{_remedy(key)}"]
    if any(pattern.search(value) for pattern in (LOOKS, USER, QUERY)):
        return [f"{key} holds what looks like a key or password, {_WRITTEN}{_remedy(key)}"]
    return []


def _remedy(key: str, name: str = "NAME") -> str:
    if key.startswith("llm"):
        return f"name its environment variable, llm.api_key_env={name}"
    return "leave it in an environment variable that its library reads"


def _texts(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key and text of every text in nested mappings and lists."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item, prefix)
    elif isinstance(value, str):
        yield prefix, value


class MaskedFormatter(logging.Formatter):
    """Lines of a log, tracebacks included, with every secret masked."""

    def format(self, record: logging.LogRecord) -> str:
        return mask_text(super().format(record))
