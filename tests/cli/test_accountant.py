"""`privlm accountant`: answers on stdout, refusals that name the option."""

import json
import math
import subprocess
import sys

import pytest

from privlm.cli.accountant import main
from privlm.errors import UsageError
from privlm.privacy import accounting

pytestmark = pytest.mark.torch_free

SST2 = ["--batch-size", "1000", "--dataset-size", "67349", "--epochs", "3", "--delta", "1/2N"]
PLAIN = ["--sample-rate", "0.01", "--steps", "100", "--delta", "1e-5"]


def answer(capsys, *argv):
    assert main([*argv, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out, parse_constant=lambda constant: pytest.fail(f"{constant} is not strict JSON"))


def test_eps_equals_the_library(capsys):
    found = answer(capsys, "eps", *SST2, "--noise-multiplier", "0.6")
    segment = accounting.Segment(1000 / 67349, 0.6, 203)
    assert found["epsilon"] == accounting.epsilon([segment], 0.5 / 67349).epsilon
    assert found["guarantee"] is True
    assert found["segments"] == [{"sampling_rate": 1000 / 67349, "noise_multiplier": 0.6, "steps": 203}]
    assert any("within a factor 10 of 1/N" in note for note in found["notes"])


def test_sigma_of_an_estimate_carries_its_certified_price(capsys):
    found = answer(capsys, "sigma", *SST2, "--epsilon", "8", "--accountant", "edgeworth")
    assert found["noise_multiplier"] == pytest.approx(0.4915, abs=5e-4)
    assert found["epsilon"] == pytest.approx(8, abs=1e-3)
    assert found["certified_pld"] == pytest.approx(10.76, abs=0.02)
    assert found["guarantee"] is False
    assert found["order"] == 2


def test_directions_and_orders(capsys):
    setting = ["eps", *PLAIN, "--noise-multiplier", "4"]
    both, add, remove = (answer(capsys, *setting, "--direction", d)["epsilon"] for d in ("both", "add", "remove"))
    assert both == max(add, remove) > min(add, remove)
    orders = [answer(capsys, *setting, "--accountant", "edgeworth", "--order", str(k)) for k in range(4)]
    assert [o["order"] for o in orders] == [0, 1, 2, 3]
    assert len({o["epsilon"] for o in orders}) == 4
    assert {o["certified_pld"] for o in orders} == {both}


def test_an_estimate_carries_its_interval(capsys):
    setting = ["eps", "--sample-rate", "0.0015625", "--noise-multiplier", "0.8", "--steps", "65536", "--delta"]
    found = answer(capsys, *setting, "0.1", "--accountant", "edgeworth")
    assert (found["eeai_lower"], found["eeai_upper"]) == pytest.approx((0.2603, 1.6068), abs=1e-3)
    assert answer(capsys, *setting, "1e-5", "--accountant", "edgeworth")["eeai_upper"] == "inf"
    main([*setting, "1e-5", "--accountant", "edgeworth"])
    assert ", inf]" in capsys.readouterr().out


def test_a_cross_check_states_its_error(capsys):
    found = answer(capsys, "eps", *SST2, "--noise-multiplier", "0.6", "--accountant", "contour")
    assert found["guarantee"] is False
    assert found["certified_pld"] - 1e-4 <= found["epsilon"] <= found["certified_pld"]
    assert any(note.startswith("estimated quadrature error") for note in found["notes"])


def test_steps_and_batch_undo_sigma(capsys):
    sigma = str(answer(capsys, "sigma", *SST2, "--epsilon", "3")["noise_multiplier"])
    budget = ["--epsilon", "3", "--noise-multiplier", sigma, "--dataset-size", "67349", "--delta", "1/2N"]
    steps = answer(capsys, "steps", "--batch-size", "1000", *budget)
    batch = answer(capsys, "batch", "--epochs", "3", *budget)
    assert abs(steps["steps"] - 203) <= 1
    assert abs(batch["batch_size"] - 1000) <= 5
    assert steps["guarantee"] is batch["guarantee"] is True
    assert max(steps["epsilon"], batch["epsilon"]) <= 3
    main(["batch", "--epochs", "3", *budget])
    assert capsys.readouterr().out.startswith(f"batch size {batch['batch_size']}\nepsilon ")


def test_no_noise_costs_inf(capsys):
    assert answer(capsys, "eps", *PLAIN, "--noise-multiplier", "0")["epsilon"] == "inf"
    assert main(["eps", *PLAIN, "--noise-multiplier", "0"]) == 0
    assert "epsilon inf" in capsys.readouterr().out


def test_all_accountants_side_by_side(capsys):
    found = answer(capsys, "eps", *PLAIN, "--noise-multiplier", "4", "--all")
    assert [(a["accountant"], a["order"]) for a in found] == [
        *(("pld", None), ("rdp", None), ("prv", None), ("gdp", None)),
        *(("edgeworth", 1), ("edgeworth", 2), ("edgeworth", 3)),
        ("contour", None),
    ]
    assert {a["certified_pld"] for a in found if not a["guarantee"]} == {found[0]["epsilon"]}


def test_a_cross_check_that_refuses_is_a_note(capsys):
    one_step = ["eps", "--sample-rate", "0.01", "--steps", "1", "--noise-multiplier", "1", "--delta", "1e-5"]
    found = answer(capsys, *one_step, "--all")
    assert "contour" not in {a["accountant"] for a in found}
    assert any(note.startswith("accountant contour: ") for note in found[0]["notes"])
    with pytest.raises(UsageError, match="accountant contour"):
        main([*one_step, "--accountant", "contour"])


@pytest.mark.medium
def test_the_noise_of_all_accountants_side_by_side(capsys):
    assert main(["sigma", *PLAIN, "--epsilon", "0.1", "--all"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows if row.rstrip().endswith(" certified")] == ["pld", "rdp", "prv"]
    assert [row.split()[0] for row in rows if row.rstrip().endswith(" not a guarantee")] == [
        *("gdp", "edgeworth", "edgeworth", "edgeworth", "contour")
    ]


def test_text_promises_no_more_than_was_computed(capsys):
    found = answer(capsys, "sigma", *PLAIN, "--epsilon", "0.1")
    assert main(["sigma", *PLAIN, "--epsilon", "0.1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert float(lines[0].removeprefix("noise multiplier ")) >= found["noise_multiplier"]
    assert float(lines[1].removeprefix("epsilon ")) >= found["epsilon"]
    assert lines[2].startswith("certified (pld, dp-accounting")
    assert "adjacency add_remove, direction both" in lines[3]
    assert lines[4] == "note: delta not checked against 1/N: no --dataset-size"
    main(["eps", *PLAIN, "--noise-multiplier", "4", "--accountant", "edgeworth"])
    text = capsys.readouterr().out
    assert "not a guarantee (edgeworth order 2" in text
    assert "certified by pld: epsilon" in text


def test_replace_one_is_printed(capsys):
    run = ["--sample-rate", "1", "--steps", "100", "--noise-multiplier", "10", "--delta", "1e-5"]
    main(["eps", *run, "--adjacency", "replace_one"])
    text = capsys.readouterr().out
    assert "epsilon 9.9973" in text
    assert "adjacency replace_one" in text


def test_large_delta_can_be_accepted(capsys):
    large = [
        "eps",
        "--batch-size",
        "10",
        "--dataset-size",
        "1000",
        "--steps",
        "5",
        "--noise-multiplier",
        "1",
        "--delta",
    ]
    found = answer(capsys, *large, "0.01", "--allow-large-delta")
    assert any(note.startswith("delta >= 1/N") for note in found["notes"])


SIZES = ["--batch-size", "10", "--dataset-size", "1000"]
TAIL = ["--noise-multiplier", "1", "--delta", "1e-5"]


@pytest.mark.parametrize(
    ("argv", "option"),
    [
        ([], "{eps,sigma,steps,batch,curve,ledger}"),
        (["epsilon"], "epsilon"),
        (["eps", *SIZES, "--steps", "5", "--noise-multiplier", "1"], "--delta"),
        (["eps", *SIZES, "--steps", "5", "--noise-multiplier", "1", "--delta", "1.5"], "--delta"),
        (["eps", *SIZES, "--steps", "5", "--noise-multiplier", "1", "--delta", "0"], "--delta"),
        (["eps", *SIZES, "--steps", "5", "--noise-multiplier", "1", "--delta", "nan"], "--delta"),
        (["eps", *SIZES, "--steps", "5", "--noise-multiplier", "1", "--delta", "1/N"], "--delta"),
        (["eps", *SIZES, "--steps", "5", "--noise-multiplier", "1", "--delta", "1e-3"], "--allow-large-delta"),
        (["eps", "--sample-rate", "0.1", "--steps", "5", "--noise-multiplier", "1", "--delta", "1/2N"], "--delta"),
        (["eps", *SIZES, "--steps", "5", "--noise-multiplier", "-1", "--delta", "1e-5"], "--noise-multiplier"),
        (["eps", *SIZES, "--steps", "5", "--noise-multiplier", "nan", "--delta", "1e-5"], "--noise-multiplier"),
        (["eps", *SIZES, "--steps", "5", "--delta", "1e-5"], "--noise-multiplier"),
        (["eps", "--sample-rate", "1.5", "--steps", "5", *TAIL], "--sample-rate"),
        (["eps", "--sample-rate", "nan", "--steps", "5", *TAIL], "--sample-rate"),
        (["eps", "--sample-rate", "0.1", "--batch-size", "10", "--steps", "5", *TAIL], "--sample-rate"),
        (["eps", "--steps", "5", *TAIL], "--sample-rate --batch-size"),
        (["eps", "--batch-size", "10", "--steps", "5", *TAIL], "--dataset-size"),
        (["eps", "--batch-size", "2000", "--dataset-size", "1000", "--steps", "5", *TAIL], "--batch-size 2000 exceeds"),
        (["eps", "--batch-size", "10", "--dataset-size", "0", "--steps", "5", *TAIL], "--dataset-size"),
        (["eps", *SIZES, "--steps", "5", "--epochs", "1", *TAIL], "--epochs"),
        (["eps", *SIZES, *TAIL], "--steps --epochs"),
        (["eps", *SIZES, "--steps", "-5", *TAIL], "--steps"),
        (["eps", *SIZES, "--steps", "2.5", *TAIL], "--steps"),
        (["eps", *SIZES, "--epochs", "1/0", *TAIL], "--epochs"),
        (["eps", "--sample-rate", "0.1", "--epochs", "1", *TAIL], "--epochs"),
        (["eps", *SIZES, "--steps", "5", *TAIL, "--accountant", "moments"], "--accountant"),
        (["eps", *SIZES, "--steps", "5", *TAIL, "--accountant", "edgeworth", "--order", "4"], "--order"),
        (["eps", *SIZES, "--steps", "5", *TAIL, "--order", "2"], "--order"),
        (["eps", *SIZES, "--steps", "5", *TAIL, "--accountant", "rdp", "--direction", "add"], "direction"),
        (["eps", *SIZES, "--steps", "5", *TAIL, "--adjacency", "user"], "--adjacency"),
        (["sigma", *SIZES, "--steps", "5", "--delta", "1e-5"], "--epsilon"),
        (["steps", *SIZES, *TAIL], "--epsilon"),
        (["steps", *SIZES, *TAIL, "--epsilon", "1", "--steps", "5"], "--steps"),
        (["steps", *SIZES, *TAIL, "--epsilon", "1", "--all"], "--all"),
        (["batch", "--steps", "5", *TAIL, "--epsilon", "1"], "--dataset-size"),
        (["batch", "--dataset-size", "10", *TAIL, "--epsilon", "1"], "--steps --epochs"),
        (["curve", *SIZES, "--steps", "5", *TAIL], "--output"),
        (["curve", *SIZES, "--steps", "5", *TAIL, "--output", "curve.pdf"], ".png or .svg"),
        (["curve", *SIZES, "--steps", "5", *TAIL, "--output", "nowhere/curve.png"], "--output: no folder nowhere"),
        (["curve", *SIZES, "--steps", "0", *TAIL, "--output", "curve.png"], "--steps"),
        (["ledger"], "RUN"),
        (["sigma", *SIZES, "--steps", "5", "--delta", "1e-5", "--epsilon", "0"], "--epsilon"),
        (["sigma", *SIZES, "--steps", "5", "--delta", "1e-5", "--epsilon", "inf"], "--epsilon"),
        (["sigma", "--sample-rate", "1", "--steps", "1000000", "--delta", "1e-9", "--epsilon", "1e-3"], "epsilon"),
    ],
)
def test_bad_input_names_the_option(argv, option, capsys):
    with pytest.raises(UsageError) as refusal:
        main(argv)
    assert option in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert refusal.value.exit_code == 2
    assert capsys.readouterr().out == ""


def test_help_teaches_without_loading_the_accountants():
    code = (
        "import sys\nfrom privlm.cli.accountant import main\n"
        "try:\n    main(['sigma', '--help'])\nexcept SystemExit as done:\n    assert not done.code\n"
        "print({'torch', 'dp_accounting', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "privlm accountant sigma --sample-rate" in done.stdout
    assert done.stdout.endswith("set()\n")


def test_accounting_needs_no_torch():
    code = "import sys\nfrom privlm.cli.accountant import main\nmain(sys.argv[1:])\nassert 'torch' not in sys.modules"
    argv = ["eps", *PLAIN, "--noise-multiplier", "4", "--all", "--json"]
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True)
    assert all(math.isfinite(answer["epsilon"]) for answer in json.loads(done.stdout))
    assert done.stderr == ""


def test_the_options_are_those_of_the_library(capsys):
    with pytest.raises(SystemExit):
        main(["eps", "--help"])
    text = capsys.readouterr().out
    assert f"{{{','.join(accounting.ACCOUNTANTS + accounting.CROSS_CHECKS)}}}" in text
    assert f"{{{','.join(accounting.ADJACENCIES)}}}" in text
    assert f"{{{','.join(accounting.DIRECTIONS)}}}" in text
    assert f"{{{','.join(map(str, accounting.ORDERS))}}}" in text
