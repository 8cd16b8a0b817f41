"""A model of this run answers prompts. Answers are kept line by line, so that a killed run goes on in the middle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from privlm import rows
from privlm.errors import UsageError
from privlm.llm.local.backend import LocalBackend
from privlm.llm.local.scoring import Encoder
from privlm.llm.types import Answer, GenerateRequest, Sampling
from privlm.models.loaded import Loaded


class KeepsRows(Protocol):
    """What is needed of a privlm.job.Stage."""

    def rows(self, path: str, items: Mapping[str, Any], answer: rows.Answer[Any]) -> list[rows.Row]: ...


@dataclass(frozen=True)
class Asked:
    """prompt: text to continue. where: file and row it is of, for messages."""

    prompt: str
    where: str


class Respondent:
    """A model with its way of decoding. It answers by the weights that it has when it is first asked.

    limited_by: the field that sets sampling.max_tokens, for messages.
    """

    def __init__(self, loaded: Loaded, sampling: Sampling, *, limited_by: str) -> None:
        self.loaded = loaded
        self.sampling = sampling
        self.limited_by = limited_by

    @cached_property
    def _backend(self) -> LocalBackend:
        return LocalBackend.of(self.loaded)

    @property
    def window(self) -> int | None:
        """Tokens of a prompt and its answer at most; None: nothing limits them."""
        config: Any = self.loaded.model.config
        return getattr(config.get_text_config(), "max_position_embeddings", None)

    def require_room(self, asked: Iterable[Asked]) -> None:
        """Raises UsageError, naming file and row, for a prompt that the model cannot read and answer."""
        limit = self.window
        encoder = Encoder(self.loaded.tokenizer, None)
        for one in asked:
            length = len(encoder.begin(one.prompt))
            if limit is not None and length + self.sampling.max_tokens > limit:
                raise UsageError(
                    f"{one.where}: the prompt of field 'instruction' has {length:,} tokens, which with "
                    f"{self.limited_by}={self.sampling.max_tokens} exceed the {limit:,} that the model reads: "
                    f"shorten the question, or lower {self.limited_by}"
                )

    def answers(self, asked: Sequence[Asked]) -> Iterator[tuple[int, Answer]]:
        """(place, answer), each when it is finished. Raises UsageError, naming its row, for what cannot be asked."""
        for place, reply in self._backend.ask([GenerateRequest(one.prompt, self.sampling) for one in asked]):
            assert isinstance(reply, Answer)
            if reply.status == "client_error":
                raise UsageError(f"{asked[place].where}: {reply.detail}")
            yield place, reply

    def keep_answers(self, stage: KeepsRows, path: str, items: Mapping[str, Asked]) -> list[rows.Row]:
        """A line {item, text, status, tokens} of each item, those of earlier tries included."""

        def answer(open_items: Mapping[str, Asked], keep: rows.Keep) -> None:
            names = list(open_items)
            for place, reply in self.answers(list(open_items.values())):
                keep(names[place], {"text": reply.text, "status": reply.status, "tokens": reply.completion_tokens})

        return stage.rows(path, items, answer)
