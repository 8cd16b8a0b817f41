"""From what a model wrote to a value. A parser never guesses: what is absent or ambiguous is a ParseError, whose
message the model is shown when it is asked again.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from privlm.llm.program.answers import well_formed

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
    """The one of `options` that the output gives as its answer; see privlm.llm.program.answers."""

    def parse(output: str) -> str:
        found = well_formed(output, options, with_lead_in=True)
        if found is None:
            raise ParseError(f"no answer: name exactly one of {', '.join(options)}, and end the sentence")
        return found

    return parse


NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?(?!\w|\.\d)")
OTHER_THAN_SAID = re.compile(
    r"\d\s*(?:hundred|thousand|million|billion|trillion|dozen)s?\b|[-+]\s+\d|[<>≤≥≠~]\s*[-+]?\d|"
    r"(?<!\w)(?:not|than|at\s+least|at\s+most|up\s+to|over|under|above|below|minus)\s+[-+]?\d",
    re.IGNORECASE,
)
"""The number that is meant is not the one that is written: 5 million, less than 5, not 5, - 5."""


def number(output: str) -> float:
    """The only number of the output; commas may part thousands. A bound, a denied or a scaled number is none."""
    output = output.replace("−", "-")
    found = NUMBER.findall(output)
    if len(found) != 1:
        raise ParseError(f"{len(found)} numbers: give exactly one")
    value = float(found[0].replace(",", ""))
    if OTHER_THAN_SAID.search(output) or not math.isfinite(value):
        raise ParseError("not a plain number: give exactly one, in digits, without a bound or a word that scales it")
    return value


def json_object(schema: type[BaseModel]) -> Parser:
    """The only JSON object of the output, checked by a pydantic model, of which an instance is returned. The same
    object may stand there twice.
    """

    def parse(output: str) -> BaseModel:
        from pydantic import ValidationError

        objects = _objects(output)
        if any(value != objects[0] for value in objects):
            raise ParseError(f"{len(objects)} JSON objects that differ: give exactly one")
        value = objects[0]
        try:
            return schema.model_validate(value)
        except ValidationError as error:
            problems = [
                f"{'.'.join(map(str, problem['loc'])) or 'object'}: {problem['msg']}" for problem in error.errors()
            ]
            raise ParseError("; ".join(problems)) from None

    return parse


def _objects(output: str) -> list[Any]:
    """The JSON objects of the output, one at least. Raises ParseError, also for a first one that is none."""
    found: list[Any] = []
    start = output.find("{")
    if start < 0:
        raise ParseError("no JSON object")
    while start >= 0:
        try:
            value, end = DECODER.raw_decode(output, start)
            found.append(value)
        except ValueError as error:
            if not found:
                place = f" at character {error.pos - start}" if isinstance(error, json.JSONDecodeError) else ""
                raise ParseError(f"not JSON: {getattr(error, 'msg', error)}{place}") from None
            end = start + 1
        start = output.find("{", end)
    return found


def _with_distinct_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("two fields of an object have the same name")
    return dict(pairs)


def _no_number(constant: str) -> Any:
    raise ValueError(f"{constant} is no number")


DECODER = json.JSONDecoder(object_pairs_hook=_with_distinct_names, parse_constant=_no_number)
