"""Runs a program over items. Whatever ends the run, the items that have finished have been handed on."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from privlm.llm.program.budget import UNLIMITED, Spending
from privlm.llm.program.context import AsyncContext, Context, Item, Model
from privlm.llm.program.outcomes import ending
from privlm.llm.program.trace import Trace
from privlm.llm.schema import LLMBudget
from privlm.llm.types import GenerateRequest, Reply, Request, ScoreRequest

Program = Callable[..., Any]
"""A function, or a coroutine function, of a context and the arguments of an item."""


@dataclass(frozen=True)
class ItemResult:
    """What a program made of an item.

    value: what it returned, None where it ended early. status: done; budget_exhausted (its own budget; value may be a
    forced answer); malformed (an output could not be read); failed (a call got no answer: ask again).
    """

    value: Any
    status: str
    calls: int
    tokens: int
    cached: int
    seconds: float
    error: str | None = None


OnDone = Callable[[str, ItemResult], None]


def run_program(
    program: Program, *arguments: Any, model: Model, item: str = "item", trace: Trace | None = None,
    budget: LLMBudget = UNLIMITED,
) -> ItemResult:  # fmt: skip
    """One program on one item."""
    results: dict[str, ItemResult] = {}
    run_programs(program, {item: arguments}, model, on_done=results.__setitem__, trace=trace, budget=budget)
    return results[item]


def run_programs(
    program: Program,
    items: Mapping[str, Sequence[Any]],
    model: Model,
    *,
    on_done: OnDone,
    trace: Trace | None = None,
    budget: LLMBudget = UNLIMITED,
    width: int = 1,
    tick: Callable[[int], None] = lambda done: None,
) -> None:
    """Runs `program` on each of `items` (name -> arguments); `on_done` is told of each as it ends.

    width: items of a coroutine program that are at work together; what they ask at one time is one batch.
    tick: told how many have ended, once of those that end together.
    Raises what the language model raises to end the run: BudgetExhausted, ServiceError, Interrupted.
    """
    trace = trace or Trace()
    if inspect.iscoroutinefunction(program):
        asyncio.run(_run_together(program, items, model, on_done, trace, budget, width, tick))
        return

    async def at_once(requests: list[Request]) -> list[Reply]:
        return _ask(model, requests)

    for number, (name, arguments) in enumerate(items.items(), start=1):
        with _Running(name, program, model, trace, budget) as running:
            running.value = program(Context(AsyncContext(running.item, ask=at_once)), *arguments)
        on_done(name, running.result)
        tick(number)


async def _run_together(
    program: Program, items: Mapping[str, Sequence[Any]], model: Model, on_done: OnDone, trace: Trace,
    budget: LLMBudget, width: int, tick: Callable[[int], None],
) -> None:  # fmt: skip
    gathering = _Gathering(model)
    done = shown = 0
    waiting: Iterator[tuple[str, Sequence[Any]]] = iter(items.items())

    def show() -> None:
        """Runs when all items that the last batch has ended are counted."""
        nonlocal shown
        if shown < done:
            shown = done
            tick(done)

    async def work() -> None:
        nonlocal done
        for name, arguments in waiting:
            with _Running(name, program, model, trace, budget) as running:
                running.value = await program(AsyncContext(running.item, ask=gathering.ask), *arguments)
            on_done(name, running.result)
            done += 1
            asyncio.get_running_loop().call_soon(show)

    workers = [asyncio.ensure_future(work()) for _ in range(min(width, len(items)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


class _Running:
    """One item at work: what ends it early becomes its status, what ends the run passes through."""

    def __init__(self, name: str, program: Program, model: Model, trace: Trace, budget: LLMBudget) -> None:
        self.item = Item(name, Spending(budget, model.usd), trace.item(name, program.__name__))
        self.value: Any = None
        self._status = "done"
        self._error: str | None = None

    def __enter__(self) -> _Running:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> bool:
        early = ending(error)
        if early is not None:
            self._status, self._error = early, str(error)
        elif self.item.spending.exhausted:
            self._status = "budget_exhausted"
        self.item.trace.close("failed" if error is not None and early is None else self._status)
        return early is not None

    @property
    def result(self) -> ItemResult:
        spent = self.item.spending
        return ItemResult(self.value, self._status, spent.calls, spent.tokens, spent.cached, spent.seconds, self._error)


class _Gathering:
    """Gathers what coroutines ask until none of them can go on, and asks it in one batch."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._waiting: list[tuple[list[Request], asyncio.Future[list[Reply]]]] = []

    async def ask(self, requests: list[Request]) -> list[Reply]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Reply]] = loop.create_future()
        self._waiting.append((requests, future))
        if len(self._waiting) == 1:
            loop.call_soon(self._flush, 1)
        return await future

    def _flush(self, seen: int) -> None:
        """Runs after the coroutines that were ready; waits another round as long as they ask more."""
        if len(self._waiting) > seen:
            asyncio.get_running_loop().call_soon(self._flush, len(self._waiting))
            return
        waiting, self._waiting = self._waiting, []
        try:
            replies = iter(_ask(self._model, [request for requests, _ in waiting for request in requests]))
        except BaseException as error:  # told to those who wait: the loop itself would swallow it
            for _, future in waiting:
                if not future.done():
                    future.set_exception(error)
            return
        for requests, future in waiting:
            answered = [next(replies) for _ in requests]
            if not future.done():
                future.set_result(answered)


def _ask(model: Model, requests: Sequence[Request]) -> list[Reply]:
    """One batch for each kind of request, the replies in the order of the requests."""
    generations = [request for request in requests if isinstance(request, GenerateRequest)]
    scores = [request for request in requests if isinstance(request, ScoreRequest)]
    answers = iter(model.generate(generations, failures="return") if generations else ())
    scored = iter(model.score(scores) if scores else ())
    return [next(answers) if isinstance(request, GenerateRequest) else next(scored) for request in requests]
