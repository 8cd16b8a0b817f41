"""Programs around a frozen language model (arXiv 2305.05364): Python keeps the state and decides, the model is asked
for one small step at a time and sees only what that step declares.

step: one call, its template, inputs and parser. context: what a program holds (generate, score, choose, map, search,
vote). items: runs a program over many items. outcomes, parsers, budget, search, trace: its parts. No torch.

    ASK = Step("ask", "Question: {{ question }}\\nAnswer:", inputs=("question",), parse=choice("yes", "no"), reasks=1)

    def program(ctx, question):
        return ctx.generate(ASK, question=question).require()

    run_programs(program, {"q1": ("Is snow white?",)}, model, on_done=print)
"""

from privlm.llm.program.budget import ItemBudgetExhausted
from privlm.llm.program.context import AsyncContext, Context
from privlm.llm.program.items import ItemResult, run_program, run_programs
from privlm.llm.program.outcomes import CallFailed, Chosen, MalformedError, StepResult
from privlm.llm.program.parsers import ParseError, choice, json_object, number, regex, stripped
from privlm.llm.program.search import SearchResult
from privlm.llm.program.step import Step
from privlm.llm.program.trace import Trace

__all__ = [
    "AsyncContext",
    "CallFailed",
    "Chosen",
    "Context",
    "ItemBudgetExhausted",
    "ItemResult",
    "MalformedError",
    "ParseError",
    "SearchResult",
    "Step",
    "StepResult",
    "Trace",
    "choice",
    "json_object",
    "number",
    "regex",
    "run_program",
    "run_programs",
    "stripped",
]
