"""Programs, plain and async: batches, re-asks, budgets, nesting, traces."""

import asyncio
import json

import jsonschema
import pytest
from support.scripted import ScriptedModel

from privlm.config import LLMBudget
from privlm.llm.program import ItemBudgetExhausted, Step, Trace, choice, run_program, run_programs
from privlm.llm.program.trace import SCHEMA_FILE, read_item
from privlm.llm.types import Answer, Message
from privlm.signals import Interrupted

pytestmark = pytest.mark.torch_free

ASK = Step("ask", "Q: {{ question }}\nA:", ("question",), parse=choice("yes", "no"), reasks=2)
NLL = Step("nll", "{{ paragraph }}", ("paragraph", "question"), continuation=" {{ question }}")
PICK = Step("pick", "{{ question }}", ("question",), options=(" yes", " no"))


def budget(**limits):
    return LLMBudget(**{"calls": None, "tokens": None, "usd": None, "seconds": None} | limits)


def validate(path):
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_text()))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        validator.validate(line)
    return lines


def test_a_parse_failure_is_asked_again_with_its_error_and_then_counted(tmp_path):
    answers = iter(["perhaps", "yes or no", "no"])
    model = ScriptedModel(write=lambda prompt: next(answers))
    trace = Trace(tmp_path / "trace.jsonl", run="abc")
    result = run_program(lambda ctx: ctx.generate(ASK, question="Is it?"), model=model, trace=trace)
    assert (result.value.value, result.value.status, result.value.attempts) == ("no", "ok", 3)
    assert result.calls == 3
    assert model.prompts[0] == "Q: Is it?\nA:"
    assert model.prompts[1].startswith("Q: Is it?\nA:perhaps\n")
    assert "name exactly one" in model.prompts[2]
    calls = [line for line in validate(tmp_path / "trace.jsonl") if line["kind"] == "call"]
    assert [(call["attempt"], call["status"], call["parsed"]) for call in calls] == [
        (1, "malformed", None), (2, "malformed", None), (3, "ok", "no"),
    ]  # fmt: skip

    model = ScriptedModel(write=lambda prompt: "perhaps")
    result = run_program(lambda ctx: ctx.generate(ASK, question="Is it?"), model=model)
    assert (result.value.value, result.value.status, result.status) == (None, "malformed", "done")
    result = run_program(lambda ctx: ctx.generate(ASK, question="Is it?").require(), model=model)
    assert (result.value, result.status) == (None, "malformed")
    assert "step 'ask'" in result.error


def test_validation_is_part_of_reading():
    step = Step("ask", "?", (), validate=lambda text: "too short" if len(text) < 3 else None, reasks=1)
    answers = iter(["a", "abc"])
    model = ScriptedModel(write=lambda prompt: next(answers))
    assert run_program(lambda ctx: ctx.generate(step), model=model).value.value == "abc"
    assert "too short" in model.prompts[1]


def test_map_is_one_batch_and_keeps_the_order():
    def program(ctx):
        scores = ctx.map(NLL, [{"paragraph": p, "question": "Why is it so?"} for p in ("a", "bb", "ccc")])
        return [score.avg_nll for score in scores], ctx.map(ASK, [])

    model = ScriptedModel(nll=lambda context, continuation: len(context))
    values, nothing = run_program(program, model=model).value
    assert values == [1, 2, 3]
    assert nothing == []
    assert [len(batch) for batch in model.batches] == [3]


def test_choose_takes_the_lowest_and_of_equals_the_first():
    model = ScriptedModel(nll=lambda context, continuation: {" yes": 2.0, " no": 1.0}[continuation])
    assert run_program(lambda ctx: ctx.choose(PICK, question="?").option, model=model).value == " no"
    chosen = run_program(lambda ctx: ctx.choose("?", [" b", " a"]), model=ScriptedModel()).value
    assert (chosen.option, chosen.index, len(chosen.scores)) == (" b", 0, 2)
    score = run_program(lambda ctx: ctx.score("the sky is", " blue and wide"), model=ScriptedModel()).value
    assert (score.sum_nll, score.num_tokens) == (3, 3)


def test_vote_takes_the_most_frequent_and_of_equals_the_first():
    def program(ctx):
        return ctx.vote(["b", None, "a", "a", "b"]), ctx.vote([None])

    assert run_program(program, model=ScriptedModel()).value == ("b", None)


def child(ctx, question):
    with ctx.span("inside", number=1):
        return ctx.generate(ASK, question=question).value


def test_a_nested_program_spends_the_same_budget_and_hangs_under_its_caller(tmp_path):
    def parent(ctx):
        ctx.generate(ASK, question="first")
        return [ctx.run(child, question) for question in ("second", "third")]

    trace = Trace(tmp_path / "trace.jsonl")
    result = run_program(parent, model=ScriptedModel(), trace=trace, item="row/q1", budget=budget(calls=2))
    assert (result.status, result.calls, result.value) == ("budget_exhausted", 2, None)
    lines = validate(tmp_path / "trace.jsonl")
    names = {line["span"]: line.get("name", line.get("step")) for line in lines}
    tree = [(names.get(line["parent"]), names[line["span"]], line["status"]) for line in lines]
    assert tree == [
        (None, "parent", "budget_exhausted"), ("parent", "ask", "ok"), ("parent", "child", "done"),
        ("child", "inside", "done"), ("child", "ask", "ok"), ("parent", "child", "budget_exhausted"),
        ("child", "inside", "budget_exhausted"),
    ]  # fmt: skip


def test_the_call_inside_a_span_hangs_under_it(tmp_path):
    def program(ctx):
        with ctx.span("inside", kept=[3, 1]) as inner:
            inner.note(best="p3")
            inner.generate(ASK, question="?")

    run_program(program, model=ScriptedModel(), trace=Trace(tmp_path / "trace.jsonl"))
    root, inside, call = validate(tmp_path / "trace.jsonl")
    assert inside["values"] == {"kept": [3, 1], "best": "p3"}
    assert (inside["parent"], call["parent"]) == (root["span"], inside["span"])


@pytest.mark.parametrize(
    ("limits", "calls"),
    [({"calls": 3}, 3), ({"tokens": 22}, 2), ({"tokens": 23}, 3), ({"usd": 0.3}, 2), ({"seconds": 0.0}, 0)],
)
def test_the_budget_of_an_item_stops_it_before_the_call(limits, calls):
    def program(ctx):
        while True:
            ctx.generate(ASK, question="?")

    model = ScriptedModel()  # 11 tokens a call
    result = run_program(program, model=model, budget=budget(**limits))
    assert (result.status, result.calls, len(model.prompts)) == ("budget_exhausted", calls, calls)


def test_a_batch_that_does_not_fit_is_not_sent_and_a_forced_answer_is():
    def program(ctx):
        try:
            ctx.map(ASK, [{"question": str(number)} for number in range(3)])
        except ItemBudgetExhausted:
            return ctx.beyond_budget().choose(PICK, question="?").option

    model = ScriptedModel()
    result = run_program(program, model=model, budget=budget(calls=2))
    assert (result.value, result.status, result.calls) == (" yes", "budget_exhausted", 2)
    assert [len(batch) for batch in model.batches] == [2]


def test_a_failed_call_fails_its_item_alone():
    def write(prompt):
        return Answer("", "timeout", detail="120 s") if "q1" in prompt else "yes"

    results = {}
    items = {name: (name,) for name in ("q0", "q1", "q2")}
    run_programs(child, items, ScriptedModel(write=write), on_done=results.__setitem__)
    assert [result.status for result in results.values()] == ["done", "failed", "done"]
    assert results["q1"].error == "step 'ask': timeout, 120 s"
    refused = ScriptedModel(write=lambda prompt: Answer("", "refused"))
    assert run_program(lambda ctx: ctx.generate(ASK, question="?").status, model=refused).value == "refused"


async def together(ctx, question):
    first, second = await asyncio.gather(ctx.generate(ASK, question=question), ctx.choose(PICK, question=question))
    mapped = await ctx.map(NLL, [{"paragraph": "p", "question": question}] * 2)
    return first.value, second.option, len(mapped), await ctx.run(nested, question)


async def nested(ctx, question):
    return (await ctx.generate(ASK, question=question + "!")).require()


def test_async_programs_share_their_batches(tmp_path):
    model = ScriptedModel()
    results = {}
    items = {f"q{number}": (f"question {number}",) for number in range(5)}
    trace = Trace(tmp_path / "trace.jsonl")
    ticks: list[int] = []
    run_programs(together, items, model, on_done=results.__setitem__, width=4, trace=trace, tick=ticks.append)
    assert ticks == [4, 5]  # once of those that end together
    assert list(results) == list(items)
    assert all(result.value == ("yes", " yes", 2, "yes") for result in results.values())
    assert [len(batch) for batch in model.batches] == [4, 8, 8, 4, 1, 2, 2, 1]
    lines = validate(tmp_path / "trace.jsonl")
    assert [line["item"] for line in lines] == [name for name in items for _ in range(8)]  # blocks


def test_what_ends_the_run_leaves_the_finished_items():
    """Sync and async alike: the interruption passes through, what is finished has been handed on."""

    def write(prompt):
        if "question 3" in prompt:
            raise Interrupted(15)
        return "yes"

    for program, width in ((child, 1), (nested, 2)):
        results = {}
        items = {f"q{number}": (f"question {number}",) for number in range(5)}
        with pytest.raises(Interrupted):
            run_programs(program, items, ScriptedModel(write=write), on_done=results.__setitem__, width=width)
        assert list(results) == ["q0", "q1", "q2"][: 3 if width == 1 else 2]


def test_a_hash_trace_holds_no_text(tmp_path):
    canary = "c4n4ry"

    def program(ctx, question):
        ctx.note(question=question, kept=[1, 2])
        ctx.score(question, " " + question)
        return ctx.generate(Step("echo", "{{ q }}", ("q",), chat=True), q=question)

    path = tmp_path / "trace.jsonl"
    model = ScriptedModel(write=lambda prompt: prompt[0].content)
    run_program(program, canary, model=model, item="q", trace=Trace(path, texts=False))
    lines = validate(path)
    assert canary not in path.read_text()
    assert lines[0]["values"]["kept"] == [1, 2]
    run_program(program, canary, model=model, item="q", trace=Trace(path))
    assert canary in path.read_text()
    lines = validate(path)
    assert len(lines) == 6
    ((name, last),) = read_item(path, "q").items()  # traced twice: the last counts
    assert (name, len(last)) == ("q", 3)
    assert last[2]["prompt"] == [{"role": "user", "content": canary}]


def test_equal_requests_have_equal_hashes_in_the_trace(tmp_path):
    def program(ctx):
        ctx.generate(ASK, question="a")
        ctx.generate(ASK, question="a")
        ctx.generate(ASK, question="b")

    run_program(program, model=ScriptedModel(), trace=Trace(tmp_path / "trace.jsonl"))
    first, second, third = [line["prompt_sha256"] for line in validate(tmp_path / "trace.jsonl")[1:]]
    assert first == second != third


def test_messages_are_kept_as_turns():
    model = ScriptedModel()
    run_program(lambda ctx: ctx.generate(Step("a", "hi", (), chat=True)), model=model)
    assert model.prompts == [(Message("user", "hi"),)]
