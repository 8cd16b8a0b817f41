"""From what a model wrote to a value. A parser never guesses: what is absent or ambiguous is a ParseError, whose
message the model is shown when it is asked again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel

Parser = Callable[[str], Any]
"""Output of the model -> value. Raises ParseError."""


class ParseError(ValueError):
    """The output is not what the step asks for."""


def stripped(output: str) -> str:
    """The output itself without blanks around it; nothing at all is an error."""
    if not output.strip():
        raise ParseError("the answer is empty")
    return output.strip()


def regex(pattern: str, flags: int = re.IGNORECASE | re.MULTILINE) -> Parser:
    """The first group of the first match.

    Raises ValueError for a pattern without a group.
    """
    compiled = re.compile(pattern, flags)
    if not compiled.groups:
        raise ValueError(f"the pattern {pattern!r} has no group that would hold the value")

    def parse(output: str) -> str:
        found = compiled.search(output)
        if found is None or found.group(1) is None:
            raise ParseError(f"nothing matches {pattern}")
        return found.group(1)

    return parse


def choice(*options: str) -> Parser:
    """The one of `options` that occurs in the output as a word, whatever its case."""
    patterns = {option: re.compile(rf"(?<!\w){re.escape(option)}(?!\w)", re.IGNORECASE) for option in options}

    def parse(output: str) -> str:
        found = [option for option, pattern in patterns.items() if pattern.search(output)]
        if len(found) != 1:
            raise ParseError(f"{' and '.join(found) or 'none'} of {', '.join(options)}: name exactly one")
        return found[0]

    return parse


NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?(?![\w])")


def number(output: str) -> float:
    """The only number of the output; commas may part thousands."""
    found = NUMBER.findall(output)
    if len(found) != 1:
        raise ParseError(f"{len(found)} numbers: give exactly one")
    return float(found[0].replace(",", ""))


def json_object(schema: type[BaseModel]) -> Parser:
    """The first JSON object of the output, checked by a pydantic model, of which an instance is returned."""

    def parse(output: str) -> BaseModel:
        from pydantic import ValidationError

        start = output.find("{")
        if start < 0:
            raise ParseError("no JSON object")
        try:
            value, _ = json.JSONDecoder().raw_decode(output, start)
        except json.JSONDecodeError as error:
            raise ParseError(f"not JSON: {error.msg} at character {error.pos - start}") from None
        try:
            return schema.model_validate(value)
        except ValidationError as error:
            problems = [
                f"{'.'.join(map(str, problem['loc'])) or 'object'}: {problem['msg']}" for problem in error.errors()
            ]
            raise ParseError("; ".join(problems)) from None

    return parse
