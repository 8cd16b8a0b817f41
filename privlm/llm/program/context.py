"""What a program holds: the model for one step at a time, under the budget of its item, every call in its trace.

AsyncContext is for programs that are coroutines, Context for those that are plain functions: the same methods, each
done when it returns.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, Unpack

from privlm.errors import PrivLMError
from privlm.llm.program.budget import ItemBudgetExhausted, Spending
from privlm.llm.program.outcomes import CallFailed, Chosen, StepResult, ending
from privlm.llm.program.parsers import ParseError
from privlm.llm.program.search import Rules, SearchResult, search
from privlm.llm.program.step import Step
from privlm.llm.program.trace import ItemTrace
from privlm.llm.types import ANSWERED, Answer, GenerateRequest, Reply, Request, Score, ScoreRequest, likeliest

S = TypeVar("S")
T = TypeVar("T")
P = ParamSpec("P")
Variables = Mapping[str, Any]
Ask = Callable[[list[Request]], Awaitable[list[Reply]]]


class Model(Protocol):
    """What a program needs of privlm.llm.client.LanguageModel."""

    def generate(self, requests: Sequence[GenerateRequest], *, failures: str) -> list[Answer]: ...

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]: ...

    def usd(self, reply: Reply) -> float | None: ...


@dataclass(frozen=True)
class Item:
    """What all contexts of one item share."""

    name: str
    spending: Spending
    trace: ItemTrace


class AsyncContext:
    """What a program that is a coroutine function is given first.

    What several coroutines ask at the same time (of one program by asyncio.gather, or of several items) goes to the
    model in one batch.

    Every call raises UsageError for an undeclared variable, ItemBudgetExhausted instead of exceeding the budget of the
    item, CallFailed for a call without an answer, and what the language model raises (BudgetExhausted of the run,
    ServiceError, Interrupted).
    """

    def __init__(self, item: Item, span: int = 0, *, ask: Ask, unbounded: bool = False) -> None:
        self._item = item
        self._span = span
        self._ask = ask
        self._unbounded = unbounded

    @property
    def spending(self) -> Spending:
        return self._item.spending

    async def generate(self, step: Step, /, **variables: Any) -> StepResult:
        """One generation, read by the step's parser, asked again as often as the step allows."""
        return (await self._generate(step, [variables]))[0]

    async def score(self, step: Step | str, continuation: str | None = None, /, **variables: Any) -> Score:
        """The likelihood of a step's continuation; score(context, continuation) takes plain texts."""
        if isinstance(step, str):
            step, variables = _plain_score(step, continuation or "")
        ((score,),) = await self._score(step, [variables])
        return score

    async def choose(self, step: Step | str, options: Sequence[str] = (), /, **variables: Any) -> Chosen:
        """The most likely of a step's options, of equals the first; choose(context, options) takes plain texts."""
        if isinstance(step, str):
            step, variables = _plain_choice(step, options)
        (scores,) = await self._score(step, [variables])
        return _choose(step, scores)

    async def map(self, step: Step, items: Sequence[Variables]) -> list[Any]:
        """The step for each of `items` (its variables), asked in one batch: StepResult, Score or Chosen by its kind."""
        if not items:
            return []
        if step.kind == "generate":
            return await self._generate(step, items)
        families = await self._score(step, items)
        return [score for (score,) in families] if step.kind == "score" else [_choose(step, each) for each in families]

    async def run(
        self,
        program: Callable[Concatenate[AsyncContext, P], Coroutine[Any, Any, T]],
        *arguments: P.args,
        **keywords: P.kwargs,
    ) -> T:
        """A program within this one: it spends the same budget and its trace hangs under this span."""
        with self.span(program.__name__) as inner:
            return await program(inner, *arguments, **keywords)

    async def search(
        self,
        start: Sequence[S],
        *,
        expand: Callable[[AsyncContext, list[S]], Awaitable[list[list[S]]]],
        **rules: Unpack[Rules[S]],
    ) -> SearchResult[S]:
        """Expands states by the rules of privlm.llm.program.search until these or the budget of the item end it.

        expand: states -> the children of each; it makes its calls by ctx.map, in one batch.
        """

        async def children(states: list[S]) -> list[list[S]] | None:
            ranks = [rules["rank"](state) for state in states]
            with contextlib.suppress(ItemBudgetExhausted), inner.span("expand", ranks=ranks) as here:
                return await expand(here, states)
            return None

        with self.span("search") as inner:
            return await search(start, children, **rules)

    def note(self, **values: Any) -> None:
        """Writes numbers, names and lists of them to the span of this context in the trace."""
        self._item.trace.note(self._span, values)

    def vote(self, answers: Iterable[T | None]) -> T | None:
        """The most frequent answer, of equals the one given first; None (no answer) does not vote."""
        counts = Counter(answer for answer in answers if answer is not None)
        return max(counts, key=counts.__getitem__) if counts else None

    @contextlib.contextmanager
    def span(self, name: str, **values: Any) -> Iterator[AsyncContext]:
        """A named part of the program: a context whose calls hang under it in the trace."""
        trace = self._item.trace
        span = trace.open_span(name, parent=self._span)
        trace.note(span, values)
        status = "failed"
        try:
            yield AsyncContext(self._item, span, ask=self._ask, unbounded=self._unbounded)
            status = "done"
        except PrivLMError as error:
            status = ending(error) or status
            raise
        finally:
            trace.close_span(span, status)

    def beyond_budget(self) -> AsyncContext:
        """The same context for the few calls of a forced answer, which the budget of the item does not refuse."""
        return AsyncContext(self._item, self._span, ask=self._ask, unbounded=True)

    async def _generate(self, step: Step, many: Sequence[Variables]) -> list[StepResult]:
        prompts = [step.prompt(variables) for variables in many]
        results: dict[int, StepResult] = {}
        open_ = list(range(len(many)))
        for attempt in range(1, step.reasks + 2):
            requests = [step.generate_request(prompts[number], self._item.name) for number in open_]
            replies, lines = await self._replies(step, requests)
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

    async def _score(self, step: Step, many: Sequence[Variables]) -> list[tuple[Score, ...]]:
        """The scores of each of `many`: one for a score, one for each option of a choice."""
        families = [step.score_requests(variables) for variables in many]
        replies, _ = await self._replies(step, [request for family in families for request in family])
        rest = iter(replies)
        return [tuple(next(rest) for _ in family) for family in families]  # type: ignore[misc]

    async def _replies(self, step: Step, requests: Sequence[Request]) -> tuple[list[Reply], list[int]]:
        """The replies of one batch and their lines in the trace. Raises CallFailed if one has no answer."""
        if not self._unbounded:
            self.spending.require(len(requests))
        began = time.monotonic()
        replies = await self._ask(list(requests))
        self.spending.add(replies)
        ms = 1000 * (time.monotonic() - began)
        lines = [
            self._item.trace.call(self._span, step.name, request, reply, ms=ms)
            for request, reply in zip(requests, replies, strict=True)
        ]
        for reply in replies:
            if isinstance(reply, Answer) and reply.status not in ANSWERED:
                raise CallFailed(f"step '{step.name}': {reply.status}" + (f", {reply.detail}" if reply.detail else ""))
        return replies, lines


class Context:
    """What a program that is a plain function is given first: an AsyncContext, which says what each method does, with
    calls that are done when they return.
    """

    def __init__(self, inner: AsyncContext) -> None:
        """inner: its `ask` waits for nobody."""
        self._inner = inner

    @property
    def spending(self) -> Spending:
        return self._inner.spending

    def generate(self, step: Step, /, **variables: Any) -> StepResult:
        return _done(self._inner.generate(step, **variables))

    def score(self, step: Step | str, continuation: str | None = None, /, **variables: Any) -> Score:
        return _done(self._inner.score(step, continuation, **variables))

    def choose(self, step: Step | str, options: Sequence[str] = (), /, **variables: Any) -> Chosen:
        return _done(self._inner.choose(step, options, **variables))

    def map(self, step: Step, items: Sequence[Variables]) -> list[Any]:
        return _done(self._inner.map(step, items))

    def run(self, program: Callable[Concatenate[Context, P], T], *arguments: P.args, **keywords: P.kwargs) -> T:
        with self.span(program.__name__) as inner:
            return program(inner, *arguments, **keywords)

    def search(
        self, start: Sequence[S], *, expand: Callable[[Context, list[S]], list[list[S]]], **rules: Unpack[Rules[S]]
    ) -> SearchResult[S]:
        async def children(here: AsyncContext, states: list[S]) -> list[list[S]]:
            return expand(Context(here), states)

        return _done(self._inner.search(start, expand=children, **rules))

    def note(self, **values: Any) -> None:
        self._inner.note(**values)

    def vote(self, answers: Iterable[T | None]) -> T | None:
        return self._inner.vote(answers)

    @contextlib.contextmanager
    def span(self, name: str, **values: Any) -> Iterator[Context]:
        with self._inner.span(name, **values) as inner:
            yield Context(inner)

    def beyond_budget(self) -> Context:
        return Context(self._inner.beyond_budget())


def _done(work: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that waits for nobody."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError(f"{work} waits for somebody")


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
    index = likeliest(scores, step.by)
    return Chosen(step.options[index], index, scores)


def _plain_score(context: str, continuation: str) -> tuple[Step, dict[str, Any]]:
    variables = {"context": context, "continuation": continuation}
    return Step("score", "{{ context }}", tuple(variables), continuation="{{ continuation }}"), variables


def _plain_choice(context: str, options: Sequence[str]) -> tuple[Step, dict[str, Any]]:
    return Step("choose", "{{ context }}", ("context",), options=tuple(options)), {"context": context}
