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
    ],
)
def test_a_bad_line_is_named(replay, line, message):
    with pytest.raises(UsageError, match=rf"answers.jsonl:2.*{message}"):
        replay({"prompt": "fine", "answer": "1"}, line)


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
