"""Asks a language model about questions; each answer is kept as it comes, beside what it has cost."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from privlm.errors import BudgetExhausted
from privlm.llm.client import LanguageModel
from privlm.llm.types import ANSWERED, Answer, GenerateRequest, Message, Reply, Sampling
from privlm.rows import Keep

from .outbound import Outbound
from .questions import Question


@dataclass(frozen=True)
class Prompt:
    """text: to be continued. about: what is asked. ends: how raw text ends, for a model that is sent no messages.
    sample: tells apart prompts of one text that come with different images.
    """

    text: str
    about: Question
    ends: str = ""
    sample: int = 0


def item_of(prompt: Prompt, asked_as: str = "") -> str:
    """The name of a prompt in a file of answers: another prompt, model or way of decoding has another one."""
    return f"{prompt.about.id}-{hashlib.sha256(f'{asked_as} {prompt.sample} {prompt.text}'.encode()).hexdigest()[:12]}"


class Asking:
    """Asks the open items of a stage's file (see privlm.job.Stage.rows).

    chat: send messages, else raw text. border: what everything passes that leaves for the black box; None for the
    guide, which is in this process. exhausted: whether a budget of the run has ended it.

    A line holds text, status (ok, length, empty, refused, or blocked by the border), prompt_tokens, completion_tokens,
    usd (null: no price is known) and leaks (pieces of the alignment set that the border found).
    """

    def __init__(
        self, model: LanguageModel, name: str, *, max_tokens: int, chat: bool = False, border: Outbound | None = None
    ) -> None:
        self.model = model
        self.name = name
        self.sampling = Sampling(max_tokens)
        self.chat = chat
        self.border = border
        self.exhausted = False

    @property
    def asked_as(self) -> str:
        """Who is asked and how, for the names of items."""
        return f"{self.model.model} {self.sampling.max_tokens} {self.chat}"

    def request(self, prompt: Prompt, text: str | None = None) -> GenerateRequest:
        """text: that of the prompt, or what the border has left of it."""
        text = self.whole(prompt) if text is None else text
        name = f"{self.name} {prompt.about.id}"
        given = (Message("user", text),) if self.chat else text
        return GenerateRequest(given, self.sampling, sample_index=prompt.sample, item=name)

    def whole(self, prompt: Prompt) -> str:
        return prompt.text if self.chat or not prompt.ends else f"{prompt.text}\n{prompt.ends}:"

    def __call__(self, prompts: Mapping[str, Prompt], keep: Keep) -> None:
        """Raises what LanguageModel.generate raises, BudgetExhausted excepted; what was answered is kept."""
        requests: list[GenerateRequest] = []
        asked: list[tuple[str, int]] = []  # item, leaks
        for item, prompt in prompts.items():
            text, leaks = self.whole(prompt), 0
            if self.border is not None:
                reviewed = self.border.review(text, prompt.about)
                if reviewed.text is None:
                    keep(item, _line(Answer("", "ok"), None, reviewed.num_leaks) | {"status": "blocked"})
                    continue
                text, leaks = reviewed.text, reviewed.num_leaks
            requests.append(self.request(prompt, text))
            asked.append((item, leaks))

        def on_reply(place: int, reply: Reply) -> None:
            assert isinstance(reply, Answer)
            item, leaks = asked[place]
            if reply.status in ANSWERED:
                keep(item, _line(reply, self.model.usd(reply), leaks))

        try:
            self.model.generate(requests, on_reply=on_reply)
        except BudgetExhausted:
            self.exhausted = True


def _line(answer: Answer, usd: float | None, leaks: int) -> dict[str, Any]:
    text = answer.text.strip()
    return {
        "text": text,
        "status": answer.status if text or answer.status == "refused" else "empty",
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "usd": usd,
        "leaks": leaks,
    }
