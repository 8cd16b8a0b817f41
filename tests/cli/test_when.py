"""Recipes and their lines that fit one choice: what they set, who wins over them, and what they may not say."""

import subprocess
import sys

import pytest
import yaml
from support.composed import composed, composition

from privlm import registry
from privlm.cli import starting
from privlm.cli.compose import Words, compose, composer, expand
from privlm.cli.when import read_lines, values_of
from privlm.errors import UsageError

pytestmark = pytest.mark.torch_free

PRESETS = {
    "smoke": {
        "head": ("sgd", 0.5, {}, 20, None, "constant", 1024, None),
        "lora": ("adamw", 3e-3, {}, 20, None, "linear", 32, None),
        "rgp": ("adamw", 5e-3, {}, 20, None, "linear", 32, "train"),
        "full": ("adamw", 1e-3, {}, 20, None, "linear", 32, None),
    },
    "small": {
        "head": ("sgd", 8.0, {}, 160, None, "constant", 1024, None),
        "lora": ("adamw", 1e-2, {}, 60, None, "linear", 32, None),
        "rgp": ("adamw", 5e-4, {"head": 1e-2}, 60, None, "linear", 32, "freeze"),
        "full": ("adamw", 5e-4, {"head": 2e-2}, 60, None, "linear", 32, None),
    },
    "paper": {
        "head": ("sgd", 1.0, {}, None, 50, "constant", 1024, None),
        "lora": ("adamw", 3e-4, {}, None, 50, "constant", 32, None),
        "rgp": ("adamw", 3e-4, {}, None, 50, "constant", 32, "train"),
        "full": ("adamw", 5e-4, {}, None, 50, "linear", 32, None),
    },
}
"""Optimizer, learning rate, others, steps, epochs, schedule, micro-batch and RGP's other parameters of ewtune."""

SETTINGS = {
    "rgp": {"batch_size": 2000, "epochs": 50, "delta": 1e-5, "clipping_norm": 10, "allow_large_delta": True},
    "li": {"batch_size": 1000, "epochs": 3, "delta": "1/2N", "clipping_norm": 0.1, "allow_large_delta": False},
}
"""The published settings of the paper's recipe."""


@pytest.mark.parametrize(("scale", "adapter"), [(scale, adapter) for scale in PRESETS for adapter in PRESETS[scale]])
def test_every_adapter_has_its_settings_at_every_scale(scale, adapter):
    config = composed("task=ewtune", f"scale={scale}", f"adapter={adapter}")
    keys = ("optimizer", "learning_rate", "learning_rates", "steps", "epochs", "schedule", "micro_batch_size")
    assert (*(config.trainer[key] for key in keys), config.adapter.other_params) == PRESETS[scale][adapter]


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_published_setting_is_its_batch_and_budget(setting):
    config = composed("task=ewtune", "scale=paper", f"task.setting={setting}")
    found = {**config.trainer, **config.privacy}
    assert {key: found[key] for key in SETTINGS[setting]} == SETTINGS[setting]
    assert config.privacy.epsilon == 8


@pytest.mark.parametrize(
    ("words", "examples"),
    [(("scale=small",), None), (("scale=small", "data=sst2"), 4000), (("scale=smoke", "data=sst2"), 512)],
)
def test_how_many_examples_train_depends_on_scale_and_data(words, examples):
    assert composed("task=ewtune", *words).data.max_train_examples == examples


def test_the_lines_that_apply_are_named_and_when_itself_is_gone(capsys, tmp_path):
    run = composition("task=ewtune", "scale=paper", "task.setting=li", "adapter=full")
    assert run.lines == ("adapter=full", "task.setting=li")
    assert "when" not in run.config
    starting._introduce(run, tmp_path, restarts=0)
    assert capsys.readouterr().err.splitlines()[0].endswith(", when adapter=full, when task.setting=li")


def test_a_recipe_without_lines_says_nothing_of_them(capsys, tmp_path):
    run = composition("task=causal")
    assert run.lines is None
    starting._introduce(run, tmp_path, restarts=0)
    assert "when" not in capsys.readouterr().err


def test_each_run_of_a_sweep_has_the_lines_of_its_own_choice():
    runs = [compose(words) for words in expand(Words(("task=ewtune", "scale=smoke", "adapter=head,lora")))]
    assert [(run.lines, run.config.trainer.learning_rate) for run in runs] == [
        (("adapter=head",), 0.5),
        (("adapter=lora",), 3e-3),
    ]


def test_hydra_prints_what_the_lines_set_and_not_the_lines():
    command = [sys.executable, "-m", "privlm", "run", "task=ewtune", "adapter=lora", "--cfg", "job"]
    config = yaml.safe_load(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert config["trainer"]["learning_rate"] == 1e-2
    assert "when" not in config


# --- a recipe of the user's own -------------------------------------------------------------------------------------


@pytest.fixture
def with_when(tmp_path):
    """Composes `task=ewtune scale=smoke WORDS` where the recipe has the lines given."""

    def compose_with(lines, *words, body="", name="config"):
        (tmp_path / "recipe").mkdir(exist_ok=True)
        shipped = registry.config_files("recipe")["ewtune_smoke"].read_text()
        text = shipped.partition("\nwhen:")[0] + "\n" + yaml.safe_dump({"when": lines})
        (tmp_path / "recipe" / "ewtune_smoke.yaml").write_text(text)
        (tmp_path / "mine.yaml").write_text(f"defaults:\n  - config\n  - _self_\n{body}")
        return compose(Words(("task=ewtune", "scale=smoke", *words), (tmp_path,), name))

    return compose_with


LINES = {"adapter=head": "trainer.learning_rate=2 trainer.learning_rates={head: 0.5, encoder: 0.1} trainer.steps=5"}


def test_a_line_wins_over_the_recipe_the_users_yaml_over_it_and_the_words_over_all(with_when):
    assert with_when(LINES).config.trainer.learning_rate == 2
    assert with_when(LINES).config.trainer.learning_rates == {"head": 0.5, "encoder": 0.1}
    body = "trainer: {learning_rate: 3, steps: 7}\n"
    mine = with_when(LINES, body=body, name="mine").config.trainer
    assert (mine.learning_rate, mine.steps, mine.learning_rates.head) == (3, 7, 0.5)
    word = with_when(LINES, "trainer.learning_rate=4", body=body, name="mine").config.trainer
    assert (word.learning_rate, word.steps) == (4, 7)


def test_a_condition_reads_what_the_users_yaml_chooses(with_when):
    lines = {"task.setting=li": "trainer.steps=5"}
    assert with_when(lines).lines == ()
    assert with_when(lines, body="task: {setting: li}\n", name="mine").lines == ("task.setting=li",)


def test_all_words_of_a_condition_must_hold(with_when):
    lines = {"adapter=head data.format=sms": "trainer.steps=5", "adapter=head data.format=glue": "trainer.steps=6"}
    assert with_when(lines).config.trainer.steps == 5
    assert with_when(lines, "data=sst2").config.trainer.steps == 6
    assert with_when(lines, "adapter=lora").lines == ()


def test_a_key_that_the_run_does_not_have_does_not_hold(with_when):
    assert with_when({"llm.backend=local": "trainer.steps=5"}).lines == ()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ({"adaptor=head": "trainer.steps=1"}, "when adaptor=head: no key 'adaptor'; did you mean 'adapter'"),
        ({"adapter=heads": "trainer.steps=1"}, "when adapter=heads: no adapter 'heads'; did you mean 'head'"),
        ({"task.seting=li": "trainer.steps=1"}, "no key 'task.seting'; did you mean 'task.setting'"),
        ({"data.format=gleu": "trainer.steps=1"}, "data.format: 'gleu' is not one of glue, sms; did you mean 'glue'"),
        ({"adapter=head adapter=lora": "trainer.steps=1"}, "it names one key twice"),
        ({"adapter=head": "trainer.step=1"}, r"no key 'trainer\.step'; did you mean 'trainer\.steps'"),
        ({"adapter=head": "model=minilm"}, "when adapter=head: model is a group: choose it"),
        ({"adapter=head": "adapter.name=lora"}, "adapter.name is read by a condition"),
        ({"adapter=head": "task.setting=li", "task.setting=li": "trainer.steps=1"}, "task.setting is read by a cond"),
        ({"adapter=head": "~trainer.steps"}, "'~trainer.steps' must be KEY=VALUE"),
        ({"adapter=head": "trainer.steps=1,2"}, "'trainer.steps=1,2' must be KEY=VALUE"),
        ({"adapter=head": "trainer.steps"}, "cannot read 'trainer.steps'; write KEY=VALUE"),
        (
            {"adapter=head": "trainer.steps=1", "data.format=sms": "trainer.epochs=1 trainer.steps=2"},
            "when adapter=head and when data.format=sms both apply and set trainer.steps",
        ),
        (
            {"adapter=head": "trainer.learning_rates={a: 1}", "data.format=sms": "trainer.learning_rates.a=2"},
            "both apply and set trainer.learning_rates.a",
        ),
    ],
)
def test_what_a_line_may_not_say_is_named(lines, message):
    config = composed("task=ewtune", "scale=smoke")
    with composer(), pytest.raises(UsageError, match=message):
        values_of(read_lines(lines, config))


def test_a_line_is_checked_as_any_other_value(with_when):
    with pytest.raises(UsageError, match=r"trainer\.optimizer: 'adam' is not one of"):
        with_when({"adapter=head": "trainer.optimizer=adam"})
    with pytest.raises(UsageError, match=r"when adapter=head: .*'many' of type 'str'"):
        with_when({"adapter=head": "trainer.steps=many"})


def test_lines_that_never_apply_together_may_set_one_key(with_when):
    lines = {"adapter=head": "trainer.steps=1", "adapter=lora": "trainer.steps=2"}
    assert with_when(lines).config.trainer.steps == 1
