"""Scores of a given text, as some servers add them to a reply: held against what was sent.

A list of log-probabilities says nothing of which text it belongs to. It is taken only where it can be told: as many as
tokens were sent, each that of the token that was sent, finite and not positive. A server that leaves `echo` out, adds a
token of its own, tokenises otherwise or lists the likeliest token in place of the one that was sent gives no score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from privlm.errors import UsageError
from privlm.llm.endpoint.protocol import first_choice, is_logprob
from privlm.llm.types import Score, ScoreRequest

TOKEN_ID = "token_id:"  # how vLLM writes a token's number in place of its text
BROKEN = ("�", "bytes:")  # a token that is a part of a character has no text of its own


class ScoreFault(ValueError):
    """The reply does not score what was sent; the message says why."""


@dataclass(frozen=True)
class Sent:
    """What was sent to be scored. ids: its tokens, None where it was sent as text. num_tokens: of the continuation."""

    request: ScoreRequest
    ids: Sequence[int] | None
    num_tokens: int | None

    @property
    def text(self) -> str:
        return self.request.context + self.request.continuation


def echoed_score(body: Any, sent: Sent) -> Score:
    """From `echo` and `logprobs` of /completions: log-probabilities of the prompt's tokens, and where each starts.

    Raises ScoreFault.
    """
    logprobs = first_choice(body).get("logprobs")
    values = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
    if not isinstance(logprobs, dict) or not isinstance(values, list):
        raise ScoreFault("the reply holds no scores")
    tokens = _texts(logprobs.get("tokens"), len(values))
    if sent.ids is not None:
        return _of_ids(values, tokens, sent)
    return _of_starts(values, tokens, _starts(logprobs.get("text_offset"), len(values)), sent)


def prompt_logprobs_score(body: Any, sent: Sent) -> Score:
    """From vLLM's `prompt_logprobs`: for each token of the prompt a dictionary of its number -> entry, which may hold
    likelier tokens beside it; None for the first.

    Raises ScoreFault, and UsageError where the tokens' texts do not make up the prompt, so that its border cannot be
    found.
    """
    entries = first_choice(body).get("prompt_logprobs")
    if not isinstance(entries, list) or not all(entry is None or isinstance(entry, dict) for entry in entries):
        raise ScoreFault("the reply holds no scores")
    if sent.ids is None:
        return _score(_by_text(entries, sent.request), len(entries))
    assert sent.num_tokens is not None
    if len(entries) != len(sent.ids):
        raise ScoreFault(f"the server scores {len(entries)} tokens where {len(sent.ids)} were sent")
    counted = range(len(entries) - sent.num_tokens, len(entries))
    found = [(entries[i] or {}).get(str(sent.ids[i])) for i in counted]
    return _score([_logprob(entry) for entry in found], len(entries))


# --- echo -----------------------------------------------------------------------------------------------------------


def _of_ids(values: list[Any], tokens: list[str] | None, sent: Sent) -> Score:
    """The prompt was sent as numbers of tokens: the list is as long, and nothing predicts its first."""
    assert sent.ids is not None
    assert sent.num_tokens is not None
    if len(values) != len(sent.ids):
        raise ScoreFault(f"the server scores {len(values)} tokens where {len(sent.ids)} were sent")
    counted = slice(len(values) - sent.num_tokens, len(values))
    if tokens is not None and all(token.startswith(TOKEN_ID) for token in tokens):
        if [token.removeprefix(TOKEN_ID) for token in tokens] != [str(number) for number in sent.ids]:
            raise ScoreFault("the server scores other tokens than were sent")
    elif values[0] is not None and not (_spell(tokens, sent.text) or _spell(tokens and tokens[1:], sent.text)):
        raise ScoreFault("the server has not echoed what was sent: it scores a first token, which nothing predicts")
    elif tokens is not None and not _spell(tokens[counted], sent.request.continuation):
        raise ScoreFault("the server scores other tokens than were sent")
    return _score(values[counted], len(values))


def _of_starts(values: list[Any], tokens: list[str] | None, starts: list[int], sent: Sent) -> Score:
    """The prompt was sent as text: the continuation are the tokens that start in it; a later one was generated."""
    begin, end = len(sent.request.context), len(sent.text)
    counted = [i for i, start in enumerate(starts) if begin <= start < end]
    if not counted:
        raise ScoreFault("no token of the reply starts in the continuation")
    if values[0] is not None and not _spell(tokens, sent.text, may_go_on=True):
        raise ScoreFault("the server has not echoed what was sent: it scores a first token, which nothing predicts")
    first, last = counted[0], counted[-1] + 1
    if tokens is not None and not _spell(tokens[first:last], sent.text[starts[first] :]):
        raise ScoreFault("the server scores other tokens than were sent")
    return _score(values[first:last], last)


def _texts(tokens: Any, length: int) -> list[str] | None:
    """The tokens of a reply, None where it gives none. Raises ScoreFault where they do not stand beside the scores."""
    if tokens is None:
        return None
    if not isinstance(tokens, list) or len(tokens) != length or not all(isinstance(token, str) for token in tokens):
        raise ScoreFault("the reply has not one token beside each score")
    return tokens


def _starts(starts: Any, length: int) -> list[int]:
    """Character at which each token starts. Raises ScoreFault where the reply does not say so."""
    is_list = isinstance(starts, list) and len(starts) == length
    if not is_list or not all(type(start) is int for start in starts) or starts != sorted(starts):
        raise ScoreFault("the reply does not say where its tokens start")
    return list(starts)


def _spell(tokens: list[str] | None, text: str, *, may_go_on: bool = False) -> bool:
    """Whether the tokens make up the text. Blanks aside: some servers write a token without the one that begins it.

    A token that is a part of a character is not held against the text: only its neighbours are there to be read.
    """
    if tokens is None:
        return False
    if any(mark in token for token in tokens for mark in BROKEN):
        return True
    said, wanted = ("".join("".join(parts).split()) for parts in (tokens, [text]))
    said = said.replace("Ġ", "").replace("▁", "")
    return said.startswith(wanted) if may_go_on else said == wanted


# --- prompt_logprobs ------------------------------------------------------------------------------------------------


def _by_text(entries: list[dict[str, Any] | None], request: ScoreRequest) -> list[Any]:
    """Log-probabilities of the tokens that start in the continuation. The first token has no entry, so texts are laid
    from the end.
    """
    text = request.context + request.continuation
    end, found = len(text), []
    for entry in reversed(entries):
        fitting = {
            candidate["decoded_token"]: candidate
            for candidate in (entry or {}).values()
            if isinstance(candidate, dict)
            and isinstance(candidate.get("decoded_token"), str)
            and candidate["decoded_token"]
            and text[:end].endswith(candidate["decoded_token"])
        }
        if len(fitting) != 1:
            message = "the border of the continuation cannot be found in the server's tokens: give llm.tokenizer=FOLDER"
            raise UsageError(message)
        ((token, candidate),) = fitting.items()
        end -= len(token)
        if end < len(request.context):
            break
        found.append(_logprob(candidate))
        if end == len(request.context):
            break
    return found[::-1]


def _logprob(entry: Any) -> Any:
    return entry.get("logprob") if isinstance(entry, dict) else None


# --- both -----------------------------------------------------------------------------------------------------------


def _score(counted: list[Any], num_sent: int) -> Score:
    """Of the continuation's log-probabilities; num_sent: tokens of the whole prompt."""
    if not counted:
        raise ScoreFault("the server scores no token of the continuation")
    if None in counted:
        raise ScoreFault("the server does not score every token that was sent")
    if not all(is_logprob(value) for value in counted):
        raise ScoreFault("a score of the server is no log-probability: not a number, infinite or above 0")
    total = -sum(min(float(value), 0.0) for value in counted)
    return Score(max(total, 0.0), len(counted), context_tokens=num_sent - len(counted))
