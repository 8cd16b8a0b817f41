"""Replies of the OpenAI protocol, chat and completions, and the scores that some servers add to it.

Read with care, since servers differ: no network and no client library here.

Status of a reply: refused for a content filter or a refusal; length when the tokens ran out; empty for no choice, no
text, or a tool call in place of text; ok otherwise.
"""

from __future__ import annotations

from typing import Any

from privlm.errors import UsageError
from privlm.llm.types import Answer, Score, ScoreRequest, Status


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


# --- scores of a given text -----------------------------------------------------------------------------------------


def echoed_score(body: Any, request: ScoreRequest, num_tokens: int | None) -> Score | None:
    """From `echo` and `logprobs` of /completions: log-probabilities of the prompt's tokens, and where each starts.

    num_tokens: of the continuation, where it was sent tokenised; None: it begins at the first token that starts at or
    after the end of the context. None for a reply that holds no scores.
    """
    logprobs = _first_choice(body).get("logprobs")
    if not isinstance(logprobs, dict):
        return None
    values, starts = logprobs.get("token_logprobs"), logprobs.get("text_offset")
    if not isinstance(values, list):
        return None
    if num_tokens is None:
        if not isinstance(starts, list):
            return None
        num_tokens = sum(start >= len(request.context) for start in starts[: len(values)])
    return _score(values, num_tokens)


def prompt_logprobs_score(body: Any, request: ScoreRequest, num_tokens: int | None) -> Score | None:
    """From vLLM's `prompt_logprobs`: for each token of the prompt, None for the first, a dictionary with its entry.

    Raises UsageError where the tokens' texts do not make up the prompt, so that its border cannot be found.
    """
    entries = _first_choice(body).get("prompt_logprobs")
    if not isinstance(entries, list) or not all(entry is None or isinstance(entry, dict) for entry in entries):
        return None
    tokens: list[dict[str, Any]] = [next(iter(entry.values()), {}) if entry else {} for entry in entries]
    values = [token.get("logprob") for token in tokens]
    if num_tokens is None:
        num_tokens = _continuation_by_text(tokens, request)
    return _score(values, num_tokens)


def _continuation_by_text(tokens: list[dict[str, Any]], request: ScoreRequest) -> int:
    """Number of tokens that start in the continuation. The first token has no entry, so texts are laid from the end."""
    end, number = len(request.context) + len(request.continuation), 0
    for token in reversed(tokens):
        text = token.get("decoded_token")
        if not isinstance(text, str) or not (request.context + request.continuation)[:end].endswith(text):
            message = "the border of the continuation cannot be found in the server's tokens: give llm.tokenizer=FOLDER"
            raise UsageError(message)
        end -= len(text)
        if end < len(request.context):
            break
        number += 1
        if end == len(request.context):
            break
    return number


def _score(values: list[Any], num_tokens: int) -> Score | None:
    counted = values[len(values) - num_tokens :]
    if not 0 < num_tokens <= len(values) or not all(isinstance(value, int | float) for value in counted):
        return None
    return Score(-float(sum(counted)), num_tokens, context_tokens=len(values) - num_tokens)


def _first_choice(body: Any) -> dict[str, Any]:
    choices = body.get("choices") if isinstance(body, dict) else None
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
