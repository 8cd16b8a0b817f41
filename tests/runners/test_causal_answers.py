"""How answers are read and credited: odd ones seen in the authors' outputs, and those of models with habits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from privlm import registry
from privlm.errors import UsageError

registry.runners_dir()  # makes privlm.runners importable in a plain checkout

from privlm.runners.causal import arctic, estimates, grading, graphs, neuropathic, redaction, tuebingen  # noqa: E402
from privlm.runners.causal.answers import (  # noqa: E402
    ARCTIC,
    CRASS,
    NEUROPATHIC,
    ONE_WORD,
    TAGGED_YES_NO,
    TWO_OPTIONS,
    YES_ANYWHERE,
    AnswerFormat,
)  # fmt: skip
from privlm.runners.causal.discovery import answered_directions, subgraph  # noqa: E402
from privlm.runners.causal.items import Item, Question  # noqa: E402
from privlm.runners.causal.sources import Sources  # noqa: E402
from privlm.runners.causal.suite import UPSTREAM, Grading, Reply, Settings, Suite  # noqa: E402

pytestmark = pytest.mark.torch_free

STRICT = Settings("strict", "strict")
OPTIONS = ("rain falls.", "the sun shines.", "That is not possible.", "Nothing.")
QUESTION = Question("?", "A", OPTIONS)
WORD = Question("?", "Yes")


@pytest.mark.parametrize(
    ("form", "text", "upstream", "strict"),
    [
        (TWO_OPTIONS, "so <Answer>A</Answer>", "A", "A"),
        (TWO_OPTIONS, "no tag at all", None, None),
        (TWO_OPTIONS, "", None, None),
        (TWO_OPTIONS, "<answer>b</answer>", "B", "B"),
        (TWO_OPTIONS, "<Answer>B</Answer>\nno, <Answer>A</Answer>", "B", "A"),  # the first tag, ours the last
        (TWO_OPTIONS, "<Answer>A</Answer> no, <Answer>B</Answer>", "A", "B"),
        (TWO_OPTIONS, "<Answer>A\n</Answer>", None, "A"),  # over two lines
        (TWO_OPTIONS, "<Answer>A", None, None),  # never closed, or cut off
        (TWO_OPTIONS, "<Answer>A or B</Answer>", "A", None),
        (TWO_OPTIONS, "<Answer> A </Answer>", None, "A"),
        (TWO_OPTIONS, "<Answer>A. rain falls.</Answer>", "A", "A"),
        (TWO_OPTIONS, "<Answer>A. the sun shines.</Answer>", "A", None),  # letter and text disagree
        (TWO_OPTIONS, "<Answer>The sun shines</Answer>", None, "B"),
        (TWO_OPTIONS, "<Answer>E</Answer>", None, None),
        (CRASS, "<Answer>A/B/C</Answer>", "A", None),
        (CRASS, "<Answer>B/C</Answer>", "B", None),
        (CRASS, "<Answer>Both A and B</Answer>", None, None),
        (CRASS, "<Answer>C: That is not possible.</Answer>", "C", "C"),
        (NEUROPATHIC, "<Answer>Neither A nor B</Answer>", "C", None),
        (NEUROPATHIC, "Final answer: B", "B", None),
        (ARCTIC, "<Answer>C</Answer>", "C", "C"),
        (ARCTIC, "<Answer>A/D</Answer>", "A", None),
        (ARCTIC, "It depends.", None, None),
    ],
)
def test_options_are_read_by_both_parsers(
    form: AnswerFormat, text: str, upstream: str | None, strict: str | None
) -> None:
    assert form.upstream(text, QUESTION) == upstream
    assert form.strict(text, QUESTION) == strict


@pytest.mark.parametrize(
    ("form", "text", "upstream", "strict"),
    [
        (ONE_WORD, "\n\nYes.", "Yes", "Yes"),
        (ONE_WORD, "No, it does not.", "No", "No"),
        (ONE_WORD, "It depends.", "No", None),
        (ONE_WORD, "Maybe. Yes.", "No", None),
        (ONE_WORD, "Unknown, I am not sure", "No", None),
        (ONE_WORD, "Nothing is known", "No", None),
        (ONE_WORD, "No idea.", "No", None),
        (ONE_WORD, "Yes? No.", "Yes", None),
        (ONE_WORD, "Not sure.", "No", None),
        (ONE_WORD, "None of the two.", "No", None),
        (ONE_WORD, "No one can tell.", "No", None),
        (ONE_WORD, "No, I don't know.", "No", None),
        (ONE_WORD, "Yes and no.", "Yes", None),
        (ONE_WORD, "Yes, and no.", "Yes", None),
        (ONE_WORD, "Yes/No", "Yes", None),
        (ONE_WORD, "No. Yes.", "No", None),
        (ONE_WORD, "Yes, it does.", "Yes", "Yes"),
        (ONE_WORD, "**No.**", "No", "No"),
        (YES_ANYWHERE, "No idea; yes?", "Yes", None),
        (TAGGED_YES_NO, "<Answer>No idea</Answer>", "No", None),
        (TAGGED_YES_NO, "<Answer>Yes and no</Answer>", "Yes", None),
        (ONE_WORD, "", "No", None),
        (YES_ANYWHERE, "I would say yes", "Yes", None),
        (YES_ANYWHERE, "yesterday", "Yes", None),
        (TAGGED_YES_NO, "<Answer>Yes </Answer>", "Yes", "Yes"),
        (TAGGED_YES_NO, "<Answer>Yes/No</Answer>", "Yes", None),
        (TAGGED_YES_NO, "<Answer>NO.</Answer>", "No", "No"),
        (TAGGED_YES_NO, "Yes", None, None),
    ],
)
def test_words_are_read_by_both_parsers(
    form: AnswerFormat, text: str, upstream: str | None, strict: str | None
) -> None:
    assert form.upstream(text, WORD) == upstream
    assert form.strict(text, WORD) == strict


# --- credit and counts ----------------------------------------------------------------------------------------------


def graded(suite: Suite, text: str = "", status: str = "ok", swapped: str | None = None) -> Grading:
    """A model that gives the same answer to everything."""
    replies = [Reply(item, item.question, 0, text, status) for item in suite.items]
    other = [Reply(item, item.swapped, 0, swapped, status) for item in suite.items if swapped and item.swapped]
    return Grading(suite, replies, other, STRICT)


def values(suite: Suite, grading: Grading) -> dict[str, float]:
    return {row.metric: row.value for row in suite.results(grading)}


def test_a_model_that_always_says_a_is_revealed() -> None:
    suite = neuropathic.load_pairs(Sources(None), 0)
    found = values(suite, graded(suite, "<Answer>A</Answer>", swapped="<Answer>A</Answer>"))
    assert found["position_swap_consistency"] == 0
    assert found["accuracy"] == pytest.approx(found["baseline_first"])
    steady = graded(tuebingen.load(Sources(None), "two"), "Yes", swapped="Yes")
    consistency = grading.swap_consistency(steady)
    assert consistency is not None
    assert consistency.value == 1


def test_unread_answers_earn_what_the_rule_says() -> None:
    for suite, credit in (
        (neuropathic.load_pairs(Sources(None), 0), 0.5),
        (tuebingen.load(Sources(None), "single"), -1.0),
    ):
        found = values(suite, graded(suite, "I cannot tell."))
        assert found["accuracy"] == 0
        assert found["accuracy_upstream"] == credit
        assert found["upstream_minus_accuracy"] == credit
        assert found["unparsed"] == found["unparsed_upstream"] == len(suite.items)
        assert "accuracy_filtered" not in found


def test_a_model_that_says_neither_looks_like_chance_as_released() -> None:
    suite = tuebingen.load(Sources(None), "two")
    found = values(suite, graded(suite, "The altitude of"))
    assert found["accuracy_upstream"] == 0.5
    assert found["accuracy"] == 0
    assert found["unparsed"] == 216


@pytest.mark.parametrize(("status", "counted"), [("refused", "refused"), ("empty", "empty"), ("length", "cut_off")])
def test_what_is_no_answer_is_counted(status: str, counted: str) -> None:
    suite = arctic.load(Sources(None))
    found = values(suite, graded(suite, "", status))
    assert found[counted] == found["unparsed"] == 66
    assert found["edges"] == 0
    assert found["nhd"] == pytest.approx(1 / 3)
    assert found["nhd_ratio"] == 1
    assert "precision" not in found  # of no edges


def test_a_refusal_with_words_is_no_answer() -> None:
    suite = tuebingen.load(Sources(None), "two")
    assert values(suite, graded(suite, "No, I cannot help with that.", "refused"))["unparsed"] == 216


def test_constant_answers_of_the_pairs_are_the_baselines() -> None:
    suite = tuebingen.load(Sources(None), "single")
    found = values(suite, graded(suite, "<Answer>A</Answer>"))
    assert found["baseline_first"] == found["accuracy"] == pytest.approx(78 / 108)
    assert found["baseline_first_weighted"] == found["weighted_accuracy"] == pytest.approx(0.69867, abs=5e-5)
    assert found["gain_over_majority"] == 0


def test_swapped_options_are_compared_where_both_answers_could_be_read() -> None:
    suite = arctic.load(Sources(None))
    answers = graded(suite, "<Answer>C</Answer>", swapped="<Answer>C</Answer>")
    unread = [replace(reply, text="No idea.") for reply in answers.swapped[:60]]
    some = grading.swap_consistency(replace(answers, swapped=[*unread, *answers.swapped[60:]]))
    assert some is not None
    assert (some.value, some.n) == (1.0, 6)
    assert grading.swap_consistency(replace(answers, swapped=unread)) is None


def test_what_could_not_be_read_is_no_wrong_answer() -> None:
    """Beside the accuracy of all answers stands that of those that could be read."""
    suite = arctic.load(Sources(None))
    always_no = values(tuebingen.load(Sources(None), "two"), graded(tuebingen.load(Sources(None), "two"), "No."))
    assert (always_no["accuracy_filtered"], always_no["unparsed"]) == (0.5, 0)
    crass_like = graded(replace(suite, results=lambda grading_: grading.accuracy(grading_, "s")), "<Answer>A</Answer>")
    half = replace(crass_like, replies=[
        replace(reply, text="No idea.") if number % 2 else reply for number, reply in enumerate(crass_like.replies)
    ])  # fmt: skip
    found = {row.metric: row for row in grading.accuracy(half, "s")}
    right = [reply.question.truth == "A" for reply in crass_like.replies[::2]]
    assert (found["accuracy_filtered"].value, found["accuracy_filtered"].n) == (pytest.approx(np.mean(right)), 33)
    assert (found["unparsed"].value, found["unparsed"].n) == (33, 66)


@pytest.mark.parametrize(
    ("texts", "label"),
    [("ABA", "A"), ("BAB", "B"), ("AB", "A"), ("A??", None), ("?AA", "A"), ("CBB", "B")],
)
def test_samples_of_a_question_vote(texts: str, label: str | None) -> None:
    suite = arctic.load(Sources(None))
    item = suite.items[0]
    replies = [Reply(item, item.question, i, f"<Answer>{text}</Answer>", "ok") for i, text in enumerate(texts)]
    assert Grading(suite, replies, [], STRICT).vote(replies) == label


def samples(suite: Suite, texts: list[str]) -> Grading:
    """Each question answered by each of the texts."""
    replies = [Reply(item, item.question, i, text, "ok") for item in suite.items for i, text in enumerate(texts)]
    return Grading(suite, replies, [], STRICT)


def test_a_dissenting_sample_changes_neither_the_directions_nor_the_graph() -> None:
    pairs, graph = neuropathic.load_pairs(Sources(None), 0), neuropathic.load_graph100(Sources(None))
    names = subgraph(neuropathic.read_links(Sources(None)), 8)[0]
    one, three = (
        answered_directions(samples(pairs, [f"<Answer>{letter}</Answer>" for letter in letters]), names)
        for letters in ("A", "ABA")
    )
    assert one == three
    assert len({frozenset(direction) for direction in three}) == len(three) > 0
    single, voted = (
        {row.metric: (row.value, row.n) for row in graph.results(samples(graph, texts)) if row.metric in EDGES}
        for texts in (["<Answer>A</Answer>"], ["<Answer>A</Answer>", "<Answer>C</Answer>", "<Answer>A</Answer>"])
    )
    assert single == voted
    assert single["f1"][1] == 100


EDGES = ("precision", "recall", "f1", "f1_upstream")


def test_samples_of_a_redacted_prompt_are_averaged() -> None:
    suite = redaction.load(Sources(None), 0)
    right = [Reply(item, item.question, 0, f"<Answer>{item.question.truth}</Answer>", "ok") for item in suite.items]
    wrong = [replace(reply, sample=1, text="no") for reply in right]
    found = {row.metric: row.value for row in redaction.results(Grading(suite, [*right, *wrong], [], STRICT))}
    assert (found["accuracy"], found["accuracy_whole"]) == (0.5, 0.5)


def test_samples_of_an_item_are_averaged() -> None:
    item = Item("1", WORD)
    suite = Suite("s", (item,), ONE_WORD, lambda grading: [], temperature=1.0, max_tokens=4)
    replies = [Reply(item, WORD, sample, text, "ok") for sample, text in enumerate(("Yes", "Yes", "No", "?"))]
    both = Grading(suite, replies, [], STRICT)
    assert both.mean_by_unit(both.credit).tolist() == [0.5]
    assert both.mean_by_unit(lambda reply: both.credit(reply, UPSTREAM)).tolist() == [0.5]


# --- estimates and graphs -------------------------------------------------------------------------------------------


def test_intervals_narrow_with_more_units_and_hold_the_value() -> None:
    few, many = (estimates.mean(np.tile([1.0, 0.0, 1.0, 1.0], n)) for n in (5, 500))
    assert few.value == many.value == 0.75
    assert few.ci_low < many.ci_low < 0.75 < many.ci_high < few.ci_high
    assert many.ci_high - many.ci_low == pytest.approx(2 * 1.96 * (0.75 * 0.25 / 2000) ** 0.5, rel=0.1)


def test_a_pair_without_weight_is_an_error_not_nan() -> None:
    with pytest.raises(ValueError, match="weight above 0"):
        estimates.mean(np.ones(3), np.zeros(3))


NAMES = ["a", "b", "c"]
TRUTH = graphs.from_edges(NAMES, [("a", "b"), ("b", "c")])


def figures(predicted: graphs.Adjacency) -> dict[str, float]:
    sums = graphs.pair_counts(TRUTH, predicted).sum(0)
    return {name: float(value) for name, value in graphs.metrics(sums, 3).items()}


def test_graph_figures_by_hand() -> None:
    found = figures(graphs.from_edges(NAMES, [("a", "b"), ("c", "b"), ("a", "c")]))
    assert found == pytest.approx(
        {"nhd": 3 / 9, "baseline_nhd": 5 / 9, "nhd_ratio": 3 / 5, "precision": 1 / 3, "recall": 1 / 2, "f1": 2 / 5,
         "shd": 2, "edges": 3}
    )  # fmt: skip
    perfect = figures(TRUTH)
    assert (perfect["nhd"], perfect["f1"], perfect["shd"]) == (0, 1, 0)


def test_the_empty_graph_has_a_low_distance_and_the_worst_ratio() -> None:
    found = figures(np.zeros((3, 3), dtype=bool))
    assert (found["nhd"], found["nhd_ratio"], found["recall"]) == (pytest.approx(2 / 9), 1, 0)
    assert np.isnan(found["precision"])


def test_self_loops_count_as_wrong_cells() -> None:
    looped = graphs.from_edges(NAMES, [("a", "b"), ("b", "c"), ("c", "c")])
    found = figures(looped)
    assert (found["nhd"], found["shd"], found["edges"]) == (pytest.approx(1 / 9), 1, 3)
    assert graphs.self_loops(looped) == 1
    assert graphs.nodes_in_cycles(looped) == 1


def test_cycles_and_two_way_edges_are_reported() -> None:
    ring = graphs.from_edges(NAMES, [("a", "b"), ("b", "c"), ("c", "a")])
    assert (graphs.nodes_in_cycles(ring), graphs.two_way_pairs(ring)) == (3, 0)
    both = graphs.from_edges(NAMES, [("a", "b"), ("b", "a")])
    assert (graphs.nodes_in_cycles(both), graphs.two_way_pairs(both)) == (2, 1)
    assert graphs.nodes_in_cycles(TRUTH) == 0


def test_unknown_nodes_are_listed() -> None:
    with pytest.raises(UsageError, match="no such nodes: d, e "):
        graphs.from_edges(NAMES, [("a", "d"), ("e", "b")])
