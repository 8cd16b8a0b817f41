"""Replies of the OpenAI protocol, chat and completions, read with care: no network, no client library.

Status of a reply: refused for a content filter or a refusal; length when the tokens ran out; empty for no choice, no
text, or a tool call in place of text; ok otherwise.
"""

from __future__ import annotations

from typing import Any

from privlm.llm.types import Answer, Status


def parse_reply(body: Any) -> Answer | None:
    """The answer in a decoded reply, None for a body that is not the protocol (an error object, a proxy's page)."""
    if not isinstance(body, dict) or not isinstance(body.get("choices"), list):
        return None
    usage = body.get("usage")
    prompt_tokens, completion_tokens = (_count(usage, name) for name in ("prompt_tokens", "completion_tokens"))
    estimated = prompt_tokens is None or completion_tokens is None
    counts = {"prompt_tokens": prompt_tokens or 0, "completion_tokens": completion_tokens or 0, "estimated": estimated}
    if not body["choices"]:
        return Answer("", "empty", **counts)  # type: ignore[arg-type]
    choice = body["choices"][0]
    if not isinstance(choice, dict):
        return None
    text, refusal = _text(choice)
    finish_reason = choice.get("finish_reason")
    status: Status = "ok" if text else "empty"
    if finish_reason == "content_filter" or refusal:
        status, text = "refused", text or refusal
    elif finish_reason == "length":
        status = "length"
    return Answer(text, status, finish_reason, logprobs=_logprobs(choice.get("logprobs")), **counts)  # type: ignore[arg-type]


def _text(choice: dict[str, Any]) -> tuple[str, str]:
    """Text and refusal of a choice, "" where there is none."""
    message = choice.get("message")
    if not isinstance(message, dict):
        message = {"content": choice.get("text")}
    content, refusal = message.get("content"), message.get("refusal")
    return (content if isinstance(content, str) else ""), (refusal if isinstance(refusal, str) else "")


def _count(usage: Any, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _logprobs(logprobs: Any) -> tuple[float, ...] | None:
    """Chat and some servers' completions list objects; the older schema lists numbers."""
    if not isinstance(logprobs, dict):
        return None
    if isinstance(logprobs.get("content"), list):
        values = [token.get("logprob") for token in logprobs["content"] if isinstance(token, dict)]
    else:
        values = logprobs.get("token_logprobs") or []
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    return tuple(numbers) if numbers and len(numbers) == len(values) else None
