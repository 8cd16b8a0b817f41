"""Of two fields of which one leaves the other unread: what a user names is read, or the words are refused."""

import pytest
import yaml
from omegaconf import OmegaConf
from support.composed import composed

from privlm.cli.compose import Words, compose
from privlm.config import ModelConfig, defaults
from privlm.errors import UsageError
from privlm.models.locate import locate_model

pytestmark = pytest.mark.torch_free

PACKAGE = ("model.package", "model.package_folder")

WINS = [
    # words that name a source, and what is put out for it
    (("task=ewtune", "model=minilm", "model.hub_id=a/b"), ("model.package", "model.package_folder", "model.random")),
    (("task=ewtune", "model=tiny", "model.hub_id=a/b"), ("model.random",)),
    (("task=ewtune", "model=tiny", "model.package=p"), ("model.random",)),
    (("task=causal", "llm=smollm2", "llm.hub_id=a/b"), ("llm.package", "llm.gguf_file", "llm.random")),
    (("task=causal", "llm=tiny", "llm.hub_id=a/b"), ("llm.random",)),
    (("task=causal", "llm=tiny", "llm.package=p"), ("llm.random",)),
    (("task=llm_programs", "data=strategyqa_mini", "data.hub_id=a/b"), ("data.embedded",)),
    (("task=llm_programs", "data=strategyqa", "data.embedded=true"), ("data.hub_id",)),
]
"""A path goes before everything and puts nothing out: the same content elsewhere is the same cell."""

REFUSED = [
    ("task=ewtune", "model.path=x", "model.hub_id=a/b"),
    ("task=ewtune", "model.path=x", "model.package=p"),
    ("task=ewtune", "model.path=x", "model.sha256={config.json: abc}"),
    ("task=ewtune", "model=tiny", "model.path=x", "model.random.hidden_size=64"),
    ("task=ewtune", "model=tiny", "model.package=p", "model.random.hidden_size=64"),
    ("task=ewtune", "model=tiny", "model.hub_id=a/b", "model.random.hidden_size=64"),
    ("task=ewtune", "model.hub_id=a/b", "model.package=p"),
    ("task=causal", "llm=smollm2", "llm.path=x", "llm.hub_id=a/b"),
    ("task=causal", "llm=smollm2", "llm.path=x", "llm.gguf_file=y.gguf"),
    ("task=causal", "llm=smollm2", "llm.hub_id=a/b", "llm.gguf_file=y.gguf"),
    ("task=ewtune", "data=sst2", "data.path=x", "data.hub_id=a/b"),
    ("task=ewtune", "data=sst2", "data.path=x", "data.hub_config=cola"),
    ("task=llm_programs", "data=strategyqa", "data.path=x", "data.hub_id=a/b"),
    ("task=llm_programs", "data=strategyqa", "data.embedded=true", "data.hub_id=a/b"),
    ("task=llm_programs", "data=strategyqa", "data.path=x", "data.embedded=true"),
]

MEANINGLESS = [
    (("task=ewtune", "data=sms_spam", "data.hub_id=a/b"), "data.hub_id"),
    (("task=ewtune", "data=sms_spam", "data.hub_config=sst2"), "data.hub_config"),
    (("task=ewtune", "data=sst2", "data.hub_id=null"), "data.hub_config"),
    (("task=ewtune", "data.positive_label=junk"), "data.positive_label=junk"),
    (("task=ewtune", "data.labels=[spam]"), "data.labels"),
    (("task=ewtune", "data.labels=[spam,spam]"), "data.labels"),
    (("task=ewtune", "~data"), "~data"),
    (("task=ewtune", "~model"), "~model"),
    (("task=ewtune", "model.random={model_type: bert}"), "model.random={model_type: bert}"),
    (("task=ewtune", "hydra.sweeper.params={seed: '0,1'}"), "hydra.sweeper.params"),
]


@pytest.mark.parametrize(("words", "put_out"), WINS, ids=lambda value: value[-1])
def test_a_source_that_the_user_names_goes_before_what_is_configured(words, put_out):
    config = composed(*words)
    key, _, value = words[-1].partition("=")
    assert str(OmegaConf.select(config, key)).lower() == value
    assert not any(OmegaConf.select(config, other) for other in put_out)


@pytest.mark.parametrize("words", REFUSED, ids=lambda words: " ".join(words[1:]))
def test_two_sources_of_which_one_would_be_left_unread_are_refused(words):
    with pytest.raises(UsageError, match="one leaves the other without effect; give one of the two") as error:
        compose(Words(words))
    assert all(word.partition("=")[0].replace(".hidden_size", "") in str(error.value) for word in words[-2:])


@pytest.mark.parametrize(("words", "named"), MEANINGLESS, ids=lambda value: value if isinstance(value, str) else None)
def test_what_nothing_would_read_is_refused_by_name(words, named):
    with pytest.raises(UsageError) as error:
        compose(Words(words))
    assert named in str(error.value)
    assert len(str(error.value).splitlines()) <= 2


def test_a_path_leaves_the_cell_as_it_is_and_is_read_first():
    config = composed("task=ewtune", "model.path=/somewhere")
    assert config.model.package
    assert config.model.hub_id


@pytest.mark.parametrize(
    ("group", "base", "changes", "field"),
    [
        ("model", "minilm", {"hub_id": "a/b"}, "model.hub_id=a/b"),
        ("model", "minilm", {"package": "another_package"}, None),
        ("model", "tiny", {"hub_id": "a/b"}, "model.random"),
        ("model", "tiny", {"package": "p"}, "model.random"),
        ("model", "tiny", {"package": "p", "random": None}, None),
        ("data", "strategyqa_mini", {"hub_id": "a/b"}, "data.embedded"),
    ],
)
def test_a_yaml_that_starts_from_a_shipped_one_cannot_leave_its_own_field_unread(tmp_path, group, base, changes, field):
    (tmp_path / group).mkdir()
    head = "" if base != "tiny" else "# @package _global_\n"
    values = {"defaults": [base, "_self_"], **(changes if base != "tiny" else {"model": changes})}
    (tmp_path / group / "mine.yaml").write_text(head + yaml.safe_dump(values, sort_keys=False))
    task = "llm_programs" if group == "data" else "ewtune"
    words = Words((f"task={task}", f"{group}=mine", "scale=smoke"), (tmp_path,))
    if field is None:
        compose(words)
        return
    with pytest.raises(UsageError) as error:
        compose(words)
    assert field in str(error.value)


def test_library_users_are_not_given_the_package_under_another_repository():
    with pytest.raises(UsageError, match=r"model.package=null or model.hub_id=null"):
        locate_model(defaults(ModelConfig, "model", "minilm", hub_id="a/b"))


def test_params_of_a_sweep_in_a_yaml_of_the_user_are_expanded(tmp_path):
    from privlm.cli.compose import expand

    (tmp_path / "data").mkdir()
    values = {
        "defaults": ["/data/sms_spam@data", "_self_"],
        "hydra": {"sweeper": {"params": {"seed": "0,1", "privacy.epsilon": "1,3"}}},
    }
    text = "# @package _global_\n" + yaml.safe_dump(values, sort_keys=False)
    (tmp_path / "data" / "mine.yaml").write_text(text)
    words = Words(("task=ewtune", "scale=smoke", "data=mine"), (tmp_path,))
    runs = [run.overrides[-2:] for run in expand(words)]
    assert sorted(runs) == [(f"seed={s}", f"privacy.epsilon={e}") for s in (0, 1) for e in (1, 3)]
    given = expand(words.with_overrides([*words.overrides, "seed=7"]))
    assert [run.overrides[3:] for run in given] == [("seed=7", "privacy.epsilon=1"), ("seed=7", "privacy.epsilon=3")]
