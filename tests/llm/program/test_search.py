"""Search in the order worked out by hand."""

import pytest
from support.scripted import ScriptedModel

from privlm.config import LLMBudget
from privlm.llm.program import Step, run_program

pytestmark = pytest.mark.torch_free

RANKS = {"r": 0, "a": 3, "b": 1, "c": 3, "ba": 2, "bb": 5, "aa": 1, "ca": 1, "baX": 9, "aaX": 1, "caX": 0}
CHILDREN = {
    "r": ["a", "b", "c"], "b": ["ba", "bb"], "ba": ["baX"], "a": ["aa"], "c": ["ca"], "aa": ["aaX"], "ca": ["caX"],
}  # fmt: skip
EXPAND = Step("expand", "{{ state }}", ("state",))


def search(*, enough=10, expanded, **options):
    def program(ctx):
        def expand(here, states):
            here.map(EXPAND, [{"state": state} for state in states])
            expanded.append(states)
            return [CHILDREN.get(state, []) for state in states]

        return ctx.search(
            ["r"], expand=expand, rank=RANKS.__getitem__, is_complete=lambda state: state.endswith("X"),
            enough=lambda complete: len(complete) >= enough, **options,
        )  # fmt: skip

    return program


def test_best_first_takes_the_lowest_and_of_equals_the_first_inserted():
    expanded = []
    found = run_program(search(expanded=expanded), model=ScriptedModel()).value
    # r -> a3 b1 c3; b -> ba2 bb5; ba -> baX; a before c (inserted first) -> aa1; aa -> aaX; c -> ca; ca -> caX; bb
    assert expanded == [["r"], ["b"], ["ba"], ["a"], ["aa"], ["c"], ["ca"], ["bb"]]
    assert (found.complete, found.frontier, found.expansions, found.exhausted) == (["baX", "aaX", "caX"], [], 8, False)


def test_enough_and_max_expansions_end_it():
    expanded = []
    found = run_program(search(enough=1, expanded=expanded), model=ScriptedModel()).value
    assert expanded == [["r"], ["b"], ["ba"]]
    assert found.frontier == ["a", "c", "bb"]
    found = run_program(search(max_expansions=2, expanded=[]), model=ScriptedModel()).value
    assert (found.expansions, found.complete) == (2, [])


def test_beam_expands_a_level_in_one_batch_and_forgets_the_rest():
    expanded, model = [], ScriptedModel()
    found = run_program(search(beam=2, expanded=expanded), model=model).value
    assert expanded == [["r"], ["b", "a"], ["aa", "ba"]]  # c is forgotten, then bb
    assert found.complete == ["aaX", "baX"]
    assert [len(batch) for batch in model.batches] == [1, 2, 2]


def test_the_budget_ends_it_and_keeps_what_was_found():
    limits = LLMBudget(calls=3, tokens=None, usd=None, seconds=None)
    result = run_program(search(expanded=[]), model=ScriptedModel(), budget=limits)
    assert result.status == "budget_exhausted"
    assert result.value.exhausted
    assert result.value.complete == ["baX"]
    assert result.value.frontier == ["a", "c", "bb"]


def test_async_search_is_the_same():
    async def program(ctx):
        async def expand(here, states):
            await here.map(EXPAND, [{"state": state} for state in states])
            expanded.extend(states)
            return [CHILDREN.get(state, []) for state in states]

        return await ctx.search(
            ["r"], expand=expand, rank=RANKS.__getitem__, is_complete=lambda state: state.endswith("X"),
            enough=lambda complete: len(complete) > 2,
        )  # fmt: skip

    expanded = []
    found = run_program(program, model=ScriptedModel()).value
    assert expanded == ["r", "b", "ba", "a", "aa", "c", "ca"]
    assert found.complete == ["baX", "aaX", "caX"]
