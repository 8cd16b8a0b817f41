import json
import subprocess
import sys

import pytest
import yaml
from support.runs import cell_of

from privlm import registry
from privlm.cli import tables
from privlm.cli.cells import cell_hasher
from privlm.cli.tables import main
from privlm.errors import UsageError
from privlm.report.table_file import parse_table, read_yaml

pytestmark = pytest.mark.torch_free

SPEC = {
    "kind": "runs", "title": "toy", "seeds": 1, "metric": "accuracy", "decimals": 3, "columns": {"accuracy": {}},
    "rows": [{"name": "eps 3", "run": ["task=ewtune", "privacy.epsilon=3"]}],
}  # fmt: skip


@pytest.fixture
def configs(tmp_path, monkeypatch):
    """A user's config folder with one table, whose cell is that of `make_run`."""
    monkeypatch.setattr(tables, "cell_hasher", lambda config_dirs: lambda overrides: cell_of("cell"))
    (tmp_path / "configs" / "table").mkdir(parents=True)
    (tmp_path / "configs" / "table" / "mine_toy.yaml").write_text(yaml.safe_dump(SPEC))
    return ["--config-dir", str(tmp_path / "configs")]


def test_lists_the_tables_with_titles(configs, capsys):
    assert main(configs) == 0
    out = capsys.readouterr().out
    assert "mine_toy" in out
    assert "toy" in out
    assert "ewtune_small" in out


def test_prints_a_table_of_a_store(configs, tmp_path, make_run, capsys):
    make_run(tmp_path / "runs")
    assert main(["mine_toy", *configs, "--runs", str(tmp_path / "runs"), "--format", "md"]) == 0
    assert "| eps 3 | 0.976 ± — | 1 of 1 | small |" in capsys.readouterr().out


def test_a_wide_table_stays_readable_in_80_columns(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["ewtune_small", "--runs", str(tmp_path)]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    start = lines.index(f"target ε{'':19}8")
    assert lines[start + 1 : start + 4] == [f"seeds{'':22}0 of 5", f"status{'':21}not run", ""]
    assert all(len(line) <= 80 for line in lines if not line.startswith("run: "))


def test_prints_each_of_several_tables_once(configs, tmp_path, make_run, capsys):
    make_run(tmp_path / "runs")
    (tmp_path / "configs" / "table" / "yours_toy.yaml").write_text(yaml.safe_dump(SPEC))
    assert main(["mine_toy", "yours_toy", "mine", *configs, "--runs", str(tmp_path / "runs"), "--json"]) == 0
    assert [table["name"] for table in json.loads(capsys.readouterr().out)] == ["mine_toy", "yours_toy"]


def test_a_task_names_all_of_its_tables(configs, tmp_path, make_run, capsys):
    make_run(tmp_path / "runs")
    assert main(["mine", *configs, "--runs", str(tmp_path / "runs"), "--json"]) == 0
    (table,) = json.loads(capsys.readouterr().out)
    assert table["name"] == "mine_toy"
    assert table["values"] == [{"row": "eps 3", "seeds": 1, "status": "small", "accuracy": 0.976, "accuracy_sd": None,
         "accuracy_interval": None}]  # fmt: skip


def test_an_unknown_table_is_refused_with_the_nearest(configs):
    with pytest.raises(UsageError, match="no table or task 'ewtune_smal'; did you mean ewtune_small"):
        main(["ewtune_smal", *configs])


def test_json_and_format_exclude_each_other(configs):
    with pytest.raises(UsageError, match="not both"):
        main(["mine_toy", *configs, "--json", "--format", "csv"])


def test_an_unknown_kind_is_refused(configs, tmp_path):
    (tmp_path / "configs" / "table" / "mine_toy.yaml").write_text("kind: run\ntitle: t\n")
    with pytest.raises(UsageError, match="kind must be"):
        main(["mine_toy", *configs])


def test_a_repeated_key_is_refused(configs, tmp_path):
    (tmp_path / "configs" / "table" / "mine_toy.yaml").write_text("kind: runs\ntitle: t\ntitle: u\n")
    with pytest.raises(UsageError, match="duplicate key title"):
        main(["mine_toy", *configs])


def shipped_runs_tables():
    return {
        name: spec
        for name, path in registry.config_files("table").items()
        if (spec := read_yaml(path))["kind"] == "runs"
    }


@pytest.mark.medium
def test_every_override_of_the_shipped_tables_composes():
    specs = shipped_runs_tables()
    assert "ewtune_small" in specs
    cells = [cell for name, spec in specs.items() for cell in parse_table(name, spec).cells]
    runs = {cell.run for cell in cells if cell.run is not None}
    cell_hash = cell_hasher([])
    assert len({cell_hash(list(run)) for run in runs}) == len(runs)


def test_a_thousand_runs_need_no_torch(tmp_path, make_run):
    for seed in range(1000):
        make_run(tmp_path, seed=seed)
    code = (
        "import sys; from privlm.report.store import find_runs; from pathlib import Path; import privlm.cli.tables\n"
        "import privlm.cli.show, privlm.cli.compare\n"
        "runs = find_runs(Path(sys.argv[1])).runs\n"
        "assert len({run.seed for run in runs}) == 1000\n"
        "assert not {'torch', 'transformers', 'matplotlib'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
