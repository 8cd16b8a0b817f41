import json

import pytest

from privlm.cli.show import main

pytestmark = pytest.mark.torch_free


def test_shows_a_run(tmp_path, make_run, capsys):
    path = make_run(tmp_path)
    assert main([path.name, "--runs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    headline = "guarantee: (2.998, 1e-05)-differential privacy per example"
    privacy = [headline, "edgeworth, order 2", "estimated ε", "not audited", "delta >= 1/N"]
    for fact in (path.name, "done", "accuracy", "0.976", *privacy, "train", "metrics.jsonl"):
        assert fact in out


def test_shows_a_run_that_failed(tmp_path, make_run, capsys):
    path = make_run(tmp_path, state="failed", status={"reason": "out of memory"})
    main([str(path)])
    assert "failed: out of memory" in capsys.readouterr().out


def test_shows_what_could_not_be_read(tmp_path, make_run, capsys):
    path = make_run(tmp_path)
    (path / "result.json").write_text("{")
    main([str(path)])
    assert "result.json cannot be read" in capsys.readouterr().out


def test_prints_strict_json(tmp_path, make_run, capsys):
    path = make_run(tmp_path, values={"loss": "nan"})
    main([str(path), "--json"])
    content = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert content["state"] == "done"
    assert content["privacy"]["epsilon"] == 2.998
    assert content["result"]["rows"][0]["value"] == "nan"


def test_no_colour_leaves_plain_text(tmp_path, make_run, capsys, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    main([str(make_run(tmp_path))])
    assert "\x1b[3" not in capsys.readouterr().out


def test_shows_the_marks_of_a_result(tmp_path, make_run, capsys):
    main([str(make_run(tmp_path, result={"marks": ["subset", "public-overlap"]}))])
    assert "marks: subset, public-overlap" in capsys.readouterr().out
