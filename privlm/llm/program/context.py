"""What a program holds: the model for one step at a time, under the budget of its item, every call in its trace.

Context is for programs that are plain functions, AsyncContext for those that are coroutines; the methods are the same.
Each method is written once, as a generator that yields the requests of one batch and is sent their replies.
"""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeVar

from privlm.errors import PrivLMError
from privlm.llm.program import search as searching
from privlm.llm.program.budget import ItemBudgetExhausted, Spending
from privlm.llm.program.parsers import ParseError
from privlm.llm.program.search import SearchResult
from privlm.llm.program.step import Step
from privlm.llm.program.trace import ItemTrace
from privlm.llm.types import ANSWERED, Answer, GenerateRequest, Reply, Request, Score, ScoreRequest

S = TypeVar("S")
T = TypeVar("T")
P = ParamSpec("P")
Work = Generator[list[Request], list[Reply], T]
Variables = Mapping[str, Any]


class Model(Protocol):
    """What a program needs of privlm.llm.client.LanguageModel."""

    def generate(self, requests: Sequence[GenerateRequest], *, failures: str) -> list[Answer]: ...

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]: ...

    def usd(self, reply: Reply) -> float | None: ...


class CallFailed(PrivLMError):
    """A call ended without an answer (timeout, server error ...): the item is left for the next run."""


class MalformedError(PrivLMError):
    """The output of a step could not be read, at the last attempt either."""


ENDINGS = {ItemBudgetExhausted: "budget_exhausted", MalformedError: "malformed", CallFailed: "failed"}


def ending(error: BaseException | None) -> str | None:
    """The status of an item that `error` ends, None for an error that ends the run."""
    return next((status for kind, status in ENDINGS.items() if isinstance(error, kind)), None)


@dataclass(frozen=True)
class StepResult:
    """What a generation gave.

    value: as parsed, None unless status is ok. status: ok, malformed or refused. text: the output as it came.
    error: why it could not be read. logprobs: of the generated tokens, if the step asks for them. finished: the model
    came to an end by itself, not at max_tokens.
    """

    step: str
    value: Any
    status: str
    text: str
    attempts: int
    error: str | None = None
    logprobs: tuple[float, ...] | None = None
    finished: bool = True

    def require(self) -> Any:
        """The value. Raises MalformedError where there is none, which ends the item with that status."""
        if self.status != "ok":
            raise MalformedError(f"step '{self.step}': {self.error or self.status}")
        return self.value


@dataclass(frozen=True)
class Chosen:
    """The most likely option: its text, its place, and the scores of all options in their order."""

    option: str
    index: int
    scores: tuple[Score, ...]


@dataclass(frozen=True)
class Item:
    """What all contexts of one item share."""

    name: str
    spending: Spending
    trace: ItemTrace


class _Operations(ABC):
    """The part of a context that does not care who waits for whom."""

    def __init__(self, item: Item, span: int = 0, *, unbounded: bool = False) -> None:
        self._item = item
        self._span = span
        self._unbounded = unbounded

    @property
    def spending(self) -> Spending:
        return self._item.spending

    def note(self, **values: Any) -> None:
        """Writes numbers, names and lists of them to the span of this context in the trace."""
        self._item.trace.note(self._span, values)

    def vote(self, answers: Iterable[T | None]) -> T | None:
        """The most frequent answer, of equals the one given first; None (no answer) does not vote."""
        counts = Counter(answer for answer in answers if answer is not None)
        return max(counts, key=counts.__getitem__) if counts else None

    @contextlib.contextmanager
    def span(self, name: str, **values: Any) -> Iterator[Self]:
        """A named part of the program: a context of the same kind whose calls hang under it in the trace."""
        trace = self._item.trace
        span = trace.open_span(name, parent=self._span)
        trace.note(span, values)
        status = "failed"
        try:
            yield self._at(span)
            status = "done"
        except PrivLMError as error:
            status = ending(error) or status
            raise
        finally:
            trace.close_span(span, status)

    def beyond_budget(self) -> Self:
        """The same context for the few calls of a forced answer, which the budget of the item does not refuse."""
        return type(self)(self._item, self._span, unbounded=True, **self._means())

    def _at(self, span: int) -> Self:
        return type(self)(self._item, span, unbounded=self._unbounded, **self._means())

    @abstractmethod
    def _means(self) -> dict[str, Any]:
        """What a context of this class is made with, besides its item and span."""

    def _before(self, requests: Sequence[Request]) -> None:
        if not self._unbounded:
            self.spending.require(len(requests))

    def _record(self, step: Step, requests: Sequence[Request], replies: Sequence[Reply], began: float) -> list[int]:
        """Books the calls of one batch; returns their lines in the trace. Raises CallFailed if one has no answer."""
        self.spending.add(replies)
        ms = 1000 * (time.monotonic() - began)
        lines = [
            self._item.trace.call(self._span, step.name, request, reply, ms=ms)
            for request, reply in zip(requests, replies, strict=True)
        ]
        for reply in replies:
            if isinstance(reply, Answer) and reply.status not in ANSWERED:
                raise CallFailed(f"step '{step.name}': {reply.status}" + (f", {reply.detail}" if reply.detail else ""))
        return lines

    def _generate(self, step: Step, many: Sequence[Variables]) -> Work[list[StepResult]]:
        prompts = [step.prompt(variables) for variables in many]
        results: dict[int, StepResult] = {}
        open_ = list(range(len(many)))
        for attempt in range(1, step.reasks + 2):
            began = time.monotonic()
            requests = [step.generate_request(prompts[number], self._item.name) for number in open_]
            replies = yield list(requests)
            lines = self._record(step, requests, replies, began)
            for number, reply, line in zip(open_, replies, lines, strict=True):
                assert isinstance(reply, Answer)
                result = results[number] = _read(step, reply, attempt)
                status = "malformed" if result.status == "malformed" else reply.status
                self._item.trace.parsed(line, result.value, attempt=attempt, status=status)
                if result.error is not None:
                    prompts[number] = step.reask(prompts[number], reply.text, result.error)
            open_ = [number for number in open_ if results[number].status == "malformed"]
            if not open_:
                break
        return [results[number] for number in range(len(many))]

    def _score(self, step: Step, many: Sequence[Variables]) -> Work[list[tuple[Score, ...]]]:
        """The scores of each of `many`: one for a score, one for each option of a choice."""
        families = [step.score_requests(variables) for variables in many]
        requests = [request for family in families for request in family]
        began = time.monotonic()
        replies = yield list(requests)
        self._record(step, requests, replies, began)
        rest = iter(replies)
        return [tuple(next(rest) for _ in family) for family in families]  # type: ignore[misc]

    def _map(self, step: Step, many: Sequence[Variables]) -> Work[list[Any]]:
        if not many:
            return []
        if step.kind == "generate":
            return (yield from self._generate(step, many))
        scores = yield from self._score(step, many)
        if step.kind == "score":
            return [score for (score,) in scores]
        return [_choose(step, family) for family in scores]


def _read(step: Step, reply: Answer, attempt: int) -> StepResult:
    finished = reply.status != "length"
    result = StepResult(step.name, None, "malformed", reply.text, attempt, logprobs=reply.logprobs, finished=finished)
    if reply.status == "refused":
        return replace(result, status="refused")
    try:
        value = step.parse(reply.text)
    except ParseError as error:
        return replace(result, error=str(error))
    problem = step.validate(value) if step.validate is not None else None
    return replace(result, error=problem) if problem else replace(result, value=value, status="ok")


def _choose(step: Step, scores: tuple[Score, ...]) -> Chosen:
    values = [getattr(score, step.by) for score in scores]
    index = values.index(min(values))
    return Chosen(step.options[index], index, scores)


def _plain_score(context: str, continuation: str) -> tuple[Step, dict[str, Any]]:
    variables = {"context": context, "continuation": continuation}
    return Step("score", "{{ context }}", tuple(variables), continuation="{{ continuation }}"), variables


def _plain_choice(context: str, options: Sequence[str]) -> tuple[Step, dict[str, Any]]:
    return Step("choose", "{{ context }}", ("context",), options=tuple(options)), {"context": context}


class Context(_Operations):
    """What a program that is a plain function is given first.

    Every call raises UsageError for an undeclared variable, ItemBudgetExhausted instead of exceeding the budget of the
    item, and what the language model raises (BudgetExhausted of the run, ServiceError, Interrupted).
    """

    def __init__(
        self, item: Item, span: int = 0, *, ask: Callable[[list[Request]], list[Reply]], unbounded: bool = False
    ) -> None:
        super().__init__(item, span, unbounded=unbounded)
        self._ask = ask

    def generate(self, step: Step, /, **variables: Any) -> StepResult:
        """One generation, read by the step's parser, asked again as often as the step allows."""
        return self._drive(self._generate(step, [variables]))[0]

    def score(self, step: Step | str, continuation: str | None = None, /, **variables: Any) -> Score:
        """The likelihood of a step's continuation; score(context, continuation) takes plain texts."""
        if isinstance(step, str):
            step, variables = _plain_score(step, continuation or "")
        return self._drive(self._map(step, [variables]))[0]

    def choose(self, step: Step | str, options: Sequence[str] = (), /, **variables: Any) -> Chosen:
        """The most likely of a step's options, of equals the first; choose(context, options) takes plain texts."""
        if isinstance(step, str):
            step, variables = _plain_choice(step, options)
        return self._drive(self._map(step, [variables]))[0]

    def map(self, step: Step, items: Sequence[Variables]) -> list[Any]:
        """The step for each of `items` (its variables), asked in one batch: StepResult, Score or Chosen by its kind."""
        return self._drive(self._map(step, items))

    def run(self, program: Callable[Concatenate[Context, P], T], *arguments: P.args, **keywords: P.kwargs) -> T:
        """A program within this one: it spends the same budget and its trace hangs under this span."""
        with self.span(program.__name__) as inner:
            return program(inner, *arguments, **keywords)

    def search(
        self,
        start: Sequence[S],
        *,
        expand: Callable[[Context, list[S]], list[list[S]]],
        rank: Callable[[S], float],
        is_complete: Callable[[S], bool],
        enough: Callable[[Sequence[S]], bool],
        beam: int | None = None,
        max_expansions: int | None = None,
    ) -> SearchResult[S]:
        """Expands states, the lowest rank first, until `enough` are complete, or frontier or budget are spent.

        expand: states -> the children of each; it makes its calls by ctx.map, in one batch. beam: None is best-first
        over all states; k keeps the k best of each level. Ties go by insertion.
        """
        steps = searching.search(
            start, rank=rank, is_complete=is_complete, enough=enough, beam=beam, max_expansions=max_expansions
        )
        with self.span("search") as inner:
            going, out = _advance(steps, None)
            while going:
                families = None
                with (
                    contextlib.suppress(ItemBudgetExhausted),
                    inner.span("expand", ranks=[rank(state) for state in out]) as here,
                ):
                    families = expand(here, out)
                going, out = _advance(steps, families)
        return out

    def _drive(self, work: Work[T]) -> T:
        going, out = _advance(work, None)
        while going:
            self._before(out)
            going, out = _advance(work, self._ask(out))
        return out

    def _means(self) -> dict[str, Any]:
        return {"ask": self._ask}


class AsyncContext(_Operations):
    """What a program that is a coroutine function is given first: a Context whose calls are awaited.

    What several coroutines ask at the same time (of one program by asyncio.gather, or of several items) goes to the
    model in one batch.
    """

    def __init__(
        self,
        item: Item,
        span: int = 0,
        *,
        ask: Callable[[list[Request]], Awaitable[list[Reply]]],
        unbounded: bool = False,
    ) -> None:
        super().__init__(item, span, unbounded=unbounded)
        self._ask = ask

    async def generate(self, step: Step, /, **variables: Any) -> StepResult:
        return (await self._drive(self._generate(step, [variables])))[0]

    async def score(self, step: Step | str, continuation: str | None = None, /, **variables: Any) -> Score:
        if isinstance(step, str):
            step, variables = _plain_score(step, continuation or "")
        return (await self._drive(self._map(step, [variables])))[0]

    async def choose(self, step: Step | str, options: Sequence[str] = (), /, **variables: Any) -> Chosen:
        if isinstance(step, str):
            step, variables = _plain_choice(step, options)
        return (await self._drive(self._map(step, [variables])))[0]

    async def map(self, step: Step, items: Sequence[Variables]) -> list[Any]:
        return await self._drive(self._map(step, items))

    async def run(
        self,
        program: Callable[Concatenate[AsyncContext, P], Coroutine[Any, Any, T]],
        *arguments: P.args,
        **keywords: P.kwargs,
    ) -> T:
        with self.span(program.__name__) as inner:
            return await program(inner, *arguments, **keywords)

    async def search(
        self,
        start: Sequence[S],
        *,
        expand: Callable[[AsyncContext, list[S]], Awaitable[list[list[S]]]],
        rank: Callable[[S], float],
        is_complete: Callable[[S], bool],
        enough: Callable[[Sequence[S]], bool],
        beam: int | None = None,
        max_expansions: int | None = None,
    ) -> SearchResult[S]:
        steps = searching.search(
            start, rank=rank, is_complete=is_complete, enough=enough, beam=beam, max_expansions=max_expansions
        )
        with self.span("search") as inner:
            going, out = _advance(steps, None)
            while going:
                families = None
                with (
                    contextlib.suppress(ItemBudgetExhausted),
                    inner.span("expand", ranks=[rank(state) for state in out]) as here,
                ):
                    families = await expand(here, out)
                going, out = _advance(steps, families)
        return out

    async def _drive(self, work: Work[T]) -> T:
        going, out = _advance(work, None)
        while going:
            self._before(out)
            going, out = _advance(work, await self._ask(out))
        return out

    def _means(self) -> dict[str, Any]:
        return {"ask": self._ask}


def _advance(generator: Generator[Any, Any, Any], value: Any) -> tuple[bool, Any]:
    """Sends `value` into a generator: (True, what it yields) or (False, what it returns)."""
    try:
        return True, generator.send(value)
    except StopIteration as stop:
        return False, stop.value
