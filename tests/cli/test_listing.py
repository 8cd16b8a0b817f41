import json

import pytest

from privlm import registry
from privlm.cli.compose import options
from privlm.cli.listing import GROUPS, KINDS, main
from privlm.errors import UsageError

pytestmark = pytest.mark.torch_free


def listed(capsys, *argv):
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_lists_every_kind(capsys):
    found = listed(capsys)
    assert tuple(found) == KINDS
    assert set(found["tasks"]) == set(registry.tasks())
    assert "ewtune_noise" in found["tables"]


@pytest.mark.parametrize(("kind", "group"), GROUPS.items())
def test_lists_what_the_group_takes(kind, group, capsys):
    assert list(listed(capsys, kind)[kind]) == options(group)


def test_every_name_says_what_it_is(capsys):
    for summaries in listed(capsys).values():
        assert all(len(text) > 10 and "`privlm" not in text and "@package" not in text for text in summaries.values())


def test_prints_one_line_a_name_below_its_kind(capsys):
    assert main(["adapters"]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading == "adapters (adapter=NAME)"
    assert [line.split()[0] for line in lines] == options("adapter")
    assert any("LoRA: a low-rank pair" in line for line in lines)


def test_what_is_longer_than_a_line_goes_on_below_itself(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["adapters"]) == 0
    lines = capsys.readouterr().out.splitlines()
    first = next(number for number, line in enumerate(lines) if "head " in line)
    assert lines[first : first + 2] == [
        "  head             Head only: the encoder is frozen, its",
        "                   features are computed once.",
    ]


@pytest.mark.parametrize("source", ["--config-dir", "PRIVLM_CONFIG_DIR"])
def test_lists_configs_of_the_user_first(source, tmp_path, monkeypatch, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("# My encoder. `privlm run task=ewtune model=mine`\n")
    (tmp_path / "model" / "tiny.yaml").write_text("# My tiny one.\n")
    monkeypatch.setenv("PRIVLM_CONFIG_DIR", str(tmp_path)) if source.isupper() else None
    argv = ["models"] if source.isupper() else ["models", source, str(tmp_path)]
    models = listed(capsys, *argv)["models"]
    assert models["mine"] == "My encoder."
    assert models["tiny"] == "My tiny one."
    assert "minilm" in models


def test_an_unknown_kind_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match="no kind 'model'; did you mean models"):
        main(["model"])


def test_a_config_folder_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match="--config-dir: no folder nowhere"):
        main(["--config-dir", "nowhere"])
