"""Token counts without the model: by its tokenizer's file where one is named, else by the length of the text."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from privlm import files
from privlm.errors import UsageError
from privlm.llm.types import Request, ScoreRequest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHARACTERS_PER_TOKEN = 4.0  # of English text
TOKENIZER_FILE = "tokenizer.json"


class TokenCounter:
    """Counts for a server's model.

    folder: holds tokenizer.json, as saved by transformers; None: there are only estimates. May be used by threads.
    """

    def __init__(self, folder: str | None) -> None:
        self._folder = None if folder is None else Path(folder).expanduser()

    def count(self, request: Request) -> int | None:
        """Tokens of the texts of a request; what a chat template adds is not counted. None without a tokenizer."""
        if self._folder is None:
            return None
        return sum(len(self._tokenizer.encode(text, add_special_tokens=False).ids) for text in texts_of(request))

    def estimate(self, request: Request) -> int:
        counted = self.count(request)
        return counted if counted is not None else estimated_tokens(request)

    def estimate_text(self, text: str) -> int:
        if self._folder is None:
            return round(len(text) / CHARACTERS_PER_TOKEN)
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def score_ids(self, request: ScoreRequest) -> list[int]:
        """Context and continuation tokenised apart and concatenated; special tokens once, before the context."""
        return self._context_ids(request.context) + self._continuation_ids(request.continuation)

    def num_continuation_tokens(self, request: ScoreRequest) -> int:
        return len(self._continuation_ids(request.continuation))

    def _context_ids(self, context: str) -> list[int]:
        if self._folder is None:
            raise UsageError(
                "border=separate on a server needs llm.tokenizer, a folder with the model's tokenizer.json; or score "
                "with border=offsets"
            )
        encoding = self._tokenizer.encode(context)
        end = len(encoding.ids)
        while end and encoding.special_tokens_mask[end - 1] and (context or end > 1):
            end -= 1  # an end-of-text token, which would come before the continuation
        return encoding.ids[:end]

    def _continuation_ids(self, continuation: str) -> list[int]:
        return self._tokenizer.encode(continuation, add_special_tokens=False).ids

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        from tokenizers import Tokenizer

        assert self._folder is not None
        return Tokenizer.from_file(str(tokenizer_file(self._folder)))


def tokenizer_file(folder: Path) -> Path:
    """Raises UsageError when the folder holds no tokenizer."""
    path = folder.expanduser() / TOKENIZER_FILE
    if not path.is_file():
        raise UsageError(f"llm.tokenizer: {folder} holds no {TOKENIZER_FILE}")
    return path


def fingerprint(folder: str) -> str:
    return files.sha256_file(tokenizer_file(Path(folder)))


def estimated_tokens(request: Request) -> int:
    """By the length of the text, for a model whose tokenizer is not at hand."""
    return round(sum(map(len, texts_of(request))) / CHARACTERS_PER_TOKEN) + 1


def texts_of(request: Request) -> list[str]:
    """The texts that a request puts in."""
    if isinstance(request, ScoreRequest):
        return [request.context, request.continuation]
    return [request.prompt] if isinstance(request.prompt, str) else [turn.content for turn in request.prompt]
