"""The card of an exported model."""

from __future__ import annotations

import json

import pytest
import yaml

from privlm.report.model_card import model_card
from privlm.report.store import read_run

pytestmark = pytest.mark.torch_free

HEAD = "---\n"


@pytest.fixture
def card(tmp_path, make_run):
    def written(settings=None, **changes):
        folder = tmp_path / "exported"
        folder.mkdir()
        if settings is not None:
            (folder / "adapter_config.json").write_text(json.dumps(settings))
        return model_card(read_run(make_run(tmp_path / "runs", **changes)), folder)

    return written


def test_it_says_what_the_model_is_and_what_its_privacy_is(card):
    text = card(config={"model": {"name": "smollm2", "hub_id": "org/smol"}, "adapter": {"name": "lora"}})
    front = yaml.safe_load(text.split(HEAD)[1])
    assert front == {"base_model": "org/smol", "tags": ["privlm"]}
    for expected in (
        "adapter: lora",
        "data: sms_spam",
        "privacy: guarantee: (2.998, 1e-05)-differential privacy",
        "| accuracy |",
    ):
        assert expected in text
    assert "```" not in text  # of no adapter of peft


@pytest.mark.parametrize("method", ["LORA", "BOTTLENECK", "PRIVLM_BOTTLENECK"])
def test_it_says_how_an_adapter_is_loaded(card, method):
    text = card({"peft_type": method}, config={"model": {"name": "smollm2", "hub_id": "org/smol"}})
    assert yaml.safe_load(text.split(HEAD)[1])["library_name"] == "peft"
    assert 'AutoModelForCausalLM.from_pretrained("org/smol")' in text
    assert ("import privlm.adapters.bottleneck" in text) == (method != "LORA")


def test_it_does_not_say_where_files_lay(card):
    text = card(overrides=("task=ewtune", "data.path=/home/somebody/secret.tsv", "runs=/home/somebody/runs"))
    assert "somebody" not in text
    assert "privlm run task=ewtune" in text
