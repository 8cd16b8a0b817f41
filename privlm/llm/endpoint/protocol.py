"""Replies of the OpenAI protocol, chat and completions. Read with care, since servers differ: no network and no client
library here. privlm.llm.endpoint.scores reads the scores that some servers add.

Status of a reply: refused for a content filter or a refusal; length when the tokens ran out; empty for no choice, no
text, or a tool call in place of text; ok otherwise. A reply of any other shape is the server's fault and no answer:
what the model said is not known, and is not taken for nothing.
"""

from __future__ import annotations

import math
from typing import Any

from privlm.llm.types import Answer, Status

ONLY_REASONING = "the model has reasoned and not come to an answer"
"""Detail of an answer that holds reasoning and no text."""

REASONING = ("reasoning_content", "reasoning")  # fields of a message, as servers name it
IN_PLACE_OF_TEXT = ("tool_calls", "function_call", "audio", *REASONING)
TEXT_PARTS = frozenset({"text", "output_text"})
SILENT_PARTS = frozenset({"reasoning", "thinking", "redacted_thinking", "tool_use", "tool_call", "function_call"})
ROUNDING = 1e-5  # by which the sum of a server's probabilities may exceed 1


class _NoProtocolError(ValueError):
    """The reply is of no known shape."""


def parse_reply(body: Any) -> Answer | None:
    """The answer in a decoded reply, None for a body that is not the protocol (an error object, a proxy's page, a
    choice without a message).

    Its log-probabilities are as the server gave them; `are_logprobs` says whether they can be.
    """
    try:
        return _answer(body)
    except _NoProtocolError:
        return None


def are_logprobs(values: Any) -> bool:
    """Whether a list holds nothing but finite numbers that are not positive, rounding aside."""
    return isinstance(values, list | tuple) and all(is_logprob(value) for value in values)


def is_logprob(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value <= ROUNDING


def first_choice(body: Any) -> dict[str, Any]:
    """The first choice of a reply, {} where there is none."""
    choices = body.get("choices") if isinstance(body, dict) else None
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}


def tells_an_error(body: Any) -> bool:
    """Whether the reply, or its first choice, says that it is none, whatever stands beside it."""
    choice = first_choice(body)
    is_object = isinstance(body, dict)
    return not is_object or bool(body.get("error") or choice.get("error")) or choice.get("finish_reason") == "error"


def _answer(body: Any) -> Answer:
    if tells_an_error(body) or not isinstance(body.get("choices"), list):
        raise _NoProtocolError
    usage, model = body.get("usage"), body.get("model")
    prompt_tokens, completion_tokens = (_count(usage, name) for name in ("prompt_tokens", "completion_tokens"))
    told: dict[str, Any] = {
        "prompt_tokens": prompt_tokens or 0,
        "completion_tokens": completion_tokens or 0,
        "estimated": prompt_tokens is None or completion_tokens is None,
        "answered_by": model if isinstance(model, str) else None,
    }
    if not body["choices"]:
        return Answer("", "empty", **told)
    choice = first_choice(body)
    finish_reason = choice.get("finish_reason")
    if not choice:
        raise _NoProtocolError
    filtered = finish_reason == "content_filter"
    text, refusal, reasoned = _text(choice, filtered=filtered)
    status: Status = "ok" if text else "empty"
    if filtered or refusal:
        status, text = "refused", text or refusal
    elif finish_reason == "length":
        status = "length"
    return Answer(
        text,
        status,
        finish_reason if isinstance(finish_reason, str) else None,
        logprobs=_logprobs(choice.get("logprobs")),
        detail=ONLY_REASONING if reasoned and not text else None,
        **told,
    )


def _text(choice: dict[str, Any], *, filtered: bool) -> tuple[str, str, bool]:
    """Text and refusal of a choice, "" where there is none, and whether there is reasoning.

    filtered: its content was taken out, and may be missing.
    """
    message = choice.get("message")
    if message is None and "text" in choice:
        message = {"content": choice["text"]}
    if not isinstance(message, dict):
        if filtered and message is None:
            return "", "", False
        raise _NoProtocolError
    refusal = message.get("refusal") or ""
    if not isinstance(refusal, str):
        raise _NoProtocolError
    if "content" not in message and not (filtered or refusal or any(message.get(name) for name in IN_PLACE_OF_TEXT)):
        raise _NoProtocolError
    text, refused_part = _joined(message.get("content"))
    return text, refusal or refused_part, any(message.get(name) for name in REASONING)


def _joined(content: Any) -> tuple[str, str]:
    """Text and refusal of a message's content: a text, nothing, or a list of parts."""
    if content is None or isinstance(content, str):
        return content or "", ""
    if not isinstance(content, list):
        raise _NoProtocolError
    texts, refusals = [], []
    for part in content:
        kind, value = ("text", part) if isinstance(part, str) else _part(part)
        if kind in TEXT_PARTS and isinstance(value, str):
            texts.append(value)
        elif kind == "refusal" and isinstance(value, str):
            refusals.append(value)
        elif kind not in SILENT_PARTS:
            raise _NoProtocolError
    return "".join(texts), "".join(refusals)


def _part(part: Any) -> tuple[Any, Any]:
    """Kind and text of one part."""
    if not isinstance(part, dict):
        raise _NoProtocolError
    kind = part.get("type", "text")
    return kind, part.get("refusal" if kind == "refusal" else "text")


def _count(usage: Any, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _logprobs(logprobs: Any) -> tuple[float, ...] | None:
    """Of the tokens of an answer: chat and some servers' completions list objects; the older schema lists numbers."""
    if not isinstance(logprobs, dict):
        return None
    values: Any = logprobs.get("token_logprobs")
    if isinstance(logprobs.get("content"), list):
        values = [token.get("logprob") if isinstance(token, dict) else None for token in logprobs["content"]]
    if not isinstance(values, list) or not values:
        return None
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return None
    return tuple(map(float, values))
