import re

import pytest

from privlm.cli.compose import Words, compose
from privlm.cli.cp import main
from privlm.config import configs_dir
from privlm.errors import UsageError

pytestmark = pytest.mark.torch_free


def test_copies_a_file_byte_for_byte_and_says_how_to_use_it(tmp_path, capsys):
    assert main(["recipe/ewtune_small", str(tmp_path / "my")]) == 0
    copy = tmp_path / "my" / "recipe" / "ewtune_small.yaml"
    assert copy.read_bytes() == (configs_dir() / "recipe" / "ewtune_small.yaml").read_bytes()
    path, usage = capsys.readouterr().out.splitlines()
    assert path == str(copy)
    assert usage.endswith(f"--config-dir {tmp_path / 'my'}")


def test_the_copy_goes_before_the_shipped_file(tmp_path):
    main(["model/tiny", str(tmp_path)])
    copy = tmp_path / "model" / "tiny.yaml"
    copy.write_text(copy.read_text().replace("hidden_size: 128", "hidden_size: 64"))
    config = compose(Words(("task=ewtune", "model=tiny"), (tmp_path,))).config
    assert config.model.random.hidden_size == 64


def test_a_renamed_model_carries_its_new_name(tmp_path, capsys):
    main(["model/tiny", str(tmp_path), "wee"])
    config = compose(Words(("task=ewtune", "model=wee"), (tmp_path,))).config
    assert (config.model.name, config.scale) == ("wee", "smoke")
    assert "model=wee" in capsys.readouterr().out


def test_a_renamed_adapter_keeps_the_name_that_chooses_its_method(tmp_path):
    main(["adapter/lora", str(tmp_path), "lora_all"])
    config = compose(Words(("task=ewtune", "adapter=lora_all"), (tmp_path,))).config
    assert config.adapter.name == "lora"
    assert config.trainer.learning_rate == 1e-2  # what the recipe says when adapter=lora


def test_a_copied_recipe_keeps_its_lines_under_another_name(tmp_path):
    main(["recipe/ewtune_small", str(tmp_path), "mine"])
    run = compose(Words(("task=ewtune", "adapter=lora", "recipe=mine"), (tmp_path,)))
    assert (run.lines, run.config.trainer.learning_rate) == (("adapter=lora",), 1e-2)


@pytest.mark.parametrize("source", ["table/ewtune_small", "task/ewtune"])
def test_tables_and_tasks_are_used_by_their_own_command(source, tmp_path, capsys):
    main([source, str(tmp_path)])
    expected = {"table/ewtune_small": "privlm tables ewtune_small", "task/ewtune": "privlm run task=ewtune"}[source]
    assert f"use it: {expected} --config-dir" in capsys.readouterr().out


def test_a_file_that_is_there_is_only_overwritten_by_force(tmp_path):
    copy = tmp_path / "data" / "sst2.yaml"
    main(["data/sst2", str(tmp_path)])
    copy.write_text("mine")
    with pytest.raises(UsageError, match=f"{re.escape(str(copy))} is there already; --force"):
        main(["data/sst2", str(tmp_path)])
    assert copy.read_text() == "mine"
    assert main(["data/sst2", str(tmp_path), "--force"]) == 0
    assert copy.read_text() != "mine"


@pytest.mark.parametrize(
    ("word", "near"), [("modle/tiny", "model/tiny"), ("model/minilmm", "model/minilm"), ("tiny", "")]
)
def test_an_unknown_config_is_refused_with_the_nearest(word, near, tmp_path):
    with pytest.raises(UsageError, match=f"no config '{word}'.*{near}"):
        main([word, str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_a_path_is_refused(tmp_path):
    with pytest.raises(UsageError, match="NEW_NAME"):
        main(["model/tiny", str(tmp_path), "../escaped"])


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=f"cannot write {re.escape(str(tmp_path / 'file'))}.*FOLDER"):
        main(["model/tiny", str(tmp_path / "file")])
