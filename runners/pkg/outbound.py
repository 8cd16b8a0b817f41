"""What leaves this process for the black box: looked at before it is sent, and written down as it is sent.

In private mode no text of the alignment set may leave: neither a whole one nor 13 words of one in a row, unless the
question itself has them. Every request passes `review` first, and the backend refuses what has not.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privlm import files
from privlm.data.contamination import GRAM, grams, placed_words, words_of
from privlm.errors import PrivLMError
from privlm.llm.tokens import texts_of
from privlm.llm.types import Backend, GenerateRequest, Norm, Pooling, Reply, Request

from .questions import Question

if TYPE_CHECKING:
    from torch import Tensor

FILE = "outbound.jsonl"
SHORTEST = 5  # words: a whole text of fewer is a phrase that anybody writes
REDACTED = "[redacted]"


class Corpus:
    """The texts that must not leave, as runs of words: 13 of a long one, all of a shorter one."""

    def __init__(self, rows: Iterable[Question]) -> None:
        self._runs: dict[int, set[str]] = {}
        for text in (text for row in rows for text in (row.question, row.context, row.background)):
            words = words_of(text)
            if len(words) >= SHORTEST:
                length = min(len(words), GRAM)
                self._runs.setdefault(length, set()).update(grams(words, length))

    def found_in(self, text: str, allowed: str) -> list[tuple[int, int]]:
        """Where a text holds some of the corpus, as places of its characters, begin and end; neighbours are one.

        allowed: a text whose own words may leave.
        """
        words = placed_words(text)
        of_allowed = words_of(allowed)
        spans: list[tuple[int, int]] = []
        for length, runs in self._runs.items():
            free = grams(of_allowed, length)
            for first in range(len(words) - length + 1):
                run = " ".join(word for word, _, _ in words[first : first + length])
                if run in runs and run not in free:
                    spans.append((words[first][1], words[first + length - 1][2]))
        return _joined(spans)


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(spans):
        if joined and begin <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((begin, end))
    return joined


@dataclass(frozen=True)
class Reviewed:
    """text: what may be sent; None: nothing. num_leaks: pieces of the corpus that were in it."""

    text: str | None
    num_leaks: int = 0


class Outbound:
    """The border of a run.

    corpus: what must not leave, None without private mode. on_leak: block, redact or warn. file: where every request
    is written before it is sent, None for nowhere. run: for the lines of that file.
    """

    def __init__(self, corpus: Corpus | None, on_leak: str, file: Path | None, run: str) -> None:
        self._corpus = corpus
        self._on_leak = on_leak
        self._file = file
        self._run = run
        self._passed: set[str] = set()
        self._lock = threading.Lock()
        if file is not None and file.exists():
            files.cut_torn_line(file)  # a kill may have left half of one

    def review(self, text: str, question: Question) -> Reviewed:
        """What may be sent of a prompt about a question."""
        reviewed = self._look_at(text, question)
        if reviewed.text is not None:
            self._passed.add(_digest(reviewed.text))
        return reviewed

    def _look_at(self, text: str, question: Question) -> Reviewed:
        spans = self._corpus.found_in(text, question.asked) if self._corpus is not None else []
        if not spans or self._on_leak == "warn":
            return Reviewed(text, len(spans))
        if self._on_leak == "block":
            return Reviewed(None, len(spans))
        kept, end = [], 0
        for begin, after in spans:
            kept += [text[end:begin], REDACTED]
            end = after
        return Reviewed("".join([*kept, text[end:]]), len(spans))

    def around(self, backend: Backend) -> Backend:
        """The same backend behind this border."""
        return _Bordered(backend, self)

    def sends(self, requests: Sequence[Request]) -> None:
        """Told of requests before they are sent. Raises PrivLMError for one that was not reviewed."""
        for request in requests:
            if not isinstance(request, GenerateRequest) or not all(
                _digest(text) in self._passed for text in texts_of(request)
            ):
                raise PrivLMError("a request for the black box has not passed the border of private mode: not sent")
        if self._file is not None:
            with self._lock:
                files.append_durably(self._file, [self._line(request) for request in requests])

    def _line(self, request: Request) -> dict[str, Any]:
        return {"run": self._run, "item": getattr(request, "item", None), "request": asdict(request)}


class _Bordered:
    """See privlm.llm.types.Backend."""

    def __init__(self, backend: Backend, border: Outbound) -> None:
        self._backend = backend
        self._border = border
        self.name, self.model = backend.name, backend.model
        self.capabilities, self.parallel = backend.capabilities, backend.parallel

    @property
    def window(self) -> int | None:
        return getattr(self._backend, "window", None)

    def check_ready(self) -> None:
        self._backend.check_ready()

    def count_tokens(self, request: Request) -> int | None:
        return self._backend.count_tokens(request)

    def ask(self, requests: Sequence[Request]) -> Iterable[tuple[int, Reply]]:
        self._border.sends(requests)
        return self._backend.ask(requests)

    def hidden_states(
        self, texts: Sequence[str], layer: int, pooling: Pooling = "mean", norm: Norm = "raw"
    ) -> Tensor | list[Tensor]:
        raise PrivLMError("hidden states of texts are asked of the black box past the border of private mode: not sent")

    def close(self) -> None:
        self._backend.close()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
