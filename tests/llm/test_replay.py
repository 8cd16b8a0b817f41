import json
from pathlib import Path

import pytest
from support.llm import ask

from privlm.errors import UsageError
from privlm.llm import LanguageModel
from privlm.llm.replay import ReplayBackend
from privlm.llm.types import GenerateRequest, Message, Sampling, Score, ScoreRequest

pytestmark = pytest.mark.torch_free

AUTHORS = Path(__file__).resolve().parents[3] / "shared" / "data" / "kiciman_causal" / "author_outputs"


@pytest.fixture
def replay(tmp_path):
    def make(*rows):
        path = tmp_path / "answers.jsonl"
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return ReplayBackend(path)

    return make


def answer(backend, *requests):
    return [answer.text for answer in LanguageModel(backend).generate(requests)]


def test_answers_are_found_by_prompt_in_any_order(replay):
    backend = replay({"prompt": "a", "answer": "1"}, {"prompt": "b", "answer": "2"}, {"prompt": "c", "answer": "3"})
    assert answer(backend, ask("c"), ask("a")) == ["3", "1"]


def test_a_conversation_is_found_whole_or_by_its_last_message(replay):
    whole = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    backend = replay({"prompt": "q", "answer": "by text"}, {"prompt": whole, "answer": "whole"})
    turns = (Message("system", "s"), Message("user", "q"))
    other = (Message("system", "other"), Message("user", "q"))
    requests = [GenerateRequest(prompt, Sampling(8)) for prompt in (turns, other)]
    assert answer(backend, *requests) == ["whole", "by text"]


def test_lines_without_a_prompt_are_found_by_item(replay):
    backend = replay({"id": "pair2", "answer": "2"}, {"pair_id": 1, "answer": "1"})
    assert answer(backend, ask("x", item="1"), ask("y", item="pair2")) == ["1", "2"]


def test_several_answers_to_a_prompt_are_its_samples(replay, caplog):
    backend = replay({"prompt": "a", "answer": "first"}, {"prompt": "a", "answer": "second"})
    assert answer(backend, ask("a"), ask("a", sample_index=1)) == ["first", "second"]
    assert backend.num_duplicates == 1
    assert "prompts with several answers: 1" in caplog.text
    with pytest.raises(UsageError, match="no answer for 1 of 1"):
        answer(backend, ask("a", sample_index=2))


def test_a_miss_names_the_items(replay):
    backend = replay({"prompt": "a", "answer": "1"})
    with pytest.raises(UsageError, match=r"no answer for 5 of 6 requests: pair1, pair2, pair3, \.\.\."):
        answer(backend, ask("a"), *(ask(f"new {number}", item=f"pair{number}") for number in range(1, 6)))


def test_replies_of_the_protocol_keep_their_status_and_usage(replay):
    usage = {"prompt_tokens": 5, "completion_tokens": 7}
    choices = {
        "a": [{"message": {"content": "cut of"}, "finish_reason": "length"}],
        "b": [{"message": {"content": None}, "finish_reason": "content_filter"}],
        "c": [{"text": "old schema", "finish_reason": "stop"}],
    }
    rows = [{"prompt": name, "result": {"choices": value, "usage": usage}} for name, value in choices.items()]
    model = LanguageModel(replay(*rows))
    answers = model.generate([ask(name) for name in choices])
    assert [(answer.status, answer.text) for answer in answers] == [
        ("length", "cut of"),
        ("refused", ""),
        ("ok", "old schema"),
    ]
    assert (model.usage.prompt_tokens, model.usage.completion_tokens) == (15, 21)


def test_scores_are_served_where_they_are_recorded(replay):
    backend = replay({"context": "c", "continuation": "x", "sum_nll": 2.5, "num_tokens": 2})
    assert backend.capabilities == {"score"}
    assert LanguageModel(backend).score([ScoreRequest("c", "x")]) == [Score(2.5, 2)]
    assert replay({"prompt": "a", "answer": "1"}).capabilities == {"generate", "beams", "top_k"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "is not JSON"),
        ("[1, 2]", "is not an object"),
        ('{"prompt": "a"}', "neither `answer`"),
        ('{"prompt": "a", "result": {"error": {"message": "overloaded"}}}', "neither `answer`"),
        ('{"answer": "a"}', "neither `prompt` nor `id`"),
        ('{"prompt": 5, "answer": "a"}', "neither text nor a list"),
        ('{"context": "c", "sum_nll": 1}', "is no score"),
        ('{"context": "c", "continuation": "x", "sum_nll": NaN, "num_tokens": 1}', "is no score"),
        ('{"context": "c", "continuation": "x", "sum_nll": 1, "num_tokens": 0}', "is no score"),
        ('{"prompt": "a", "result": {"choices": [{}]}}', "neither `answer`"),
    ],
)
def test_a_bad_line_is_named(replay, line, message):
    with pytest.raises(UsageError, match=rf"answers.jsonl:2.*{message}"):
        replay({"prompt": "fine", "answer": "1"}, line)


ROW = {"prompt": "a, b", "answer": "1"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("answers.jsonl", b"\xef\xbb\xbf" + json.dumps(ROW).encode()),
        ("answers.jsonl", json.dumps(ROW).encode("utf-16")),
        ("answers.json", json.dumps([ROW], indent=2).encode()),
        ("answers.json", json.dumps(ROW).encode()),
        ("answers.csv", b'prompt,answer\n"a, b",1\n'),
        ("answers.csv", b'\xef\xbb\xbfid,prompt,answer\r\n7,"a, b",1\r\n'),
        ("answers.tsv", b"prompt\tanswer\na, b\t1\n"),
    ],
)
def test_other_forms_of_a_file_are_read(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert answer(ReplayBackend(path), ask("a, b")) == ["1"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("answers.jsonl", "", r"llm.path: .*answers.jsonl is empty: a JSONL file has an object a line"),
        ("answers.jsonl", "\n\n", r"is empty: a JSONL file"),
        ("answers.jsonl", "prompt,answer\na,1\n", r"answers.jsonl:1 is not JSON .*a JSONL file .* a .csv or .tsv file"),
        (
            "answers.csv",
            "pair_id,groundtruth,CorrectCause\n1,A,1\n",
            r"has the columns pair_id, groundtruth, CorrectCause: ",
        ),
        ("answers.csv", "question,answer\na,1\n", r"has the columns question, answer: "),
    ],
)
def test_a_file_of_another_form_is_told_which_is_read(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=message):
        ReplayBackend(tmp_path / name)


def test_replies_of_another_model_are_refused(tmp_path):
    path = tmp_path / "answers.jsonl"
    reply = {"model": "gpt-3.5-turbo-0301", "choices": [{"message": {"content": "x"}}]}
    path.write_text(json.dumps({"prompt": "a", "result": reply}))
    for model in ("recorded", "gpt-3.5-turbo", "gpt-3.5-turbo-0301"):
        assert answer(ReplayBackend(path, model), ask("a")) == ["x"]
    for model in ("gpt-4", "gpt-3", "gpt-3.5-turbo-1106"):
        with pytest.raises(UsageError, match=rf"llm.model={model}: the replies in .* are of gpt-3.5-turbo-0301"):
            ReplayBackend(path, model)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"llm.path: cannot read .*nothing.jsonl"):
        ReplayBackend(tmp_path / "nothing.jsonl")


@pytest.mark.skipif(not AUTHORS.is_dir(), reason="the authors' recorded answers are not beside the repository")
@pytest.mark.parametrize("path", sorted(AUTHORS.glob("*.jsonl")), ids=lambda path: path.stem)
def test_every_answer_of_the_authors_is_found_by_its_prompt(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    seen, requests = {}, []
    for row in rows:
        index = seen[row["prompt"]] = seen.get(row["prompt"], -1) + 1
        requests.append(ask(row["prompt"], sample_index=index))
    expected = [row["result"]["choices"][0]["message"]["content"] for row in rows]
    assert answer(ReplayBackend(path), *reversed(requests)) == expected[::-1]
