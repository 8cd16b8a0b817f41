import pytest
from omegaconf import OmegaConf

from privlm.report import resolved
from privlm.report.resolved import read_config

pytestmark = pytest.mark.torch_free

TEXTS = [
    "a: 1e-4\nb: 1_000\nc: 1.5\nd: .inf\ne: -3\nf: 0o7\ng: 012\nh: 1:30\n",
    "a: 2020-01-01\nb: yes\nc: null\nd: ~\ne: 'x'\nf: true\ng: 1e5\nh: 1.e+3\n",
    "1: a\nlist: [1, [2, {x: y}], {}]\nempty: {}\nnone:\n",
    "text: |\n  two\n  lines\nfolded: >\n  one\n  line\nunicode: äε\n",
    "base: &b {x: 1}\nother: *b\n",
    "a: 2\nb: ${a}\nc: x${a}y\n",
    "a: ???\n",
    "- 1\n- 2\n",
    "word\n",
    "",
]
BROKEN = ["a: 1\na: 2\n", "a: [1\n", "a: ${nowhere}\n", "a: \x00\n", "a: !!python/name:os.system x\n"]


def read(path, how):
    try:
        return repr(how(path))
    except Exception as error:
        return type(error).__name__


def slowly(path):
    return OmegaConf.to_container(OmegaConf.load(path), resolve=True)


@pytest.mark.parametrize("text", TEXTS)
def test_a_configuration_is_read_as_omegaconf_reads_it(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    assert read(path, read_config) == read(path, slowly)


@pytest.mark.parametrize("text", BROKEN)
def test_what_omegaconf_refuses_is_refused(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    assert read(path, slowly).endswith("Error")
    assert read(path, read_config).endswith("Error")


def test_without_libyaml_it_is_slower_and_no_different(tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    path.write_text(TEXTS[0])
    fast = repr(read_config(path))
    monkeypatch.setattr(resolved, "_loader", lambda: None)
    assert repr(read_config(path)) == fast


def test_the_fast_road_is_taken(tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    path.write_text(TEXTS[0])
    monkeypatch.setattr(OmegaConf, "load", lambda path: pytest.fail("read by OmegaConf"))
    assert read_config(path)["a"] == 1e-4
