"""A causal agent (task.prompting=program): it argues for both directions of a pair, then judges its own arguments.

A second user of the program API; the agent of the paper is only a system message (task.prompting=agent).
"""

from __future__ import annotations

from privlm.llm.program import AsyncContext, Step, choice

MECHANISM = Step(
    "mechanism",
    "In two sentences: by what mechanism could {{ cause }} change {{ effect }}? If there is none, say so.",
    inputs=("cause", "effect"),
    max_tokens=80,
    chat=True,
)
JUDGE = Step(
    "judge",
    "Which cause-and-effect relationship is more likely?\nA. {{ first }} changes {{ second }}. {{ forward }}\n"
    "B. {{ second }} changes {{ first }}. {{ backward }}\n\nAnswer with the letter A or B only.",
    inputs=("first", "second", "forward", "backward"),
    parse=choice("A", "B"),
    reasks=1,
    max_tokens=8,
    chat=True,
)


async def causal_agent(ctx: AsyncContext, first: str, second: str) -> str:
    """A when `first` is judged the cause of `second`, else B; an unreadable judgement ends the item as malformed."""
    directions = ((first, second), (second, first))
    forward, backward = await ctx.map(MECHANISM, [{"cause": a, "effect": b} for a, b in directions])
    verdict = await ctx.generate(
        JUDGE, first=first, second=second, forward=forward.text.strip(), backward=backward.text.strip()
    )
    return verdict.require()
