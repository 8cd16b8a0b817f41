"""Best-first and beam search, apart from whatever makes the children.

Ties are broken by the order of insertion, so that a search is the same each time.
"""

from __future__ import annotations

import heapq
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, NotRequired, TypedDict, TypeVar, Unpack

S = TypeVar("S")


@dataclass(frozen=True)
class SearchResult(Generic[S]):
    """complete: complete states in the order in which they were found. frontier: states left unexpanded, best first.

    exhausted: the budget of the item ended the search.
    """

    complete: list[S]
    frontier: list[S]
    expansions: int
    exhausted: bool


class Frontier(Generic[S]):
    """States that wait, the one of the lowest rank first, of equals the one that came first."""

    def __init__(self, rank: Callable[[S], float]) -> None:
        self._rank = rank
        self._heap: list[tuple[float, int, S]] = []
        self._pushed = 0

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, state: S) -> None:
        heapq.heappush(self._heap, (self._rank(state), self._pushed, state))
        self._pushed += 1

    def pop(self) -> S:
        return heapq.heappop(self._heap)[-1]

    def best(self, count: int | None = None) -> list[S]:
        """The first `count` states (None: all) in the order in which they would be popped; they stay."""
        return [state for _, _, state in heapq.nsmallest(len(self) if count is None else count, self._heap)]

    def clear(self) -> None:
        self._heap.clear()


class Rules(TypedDict, Generic[S]):
    """Of a search. rank: the lowest first; ties go by insertion. enough: ends it, by what is complete.

    beam: None expands the best state of all that wait (best-first); k expands the k best of a level together and
    forgets the others. max_expansions: None, without limit.
    """

    rank: Callable[[S], float]
    is_complete: Callable[[S], bool]
    enough: Callable[[Sequence[S]], bool]
    beam: NotRequired[int | None]
    max_expansions: NotRequired[int | None]


async def search(
    start: Sequence[S],
    expand: Callable[[list[S]], Awaitable[list[list[S]] | None]],
    **rules: Unpack[Rules[S]],
) -> SearchResult[S]:
    """Expands states until `enough` are complete, or none is left.

    expand: states -> the children of each, None when the budget is spent.
    """
    beam, max_expansions = rules.get("beam"), rules.get("max_expansions")
    complete: list[S] = []
    frontier = Frontier(rules["rank"])
    for state in start:
        frontier.push(state)
    expansions = 0
    exhausted = False
    while frontier and not rules["enough"](complete) and (max_expansions is None or expansions < max_expansions):
        left = len(frontier) if max_expansions is None else max_expansions - expansions
        chosen = frontier.best(min(beam or 1, left))
        families = await expand(chosen)
        if families is None:
            exhausted = True
            break
        if beam is None:
            frontier.pop()
        else:
            frontier.clear()
        expansions += len(chosen)
        for child in (child for family in families for child in family):
            if rules["is_complete"](child):
                complete.append(child)
            else:
                frontier.push(child)
    return SearchResult(complete, frontier.best(), expansions, exhausted)
