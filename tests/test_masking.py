"""Keys: refused where a run would write them down, masked in everything that is said."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from privlm import environment
from privlm.cli import main
from privlm.masking import MaskedFormatter, held_in_config, held_in_words, holds_key, mask_text

pytestmark = pytest.mark.torch_free

PLANTED = "canary-4711-of-nobody"
TOKEN = "sk-" + "a1B2" * 8


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", PLANTED)
    monkeypatch.setenv("MY_LOGIN", f"{PLANTED}-2")  # named like nothing in particular


HOLDING = [
    f"llm.model={PLANTED}",
    f"llm.base_url=http://127.0.0.1/v1/{PLANTED}/x",
    f"llm.base_url=http://127.0.0.1:1/v1?key={PLANTED}-3",
    "llm.base_url=http://127.0.0.1:1/v1?api_key=abc",
    "llm.base_url=https://me:zebra@host/v1",
    "llm.base_url=http://127.0.0.1:1/v1#token=abc",
    "+llm.api_key=short",
    "llm.api_key=${oc.env:MY_LOGIN}",
    "task.system=${oc.env:OPENAI_API_KEY}",
    "task.system='${oc.env:OPENAI_API_KEY,none}'",
    f"+hydra.job.env_set.OTHER_API_KEY={PLANTED}-4",
    f"model.hub_id={TOKEN}",
    "data.path=https://user:pass@host/rows.jsonl",
    "++task.password=abc",
]


@pytest.mark.parametrize("word", HOLDING)
@pytest.mark.parametrize("command", ["run", "sweep"])
def test_a_word_that_holds_a_key_is_refused_before_anything_is_written(
    command: str, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [command, "task=causal", "llm=endpoint", "llm.model=m", f"runs={tmp_path}", word]
    assert main(words) == 2
    said = capsys.readouterr().err
    key = word.lstrip("+").partition("=")[0]
    assert f"privlm: {key} " in said
    assert "written down" in said
    assert not any(secret in said for secret in (PLANTED, TOKEN, "abc", "zebra", "user:", "short"))
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_that_holds_a_key_is_refused_by_the_field(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"llm": {"api_key_env": "MY_LOGIN", "model": f"{PLANTED}-2"}, "task": {"items": [{"note": TOKEN}], "n": 3}}
    first, second = held_in_config(config)
    assert first.startswith("llm.model holds the value of the environment variable ")
    assert second.startswith("task.items.note holds what looks like a key")
    assert PLANTED not in first + second


@pytest.mark.parametrize(
    "word",
    [
        "llm.api_key_env=OPENAI_API_KEY", "llm.max_tokens_field=max_tokens", "llm.base_url=http://127.0.0.1:8000/v1",
        "+llm.api_key=null", "model.random.pad_token=<pad>", "data.path=${oc.env:HOME}/rows.tsv", "task.max_tokens=5",
        "runs=/tmp/secret-project/runs", "data.path=/home/me/a@b/rows.tsv", "++task.secret_length=32", "seed=0,1,2",
    ],
)  # fmt: skip
def test_ordinary_words_hold_no_key(word: str) -> None:
    assert held_in_words([word]) == []


def test_names_and_short_values_of_the_environment_are_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "a-long-value")
    monkeypatch.setenv("MY_TOKEN", "false")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/etc/keys.json")
    assert mask_text("a-long-value false /etc/keys.json") == "a-long-value false /etc/keys.json"


@pytest.mark.parametrize(
    "text",
    [
        f"said {PLANTED}.", f"the key {TOKEN} is refused", "GET https://me:zebra@host/x", "x?a=1&api_key=zebra&b=2",
        "Authorization: Bearer zebra.of.nobody", '{"api_key": "zebra"}', "privlm run a.secret=zebra", "--api-key zebra",
        "hf_" + "x" * 30, "token eyJhbGciOiJI.eyJzdWIiOiIx.abcdefgh", "AKIA" + "A" * 16,
    ],
)  # fmt: skip
def test_what_is_said_is_masked(text: str) -> None:
    masked = mask_text(text)
    assert "***" in masked
    assert not any(secret in masked for secret in (PLANTED, TOKEN, "zebra", "xxxx", "eyJ", "AAAA"))
    assert mask_text(masked) == masked
    assert not holds_key(masked)


def test_logs_and_the_command_of_env_json_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["privlm", "run", "task=ewtune", f"x={PLANTED}", "db.password=word"])
    assert environment.describe()["command"] == "privlm run task=ewtune x=*** db.password=***"
    try:
        raise ValueError(f"refused: {PLANTED}")
    except ValueError:
        record = logging.LogRecord("privlm", logging.ERROR, "f", 1, "at %s", (TOKEN,), sys.exc_info())
    line = MaskedFormatter("%(message)s").format(record)
    assert line.startswith("at ***\n")
    assert PLANTED not in line
