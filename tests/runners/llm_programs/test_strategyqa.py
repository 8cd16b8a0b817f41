"""The questions: which are in a subset, which paragraphs belong to them, and what is wrong with a file."""

import json
from pathlib import Path

import pytest
from privlm.runners.llm_programs import strategyqa
from privlm.runners.llm_programs.candidates import draw_distractors, filter_candidates, tree_candidates
from privlm.runners.llm_programs.config import StrategyQAConfig
from privlm.runners.llm_programs.strategyqa import load, locate

from privlm.config import defaults
from privlm.errors import UsageError

pytestmark = pytest.mark.torch_free

REAL = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "strategyqa"
SUPPORTED = [[[["A-1"]], ["operation"]]]
NOT_BY_ALL = [[[["A-1"]]], [[["A-1"]], ["no_evidence", "operation"]]]
NO_STEPS = [[[["A-1"]]], []]


def record(number, **changes):
    facts = [f"fact {number} {letter}" for letter in "ab"]
    base = {"qid": f"q{number}", "question": f"question {number}?", "answer": True, "facts": facts}
    return base | {"evidence": SUPPORTED} | changes


def config(folder, **changes):
    return defaults(StrategyQAConfig, "data", "strategyqa", path=str(folder), **changes)


def write(folder, *records, name="train.json"):
    (folder / name).write_text(json.dumps(records))
    return config(folder)


def test_the_rule_gives_920_of_the_training_questions():
    if not REAL.is_dir():
        pytest.skip(f"needs the real questions in {REAL}")
    data = load(config(REAL))
    assert len(data.questions) == 920
    assert sum(question.answer for question in data.questions) == 390
    assert len(data.pool) == 6120
    assert data.num_cut == 0
    assert len(load(config(REAL, subset="all")).questions) == 2061
    assert 920 < len(load(config(REAL, subset="any_annotator")).questions) < 2061
    assert len(load(config(REAL, split="dev", subset="all")).questions) == 229


def test_the_embedded_questions_are_at_hand():
    data = load(defaults(StrategyQAConfig, "data", "strategyqa_mini"))
    assert (len(data.questions), len(data.pool)) == (60, 164)


def test_subsets_and_annotators_without_steps(tmp_path):
    write(tmp_path, record(0), record(1, evidence=NOT_BY_ALL), record(2, evidence=NO_STEPS), record(3, evidence=[]))
    assert [question.id for question in load(config(tmp_path)).questions] == ["q0"]
    data = load(config(tmp_path, subset="any_annotator"))
    assert [question.id for question in data.questions] == ["q0", "q1", "q2"]
    assert len(load(config(tmp_path, subset="all"), num_questions=2).questions) == 2
    assert len(load(config(tmp_path), num_questions=1).pool) == 8  # the pool is of all questions


def test_paragraphs_by_id_and_their_length(tmp_path):
    write(tmp_path, record(0, evidence=[[[["A-1", "B-2"]]], [[["B-2"]]]]))
    texts = tmp_path / "paragraphs.json"
    texts.write_text(json.dumps({"A-1": {"title": "A", "content": "x" * 1_000_000}, "B-2": "short"}))
    data = load(config(tmp_path, paragraphs=str(texts)))
    assert [(p.id, len(p.text)) for p in data.questions[0].paragraphs] == [("A-1", 2000), ("B-2", 5)]
    assert data.num_cut == 1
    texts.write_text(json.dumps({"A-1": "a"}))
    with pytest.raises(UsageError, match=r"question 1: paragraph 'B-2' is not in data.paragraphs"):
        load(config(tmp_path, paragraphs=str(texts)))
    texts.write_text("[1]")
    with pytest.raises(UsageError, match=r"data.paragraphs"):
        load(config(tmp_path, paragraphs=str(texts)))


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([record(0), record(0)], r"train.json question 2: qid q0 comes twice"),
        ([record(0, facts=[])], r"question 1 \(qid q0\): no facts"),
        ([record(0, answer=None)], r"question 1: no field answer that is a bool; questions of the hidden test set"),
        ([record(0, qid=7)], r"question 1: no field qid that is a str"),
        ([record(0, evidence=None)], r"data.subset=all_annotators needs; use data.subset=all"),
        ([record(0, evidence=NO_STEPS)], r"no question is in data.subset=all_annotators"),
        (["text"], r"a list of questions, each an object"),
    ],
)
def test_a_wrong_file_is_named_with_its_question(records, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        load(write(tmp_path, *records))


def test_files_that_are_not_there_or_no_json(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"data.path: no file train.json in"):
        locate(config(tmp_path))
    (tmp_path / "train.json").write_text("{")
    with pytest.raises(UsageError, match=r"train.json: not JSON"):
        load(config(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(UsageError, match=r"data.path=FOLDER .* data=strategyqa_mini"):
        locate(defaults(StrategyQAConfig, "data", "strategyqa", hub_id="nobody/nothing"))


def test_the_fingerprint_is_of_the_content(tmp_path):
    first = locate(write(tmp_path, record(0))).fingerprint
    write(tmp_path, record(1), name="dev.json")
    second = locate(config(tmp_path)).fingerprint
    assert len({first, second, locate(config(tmp_path, split="dev")).fingerprint}) == 3


def test_candidates_are_of_other_questions_and_stay_the_same(tmp_path):
    write(tmp_path, *map(record, range(30)))
    data = load(config(tmp_path))
    question = data.questions[3]
    candidates, place = filter_candidates(question, data.pool, 10, seed=0)
    own = [number for number, paragraph in enumerate(candidates) if paragraph in question.paragraphs]
    assert own == [place]
    assert len({paragraph.id for paragraph in candidates}) == 10
    assert filter_candidates(question, data.pool, 10, seed=0) == (candidates, place)
    assert filter_candidates(question, data.pool, 10, seed=1) != (candidates, place)
    tree = tree_candidates(question, data.pool, 10, seed=0)
    assert set(question.paragraphs) <= set(tree)
    assert set(tree) - set(question.paragraphs) <= set(candidates)  # scores of the filter are used again
    with pytest.raises(UsageError, match=r"task.num_candidates: only 58 paragraphs"):
        draw_distractors(question, data.pool, 59, seed=0)


def test_facts_in_one_text_are_sentences():
    found = strategyqa._paragraphs({"facts": "Snow is white. Is it? Yes!"}, "q", None, "here")
    assert found == [("q-1", "Snow is white."), ("q-2", "Is it?"), ("q-3", "Yes!")]
