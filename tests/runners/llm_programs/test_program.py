"""The program on scripted models: prompts, answers, filters, and the search in the order worked out by hand."""

import json

import pytest
from privlm.runners.llm_programs.config import Task
from privlm.runners.llm_programs.filter import FILTERS
from privlm.runners.llm_programs.prompts import Shots, answer_of_step, chain_parser, load_shots, make_steps
from privlm.runners.llm_programs.search import Settings, answer_by_search
from privlm.runners.llm_programs.strategyqa import Paragraph
from support.scripted import ScriptedModel

from privlm.config import LLMBudget
from privlm.errors import UsageError
from privlm.llm.program import ParseError, Trace, run_program
from privlm.llm.program.trace import read_item

pytestmark = pytest.mark.torch_free

PATTERN = r"(?:^|[.!?]\s)\s*Thus, the answer is (yes|no)\b"
YES, NO = "Thus, the answer is yes.", "Thus, the answer is no."
STEPS = make_steps(
    Task(answer_pattern=PATTERN, reasks=1, step_max_tokens=8, cot_max_tokens=16), has_logprobs=False
)  # fmt: skip
NO_SHOTS = Shots("", "", "", "", "")
P, Q = Paragraph("p", "Plums are blue."), Paragraph("q", "Quinces are yellow.")
UNLIMITED = LLMBudget(calls=None, tokens=None, usd=None, seconds=None)


# --- reading answers --------------------------------------------------------------------------------------


def test_an_answer_stands_at_the_start_of_a_sentence_of_the_step_itself():
    assert answer_of_step(YES, "A paragraph.", PATTERN) == "yes"
    assert answer_of_step("Plums are blue. thus, the answer is NO", "", PATTERN) == "no"
    for step in ("Plums are blue.", f"He said {YES}", f"{YES} But plums", "Thus, the answer is nobody.", ""):
        assert answer_of_step(step, "", PATTERN) is None, step
    assert answer_of_step(YES, f"It ended with: {YES}", PATTERN) is None  # copied


def test_a_chain_gives_its_first_answer_or_an_error():
    parse = chain_parser(PATTERN)
    assert parse(f"Plums are blue.\n{NO}\n{YES}") == "no"
    assert parse(f"Thus, the answer is no longer known.\n{YES}") == "yes"
    for unread in (
        "Plums are blue, thus, the answer is yes",
        "Thus, the answer is no one's.",
        "Thus, the answer is yes and no.",
    ):
        with pytest.raises(ParseError, match="no line 'Thus, the answer is yes or no"):
            parse(unread)
    with pytest.raises(ParseError):
        chain_parser("answer is (maybe)")("answer is maybe")


def test_shots_show_what_their_prompt_needs():
    shots = load_shots(None, 2)
    assert "Reasoning" not in shots.no_cot
    assert "Evidence" not in shots.cot
    assert shots.cot.count(NO) == shots.cot.count(YES) == 1
    assert shots.golden_cot.count("Evidence: ") == 2
    assert shots.no_cot.endswith("Answer: yes\n\n")
    everything = load_shots(None, 6)
    assert everything.golden.count("Answer: yes") == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "at least task.num_shots=1"),
        ('[{"question": "?", "evidence": ["a"], "steps": ["b"], "answer": "maybe"}]', "example 1: its answer must be"),
        ('[{"question": "?", "evidence": [], "steps": ["b"], "answer": "yes"}]', "example 1: no field evidence"),
        ("[7]", "example 1: no field question"),
    ],
)
def test_a_wrong_file_of_examples_is_named(content, message, tmp_path):
    path = tmp_path / "examples.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=rf"task.examples: .*{message}"):
        load_shots(str(path), 1)


# --- the filter -------------------------------------------------------------------------------------------

QUESTION = "Which fruit is yellow and sour?"
TEXTS = ["Plums are blue.", "Snow is cold.", "A yellow fruit that is sour is the quince."]


def ranking(name, model):
    async def program(ctx):
        return await FILTERS[name](ctx, STEPS, QUESTION, TEXTS)

    return run_program(program, model=model).value


def test_likelihood_is_of_the_question_after_the_paragraph_by_token():
    model = ScriptedModel(nll=lambda context, continuation: float(len(context)))
    assert ranking("likelihood", model) == [(1, 13.0), (0, 15.0), (2, 42.0)]
    (batch,) = model.batches
    assert {request.continuation for request in batch} == {" " + QUESTION}
    assert [request.context for request in batch] == TEXTS
    assert ranking("likelihood", ScriptedModel()) == [(0, 1.0), (1, 1.0), (2, 1.0)]  # ties as they came


def test_black_box_puts_what_cannot_be_read_last():
    answers = {"Plums": "hm", "Snow": "no", "A yellow": "yes"}
    model = ScriptedModel(write=lambda prompt: answers[next(key for key in answers if f"Paragraph: {key}" in prompt)])
    assert ranking("black_box", model) == [(2, 0.0), (1, 1.0), (0, 2.0)]
    assert sum(map(len, model.batches)) == 4  # asked again once


def test_bm25_and_none_ask_nobody():
    pytest.importorskip("bm25s", reason="bm25s is not installed (extra llm)")
    model = ScriptedModel()
    assert ranking("bm25", model)[0][0] == 2
    assert ranking("none", model) == [(0, 0.0), (1, 0.0), (2, 0.0)]
    assert model.batches == []


# --- the search -------------------------------------------------------------------------------------------
#
# Steps are one letter a paragraph: the step beside P after the chain `q` is `qp`. The scripted model writes them, with
# an answer after some, and gives each its likelihoods.

WRITTEN = {"qqp": f"qqp. {YES}", "pp": f"pp. {NO}"}
NLL = {"p": 2, "q": 1, "qp": 3, "qq": 1, "qqp": 1, "qqq": 4, "pp": 2, "pq": 4, "qpp": 9, "qpq": 9}


def settings(criterion="nll", **changes):
    base = {"filter": "none", "n_keep": 2, "max_steps": 3, "complete_above": 3, "vote": "best", "has_logprobs": False}
    return Settings(STEPS, NO_SHOTS, criterion, answer_pattern=PATTERN, **(base | changes))


def chain_of(prompt):
    """`qp` for the steps `q`, `qp` in the prompt."""
    lines = [line for line in prompt.partition("Reasoning:\n")[2].split("\n") if line]
    return lines[-1].partition(".")[0] if lines else ""


def write_step(prompt, written=WRITTEN):
    step = chain_of(prompt) + ("p" if P.text in prompt else "q")
    return written.get(step, step)


def expansions(model):
    """The chains that were expanded, in order: two prompts each."""
    chains = [chain_of(prompt) for prompt in model.prompts]
    assert chains[::2] == chains[1::2]
    return chains[::2]


def search(model, *, budget=UNLIMITED, **changes):
    return run_program(
        answer_by_search, "Blue?", [P, Q], settings(**changes), model=model, budget=budget
    )  # fmt: skip


def forced(context, continuation, yes):
    """NLL of the sentences of a forced answer: the likelier is yes after the chains of `yes`."""
    return 1.0 if (continuation == YES) == (chain_of(context) in yes) else 2.0


def test_search_by_nll_in_the_order_worked_out_by_hand():
    def nll(context, continuation):
        if continuation in (YES, NO):
            return forced(context, continuation, yes=("qqq",))
        assert "Question:" in context
        assert "Evidence:" in context
        return NLL[continuation.strip().partition(".")[0]]

    model = ScriptedModel(write=write_step, nll=nll)
    result = search(model)
    # []      -> p 2, q 1
    # q (1)   -> qp (1+3)/2 = 2, qq 1
    # qq (1)  -> qqp answers yes, (1+1+1)/3 = 1; qqq has three steps: forced to yes, (1+1+4)/3 = 2
    # p (2)   -> before qp, which has the same rank and came later: pp answers no, 2; pq 3
    # qp (2)  -> qpp, qpq have three steps: forced to no, 13/3. Five complete chains are more than three.
    assert expansions(model) == ["", "q", "qq", "p", "qp"]
    assert result.value == {"answer": "yes", "expansions": 5, "complete": 5, "forced": 3, "empty_steps": 0}
    assert result.calls == 10 + 10 + 3 * 2
    assert search(ScriptedModel(write=write_step, nll=nll), vote="majority").value["answer"] == "no"  # 2 yes, 3 no


DELTA = {  # step -> (S|Q,P), (S|Q), (S|P)
    "p": (2, 3, 2), "q": (1, 1, 1), "pq": (1, 1, 1), "pp": (2, 2, 2), "qp": (5, 5, 5), "qq": (1, 2, 2),
    "pqp": (1, 1, 2), "pqq": (1, 1, 1),
}  # fmt: skip


def test_search_by_delta_in_the_order_worked_out_by_hand():
    def nll(context, continuation):
        if continuation in (YES, NO):
            return forced(context, continuation, yes=())
        both, given_question, given_paragraph = DELTA[continuation.strip().partition(".")[0]]
        if "Evidence:" not in context:
            return given_question
        return both if "Question:" in context else given_paragraph

    written = {"pp": f"pp. {NO}", "qq": f"qq. {YES}"}
    model = ScriptedModel(write=lambda prompt: write_step(prompt, written), nll=nll)
    result = search(model, criterion="delta")
    # []         -> p 2*2-3-2 = -1, q 0
    # p (-1)     -> pp answers no, (-1+0)/2 = -0.5; pq -0.5
    # pq (-0.5)  -> pqp 2-1-2 = -1 forced to no, (-1+0-1)/3 = -0.67; pqq forced to no, -0.33. Three are not enough.
    # q (0)      -> qp 0; qq answers yes, (0+2-4)/2 = -1. Four complete chains; qq is the best.
    assert expansions(model) == ["", "p", "pq", "q"]
    assert result.value == {"answer": "yes", "expansions": 4, "complete": 4, "forced": 2, "empty_steps": 0}


def test_log_probabilities_of_generated_tokens_save_the_scores():
    model = ScriptedModel(write=lambda prompt: YES, logprobs=(-1.0, -3.0))
    result = search(model, has_logprobs=True, complete_above=1)
    assert (result.value["answer"], result.calls) == ("yes", 2)
    assert {request.continuation for batch in model.batches[1:] for request in batch} == set()


def test_a_chain_that_answers_at_once_is_complete_and_one_expansion_may_complete_several():
    result = search(ScriptedModel(write=lambda prompt: NO), complete_above=1)
    assert result.value == {"answer": "no", "expansions": 1, "complete": 2, "forced": 0, "empty_steps": 0}


def test_empty_steps_are_dropped_and_counted():
    model = ScriptedModel(write=lambda prompt: "", nll=lambda context, continuation: float(continuation == YES))
    result = search(model)
    assert result.value == {"answer": "no", "expansions": 1, "complete": 1, "forced": 1, "empty_steps": 2}


def test_a_model_that_never_answers_is_forced_by_likelihood():
    model = ScriptedModel(write=lambda prompt: "Hm.", nll=lambda context, continuation: float(continuation == NO))
    result = search(model, max_steps=2)
    assert result.value["answer"] == "yes"
    assert result.value["forced"] == result.value["complete"] >= 4


def test_the_budget_of_a_question_ends_in_a_forced_answer():
    model = ScriptedModel(write=write_step, nll=lambda context, continuation: NLL.get(continuation.strip(), 1.0))
    result = search(model, budget=LLMBudget(calls=5, tokens=None, usd=None, seconds=None))
    # four calls expand the first chain, the fifth does not suffice for two paragraphs; the answer costs two more
    assert (result.status, result.calls) == ("budget_exhausted", 6)
    assert result.value == {"answer": "yes", "expansions": 1, "complete": 1, "forced": 1, "empty_steps": 0}


def test_the_trace_tells_what_was_kept_and_how_it_ranked(tmp_path):
    trace = Trace(tmp_path / "trace.jsonl")
    model = ScriptedModel(write=lambda prompt: NO)
    run_program(answer_by_search, "Blue?", [P, Q], settings(), model=model, trace=trace, item="tree_nll/q7")
    ((name, lines),) = read_item(tmp_path / "trace.jsonl", "q7").items()
    assert name == "tree_nll/q7"
    spans = {line["name"]: line["values"] for line in lines if line["kind"] == "span"}
    assert spans["filter"]["kept"] == ["p", "q"]
    assert spans["expand"]["ranks"] == [0.0]
    assert spans["answer_by_search"]["answers"] == ["no", "no"]
    assert json.dumps(lines)


def test_no_prompt_holds_what_its_step_does_not_declare():
    """The model is asked for S after P without the question, and the reverse."""
    model = ScriptedModel(write=write_step, nll=lambda context, continuation: 1.0)
    search(model, criterion="delta", max_steps=1)
    contexts = [request.context for batch in model.batches for request in batch if hasattr(request, "context")]
    kinds = {("Blue?" in context, P.text in context or Q.text in context) for context in contexts}
    assert kinds == {(True, True), (True, False), (False, True)}
