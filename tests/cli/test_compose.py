"""The shipped YAML files, and who decides when several of them have a say."""

import dataclasses
import itertools
import re
import shlex

import pytest
from omegaconf import OmegaConf
from support.composed import composed as chosen
from support.composed import composition

from privlm import config as core
from privlm import registry
from privlm.cli.compose import GROUPS, Words, compose, expand, options
from privlm.config import configs_dir
from privlm.errors import UsageError

pytestmark = pytest.mark.torch_free

CONFIGS = configs_dir()
FILES = {str(path.relative_to(CONFIGS).with_suffix("")): path for path in sorted(CONFIGS.rglob("*.yaml"))}
OPTIONS = [
    (group, path.stem)
    for group in GROUPS
    for path in FILES.values()
    if path.parent.name == group and group not in ("task", "scale")
]
RECIPES = [path.stem for path in FILES.values() if path.parent.name == "recipe"]


def opening_comment(path):
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return " ".join(line.removeprefix("#").strip() for line in lines if not line.startswith("# @package"))


def advertised(path):
    """The words of the command in a file's opening comment. TASK: of data that tasks of several kinds may take."""
    words = re.search(r"`privlm run ([^`]*)`", opening_comment(path))[1]
    return shlex.split(words.replace("task=TASK", "task=ewtune scale=smoke"))


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_by_the_command_that_it_names(group, option):
    words = advertised(FILES[f"{group}/{option}"])
    if any(word.startswith("federated=") for word in words) and not any(group == "federated" for group, _ in OPTIONS):
        pytest.skip("no task has clients yet")
    assert chosen(*words)[group] == chosen(*dict.fromkeys([*words, f"{group}={option}"]))[group]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_composes_by_the_command_that_it_names(recipe):
    task, _, scale = recipe.rpartition("_")
    config = chosen(*advertised(FILES[f"recipe/{recipe}"]))
    assert (config.task.name, config.scale) == (task, scale)


def test_every_task_has_its_three_scales():
    shipped = {task.name for task in registry.tasks().values() if task.config_dir is None}
    assert set(RECIPES) == {f"{task}_{scale}" for task in shipped for scale in ("smoke", "small", "paper")}


@pytest.mark.parametrize("name", FILES)
def test_every_file_opens_with_what_it_is_and_a_command(name):
    assert re.search(r"privlm (run|tables|sweep) ", opening_comment(FILES[name]))


def written_keys(group):
    """Keys of a group's files, which a file of the package `_global_` holds below the group's name."""
    contents = [OmegaConf.load(path) for path in FILES.values() if path.parent.name == group]
    return {key for content in contents for key in content.get(group, content)}


SCHEMAS = [
    *((group, schema) for group, by_name in core.SCHEMAS.items() if group != "run" for schema in by_name.values()),
    *(("task", task.config_module().Task) for task in registry.tasks().values() if task.config_dir is None),
]


@pytest.mark.parametrize(("group", "schema"), SCHEMAS, ids=lambda value: getattr(value, "__name__", value))
def test_every_field_has_its_value_in_a_file(group, schema):
    """No default hides in a dataclass, but where a task stops, nowhere, and what a user's own file need not say: what a
    name is known by, what is null because it is a setting of another adapter, that weights are not packed, and that a
    model which is asked continues texts.
    """
    names = {field.name for field in dataclasses.fields(schema)} - ({"until"} if group == "task" else set())
    assert names <= written_keys(group)
    may_be_left_out = (
        {"known", "quantization"}
        | ({"family"} if group == "llm" else set())
        | {field.name for field in dataclasses.fields(schema) if group == "adapter" and field.default is None}
    )
    assert OmegaConf.missing_keys(OmegaConf.structured(schema)) == names - may_be_left_out


def test_schemas_are_no_options():
    for group in GROUPS:
        assert options(group) == sorted(path.stem for path in FILES.values() if path.parent.name == group)


def test_a_model_brings_its_natural_scale_and_the_recipe_its_data():
    run = composition("task=ewtune", "model=roberta")
    assert (run.config.scale, run.config.data.name, run.config.adapter.name) == ("paper", "sst2", "rgp")
    assert run.chosen_by["scale"] == "paper (natural to model=roberta)"
    assert run.chosen_by["data"] == "sst2 (recipe)"
    assert run.chosen_by["model"] == "roberta (given)"
    assert "recipe=ewtune_paper" in run.words.overrides


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("trainer.batch_size=7", "trainer.batch_size", 7),
        ("data=sms_spam", "data.name", "sms_spam"),
        ("scale=small", "scale", "small"),
        ("privacy.epsilon=1", "privacy.epsilon", 1.0),
        ("adapter=full", "adapter.name", "full"),
    ],
)
def test_the_command_line_wins(word, key, value):
    assert OmegaConf.select(chosen("task=ewtune", "model=roberta", word), key) == value


@pytest.mark.parametrize("rates", [{}, {"classifier": 0.5}])
def test_a_mapping_takes_new_names_over_those_of_the_recipe(rates):
    words = ("task=ewtune", "adapter=rgp", f"trainer.learning_rates={rates}".replace("'", ""))
    assert chosen(*words).trainer.learning_rates == rates


def test_a_mapping_of_a_misspelt_key_is_refused():
    with pytest.raises(UsageError, match=r"no key 'trainer\.lerning_rates'; did you mean 'trainer\.learning_rates'"):
        chosen("task=ewtune", "trainer.lerning_rates={head: 0.5}")


def test_a_recipe_of_another_scale_can_be_asked_for():
    config = chosen("task=ewtune", "recipe=ewtune_smoke")
    assert (config.scale, config.trainer.batch_size, config.data.max_train_examples) == ("smoke", 32, 512)


def test_a_task_without_the_recipe_of_a_scale_says_which_it_has(tmp_path):
    (tmp_path / "scale").mkdir()
    (tmp_path / "scale" / "huge.yaml").write_text("# @package _global_\nscale: huge\n")
    with pytest.raises(UsageError, match="no recipe for scale=huge; it has paper, small, smoke"):
        compose(Words(("task=ewtune", "scale=huge"), (tmp_path,)))


def test_the_composed_configuration_is_resolved_and_read_only():
    config = chosen("task=ewtune", "adapter=lora")
    assert config.trainer.optimizer == "adamw"
    assert "${" not in OmegaConf.to_yaml(config)
    assert OmegaConf.is_readonly(config)
    assert set(config) == {field.name for field in dataclasses.fields(core.Config)} - {"when", "sweep"}


def test_a_sweep_expands_to_its_product():
    runs = expand(Words(("task=ewtune", "privacy.epsilon=1,3", "seed=range(0,3)")))
    assert len({run.overrides for run in runs}) == 6
    assert {compose(run).config.seed for run in runs[:3]} == {0, 1, 2}


def test_composing_twice_gives_the_same():
    words = Words(("task=ewtune", "model=tiny"))
    assert compose(words).config == compose(words).config


@pytest.mark.parametrize(
    ("given", "other"),
    [("trainer.steps=2", "trainer.epochs"), ("trainer.epochs=2", "trainer.steps"),
     ("privacy.noise_multiplier=1.0", "privacy.epsilon"), ("privacy.epsilon=1", "privacy.noise_multiplier")],
)  # fmt: skip
def test_of_two_fields_that_stand_for_one_another_the_one_given_puts_out_that_of_the_recipe(given, other):
    for model in ("roberta", "minilm"):  # recipes of epochs and of steps
        words = composition("task=ewtune", f"model={model}", given)
        assert OmegaConf.select(words.config, other) is None
        assert f"{other}=null" in words.words.overrides
