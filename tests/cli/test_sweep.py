"""What a sweep makes of combinations that are one run."""

import pytest

from privlm.cli import main

pytestmark = pytest.mark.torch_free


@pytest.mark.parametrize("values", ["seed=0,0,1", "seed=0,1,00"])
def test_equal_combinations_are_one_run(values, tmp_path, capsys):
    assert main(["sweep", "task=ewtune", "model=tiny", values, f"runs={tmp_path}", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert sorted(line.partition("seed")[2][:1] for line in out.splitlines()) == ["0", "1"]
    assert "1 of 3 combinations repeat a run of this sweep; each run counts once" in err
