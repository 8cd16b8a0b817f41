"""`privlm TASK VERB`, by the verbs of an outside package."""

import dataclasses

import pytest
from support import outside

from privlm import registry
from privlm.cli import COMMANDS, main
from privlm.cli.completion import candidates

pytestmark = pytest.mark.torch_free


@pytest.fixture(autouse=True)
def _installed():
    with outside.installed():
        yield


def test_a_task_lists_its_verbs(capsys):
    for argv in (["majority"], ["majority", "--help"]):
        assert main(argv) == 0
        assert "\n  labels  how often each label stands in a file" in capsys.readouterr().out


def test_a_verb_gets_the_words_after_it_and_gives_the_exit_status(capsys, tmp_path, monkeypatch):
    (tmp_path / "messages").write_text("ham\ta\nspam\tb\nham\tc\n")
    assert main(["majority", "labels", str(tmp_path / "messages")]) == 0
    assert capsys.readouterr().out.split() == ["2", "ham", "1", "spam"]
    assert main(["majority", "labels"]) == 2
    assert "privlm majority labels --help" in capsys.readouterr().err
    monkeypatch.setitem(registry.tasks()["majority"].verbs(), "labels", lambda argv: 3)
    assert main(["majority", "labels"]) == 3


WITH_VERBS = ["fedit", "majority", "sur_adapter"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["majority", "lables"], "no verb 'lables'; did you mean labels? (privlm majority --help lists them)"),
        (["majorty"], "no command 'majorty'; did you mean 'majority'?"),
        (["ewtune"], "no command 'ewtune': it is a task without verbs of its own; try privlm run task=ewtune"),
        (["xyzzy"], f"no command 'xyzzy'; the commands are {', '.join([*COMMANDS, *WITH_VERBS])}"),
    ],
)
def test_what_is_no_verb_is_refused_with_the_nearest(argv, message, capsys):
    assert main(argv) == 2
    assert capsys.readouterr().err == f"privlm: {message}\n"


def test_completion_knows_tasks_with_verbs_and_their_verbs():
    assert candidates("privlm maj") == ["majority"]
    assert candidates("privlm ewt") == []
    assert candidates("privlm majority ") == ["labels"]


def test_a_command_wins_over_a_task_of_its_name(capsys, monkeypatch):
    named_list = dataclasses.replace(registry.tasks()["majority"], name="list")
    monkeypatch.setattr(registry, "tasks", lambda: {"list": named_list})
    assert main(["list", "tasks"]) == 0
    assert capsys.readouterr().out.startswith("tasks\n")
    assert candidates("privlm list la") == []
