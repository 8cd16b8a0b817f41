"""`privlm predict|evaluate|export RUN`, by the predictor of an outside package."""

import io
import json
import shutil

import pytest
from support import outside

from privlm.cli import main

pytestmark = pytest.mark.medium

HAM = 901 / 1040
"""Of the embedded test messages."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The directory of a finished run of the task `majority`."""
    runs = tmp_path_factory.mktemp("runs")
    with outside.installed():
        assert main(["run", "task=majority", f"runs={runs}"]) == 0
        (directory,) = (runs / "majority").iterdir()
        yield directory


def printed(capsys, *argv):
    capsys.readouterr()
    assert main([*map(str, argv)]) == 0
    return capsys.readouterr().out


def refused(capsys, *argv):
    capsys.readouterr()
    assert main([*map(str, argv)]) == 2
    return capsys.readouterr().err


def test_rows_of_a_file_are_answered_in_order_one_a_line(run, capsys, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    lines = printed(capsys, "predict", run, tmp_path / "rows.jsonl").splitlines()
    assert [json.loads(line) for line in lines] == [{"label": "ham"}] * 2
    assert "no file" in refused(capsys, "predict", run, tmp_path / "absent.jsonl")


def test_rows_of_stdin_are_answered_and_a_broken_one_is_named_by_its_line(run, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO('{"text": "a"}\n'))
    assert printed(capsys, "predict", run) == '{"label": "ham"}\n'
    for broken, message in {'{"text"': "not JSON (column 8)", "[1]": "not a JSON object"}.items():
        monkeypatch.setattr("sys.stdin", io.StringIO(f'{{"text": "a"}}\n{broken}\n'))
        assert f"stdin line 2: {message}" in refused(capsys, "predict", run)


def test_it_is_measured_on_its_own_data_and_on_others(run, capsys, tmp_path):
    own = json.loads(printed(capsys, "evaluate", run, "--json"))["test"]["accuracy"]
    assert own["value"] == pytest.approx(HAM)
    assert own["ci_low"] < HAM < own["ci_high"]
    assert "0.8663" in printed(capsys, "evaluate", run)
    messages = tmp_path / "messages"
    messages.write_text("".join(f"{'ham' if number % 2 else 'spam'}\tmessage {number}\n" for number in range(400)))
    other = json.loads(printed(capsys, "evaluate", run, f"data.path={messages}", "--json"))["test"]["accuracy"]
    assert other["n"] < own["n"]
    assert other["value"] < HAM


def test_another_data_set_starts_from_its_yaml_and_not_from_the_words_of_the_run(run, capsys, tmp_path):
    moved = shutil.copytree(run, tmp_path / "run")
    (moved / "overrides.txt").write_text((run / "overrides.txt").read_text() + "data.path=/nowhere\n")
    whole = json.loads(printed(capsys, "evaluate", moved, "data=sms_spam", "--json"))
    assert whole["test"]["accuracy"]["value"] == pytest.approx(HAM)
    assert "words of the group data alone" in refused(capsys, "evaluate", run, "trainer.steps=3")


def test_a_model_is_exported_into_a_new_folder(run, capsys, tmp_path):
    assert printed(capsys, "export", run, tmp_path / "model") == f"{tmp_path / 'model'}\n"
    assert (tmp_path / "model" / "label.txt").read_text() == "ham\n"
    assert "exists already" in refused(capsys, "export", run, tmp_path / "model")


def test_a_run_that_is_not_finished_or_has_no_predictor_is_refused(run, capsys, tmp_path, make_run):
    unfinished = shutil.copytree(run, tmp_path / "unfinished")
    (unfinished / "result.json").unlink()
    assert "only a finished run has its model" in refused(capsys, "predict", unfinished)
    gone = make_run(tmp_path, config={"task": {"name": "gone"}})
    assert "task 'gone', which is not installed" in refused(capsys, "evaluate", gone)
    asking = make_run(tmp_path, seed=1, config={"task": {"name": "causal"}})
    error = refused(capsys, "export", asking, tmp_path / "none")
    assert "task 'causal' has no predictor(config, folder)" in error
    assert "tasks that have one: " in error
    assert "majority" in error
    assert not (tmp_path / "none").exists()
