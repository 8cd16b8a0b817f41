"""What a sweep makes of combinations that are one run."""

import pytest

from privlm.cli import compose, main
from privlm.cli.compose import Words

pytestmark = pytest.mark.torch_free


@pytest.mark.parametrize("values", ["seed=0,0,1", "seed=0,1,00"])
def test_equal_combinations_are_one_run(values, tmp_path, capsys):
    assert main(["sweep", "task=ewtune", "model=tiny", values, f"runs={tmp_path}", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert sorted(line.partition("seed")[2][:1] for line in out.splitlines()) == ["0", "1"]
    assert "1 of 3 combinations repeat a run of this sweep; each run counts once" in err


def test_runs_that_differ_in_the_seed_alone_are_composed_twice_and_come_out_as_if_each_were(monkeypatch, tmp_path):
    words = [
        Words(("task=ewtune", "model=tiny", f"privacy.epsilon={e}", f"seed={s}")) for e in (1, 3) for s in range(4)
    ]
    each = [compose.compose(one) for one in words]
    calls = []
    original = compose.compose
    monkeypatch.setattr(compose, "compose", lambda one: calls.append(one) or original(one))
    together = compose.compose_all(words)
    assert len(calls) == 4
    assert [one.config for one in together] == [one.config for one in each]
    assert [set(one.words.overrides) for one in together] == [set(one.words.overrides) for one in each]
    (tmp_path / "mine.yaml").write_text("defaults: [config, _self_]\nruns: runs/${seed}\n")
    depends = [Words((*one.overrides,), (tmp_path,), "mine") for one in words[:4]]
    assert [one.config.runs for one in compose.compose_all(depends)] == [f"runs/{seed}" for seed in range(4)]
