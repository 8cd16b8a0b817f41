"""Asks a language model the questions of a suite; what the call record knows already costs nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from privlm.errors import BudgetExhausted, ServiceError
from privlm.llm.client import LanguageModel
from privlm.llm.program import ItemResult, Trace, run_programs
from privlm.llm.replay import ReplayBackend
from privlm.llm.types import Answer, GenerateRequest, Message, Sampling
from privlm.llm.types import Reply as ModelReply

from .agent import causal_agent
from .items import Item, Question
from .suite import Reply, Suite

PAIRS_AT_ONCE = 32  # of the agent: what they ask at one time goes to the model in one batch


@dataclass(frozen=True)
class Manner:
    """chat: send messages, system message first; else the prompt as raw text. swap: ask with swapped options too."""

    chat: bool
    num_samples: int
    swap: bool
    seed: int


@dataclass
class Asked:
    """Answers so far. wanted: how many by item, in both orders of its options. exhausted: a budget ended the asking.
    swaps_recorded: False where recorded answers have none to swapped options.
    """

    wanted: Counter[str]
    replies: list[Reply] = field(default_factory=list)
    swapped: list[Reply] = field(default_factory=list)
    exhausted: BudgetExhausted | None = None
    swaps_recorded: bool = True

    @property
    def num_done(self) -> int:
        """Items with all their answers."""
        answered = Counter(reply.item.id for reply in (*self.replies, *self.swapped))
        return sum(answered[item] == number for item, number in self.wanted.items())


@dataclass(frozen=True)
class _Call:
    """A question on its way: swapped tells the two orders of the options apart."""

    item: Item
    question: Question
    sample: int
    swapped: bool


class Interview:
    """One suite and one model. num_calls: how many answers are wanted, cached ones included."""

    def __init__(self, suite: Suite, model: LanguageModel, manner: Manner) -> None:
        self.suite = suite
        self.model = model
        self.manner = manner
        self._swaps_recorded = True
        self._calls = self._plan()
        self.asked = Asked(_wanted(self._calls), swaps_recorded=self._swaps_recorded)
        self.num_calls = sum(2 if call.item.follow_up else 1 for call in self._calls)
        self._num_done = 0

    def run(self, tick: Callable[[int], None]) -> Asked:
        """Asks everything; of an exhausted budget it returns what has been answered.

        tick: told how many answers there are. Raises what LanguageModel.generate raises, BudgetExhausted excepted.
        """
        try:
            first = self._ask(self._calls, tick, keep=False)
            self._ask([_follow_up(call, first[call]) for call in self._calls if call.item.follow_up], tick, keep=True)
        except BudgetExhausted as error:
            self.asked.exhausted = error
        return self.asked

    def _plan(self) -> list[_Call]:
        """Item by item, so that a budget leaves whole items."""
        calls = []
        swapped_recorded = []
        for item in self.suite.items:
            orders = [(self._wording(item), False)]
            if self.manner.swap and item.swapped is not None:
                swapped_recorded.append(self._is_answerable(item.swapped))
                orders += [(item.swapped, True)] if swapped_recorded[-1] else []
            for question, swapped in orders:
                calls += [_Call(item, question, sample, swapped) for sample in range(self.manner.num_samples)]
        self._swaps_recorded = any(swapped_recorded) or not swapped_recorded
        return calls

    def _wording(self, item: Item) -> Question:
        """The item's question; of recorded answers, the first of its wordings that was asked."""
        return next(
            (question for question in (item.question, *item.earlier) if self._is_answerable(question)), item.question
        )

    def _is_answerable(self, question: Question) -> bool:
        backend = self.model.backend
        return not isinstance(backend, ReplayBackend) or backend.holds(self._request(question, 0, ""))

    def _request(self, question: Question, sample: int, name: str) -> GenerateRequest:
        prompt: str | tuple[Message, ...] = question.prompt
        if self.manner.chat:
            system = [Message("system", self.suite.system)] if self.suite.system else []
            prompt = (*system, Message("user", question.prompt))
        temperature = self.suite.temperature
        sampling = Sampling(self.suite.max_tokens, temperature, seed=self.manner.seed if temperature > 0 else None)
        return GenerateRequest(prompt, sampling, sample_index=sample, item=name)

    def _ask(self, calls: Sequence[_Call], tick: Callable[[int], None], *, keep: bool) -> dict[_Call, str]:
        """Texts by call. Answers to questions without a follow-up are kept as they come."""
        texts: dict[_Call, str] = {}

        def on_reply(place: int, answer: ModelReply) -> None:
            assert isinstance(answer, Answer)
            call = calls[place]
            texts[call] = answer.text
            if keep or call.item.follow_up is None:
                kept = self.asked.swapped if call.swapped else self.asked.replies
                kept.append(
                    Reply(call.item, call.question, call.sample, answer.text, answer.status, answer.finish_reason)
                )
            self._num_done += 1
            tick(self._num_done)

        self.model.generate(
            [self._request(call.question, call.sample, _name(self.suite, call)) for call in calls], on_reply=on_reply
        )
        _sort(self.suite, self.asked)
        return texts


def _wanted(calls: Iterable[_Call]) -> Counter[str]:
    return Counter(call.item.id for call in calls)


def _follow_up(call: _Call, text: str) -> _Call:
    assert call.item.follow_up is not None
    return _Call(call.item, call.item.follow_up(text), call.sample, call.swapped)


def _name(suite: Suite, call: _Call) -> str:
    return f"{suite.name} {call.item.id}{' swapped' if call.swapped else ''}"


def consult(suite: Suite, model: LanguageModel, trace: Trace, *, swap: bool, tick: Callable[[int], None]) -> Asked:
    """Lets the causal agent judge the pairs of the suite; a judgement that cannot be read stays an unread answer.

    Raises ServiceError, after all others are judged, when pairs got no answer.
    """
    calls = {
        f"{item.id}{' swapped' if swapped else ''}": _Call(item, question, 0, swapped)
        for item in suite.items
        for swapped in ((False, True) if swap else (False,))
        for question in [item.swapped if swapped else item.question]
        if question is not None
    }
    asked = Asked(_wanted(calls.values()))
    failed: list[str] = []
    done = 0

    def on_done(name: str, result: ItemResult) -> None:
        nonlocal done
        call = calls[name]
        if result.status == "failed":
            failed.append(f"{name}: {result.error}")
        else:
            text = f"<Answer>{result.value}</Answer>" if result.value else ""
            kept = asked.swapped if call.swapped else asked.replies
            kept.append(Reply(call.item, call.question, 0, text, "ok"))
        done += 1
        tick(done)

    variables = {name: call.item.variables[:: -1 if call.swapped else 1] for name, call in calls.items()}
    try:
        run_programs(causal_agent, variables, model, on_done=on_done, trace=trace, width=PAIRS_AT_ONCE)
    except BudgetExhausted as error:
        asked.exhausted = error
    if failed:
        raise ServiceError(
            f"{suite.name}: {len(failed)} pairs got no answer ({failed[0]}); what was answered is kept, the same "
            "command asks the rest again"
        )
    _sort(suite, asked)
    return asked


def _sort(suite: Suite, asked: Asked) -> None:
    order = {item.id: number for number, item in enumerate(suite.items)}
    for replies in (asked.replies, asked.swapped):
        replies.sort(key=lambda reply: (order[reply.item.id], reply.sample))
