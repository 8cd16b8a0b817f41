import json
import math

import pytest

from privlm.report.render import FORMATS, console, line_width, print_table, to_json
from privlm.report.table import Table

pytestmark = pytest.mark.torch_free

TABLE = Table(
    name="toy",
    title="A & B",
    columns=["method", "ε ≤ 3"],
    rows=[["ours|1", "0.976 ± 0.002"], ["50 %_x", "—"]],
    notes=["<b> is no tag"],
    values=[{"row": "ours|1", "mean": 0.9761234, "sd": 0.002}, {"row": "50 %_x", "mean": None, "sd": None}],
)
GOLDEN = {
    "md": """\
### A & B

| method | ε ≤ 3 |
| --- | --- |
| ours\\|1 | 0.976 ± 0.002 |
| 50 %_x | — |

- &lt;b> is no tag
""",
    "latex": r"""\begin{table}
\centering
\caption{A \& B}
\label{tab:toy}
\begin{tabular}{ll}
\toprule
method & $\varepsilon$ $\leq$ 3 \\
\midrule
ours\textbar{}1 & 0.976 $\pm$ 0.002 \\
50 \%\_x & --- \\
\bottomrule
\end{tabular}
\par\footnotesize \textless{}b\textgreater{} is no tag
\end{table}
""",
    "csv": """\
method,ε ≤ 3,mean (exact),sd (exact)
ours|1,0.976 ± 0.002,0.9761234,0.002
50 %_x,—,,
""",
    "html": """\
<figure id="toy">
<table>
<caption>A &amp; B</caption>
<thead>
<tr><th>method</th><th>ε ≤ 3</th></tr>
</thead>
<tbody>
<tr><td>ours|1</td><td>0.976 ± 0.002</td></tr>
<tr><td>50 %_x</td><td>—</td></tr>
</tbody>
</table>
<ul>
<li>&lt;b&gt; is no tag</li>
</ul>
</figure>
""",
}


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_table_in_every_format(output_format):
    assert FORMATS[output_format](TABLE) == GOLDEN[output_format]


def test_json_is_strict():
    text = to_json({"nan": math.nan, "inf": [-math.inf]})
    assert json.loads(text, parse_constant=pytest.fail) == {"nan": "nan", "inf": ["-inf"]}


def test_a_pipe_gets_whole_lines_without_colour(capsys):
    wide = Table("wide", "wide", ["a" * 150, "b"], [["1", "[red]2[/red]"]])
    print_table(wide, console())
    out = capsys.readouterr().out
    assert "a" * 150 in out
    assert "[red]2[/red]" in out  # text of a table is never markup
    assert "\x1b" not in out


# --- in so many columns -------------------------------------------------------------------------------------------

FIGURES = Table(
    name="figures",
    title="figures",
    columns=["method", "accuracy (fraction)", "σ by Edgeworth (estimate)", "seeds", "status"],
    rows=[
        ["head", "0.9760 ± 0.0021 [0.9734, 0.9786]", "1.388", "5 of 5", "small"],
        ["LoRA, rank 8", "0.9812 ± 0.0009 [0.9801, 0.9823]", "", "4 of 5", "small (partial)"],
    ],
    notes=["a note", "run: privlm sweep task=ewtune privacy.rng=reproducible privacy.epsilon=3 seed=0,1,2,3,4"],
)


def printed(table, columns, monkeypatch, capsys):
    """Lines without the spaces at their ends."""
    monkeypatch.setenv("COLUMNS", str(columns))
    print_table(table, console())
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_a_row_is_a_line_where_there_is_room(monkeypatch, capsys):
    assert printed(FIGURES, 120, monkeypatch, capsys)[2:7] == [
        "",
        " method         accuracy (fraction)                σ by Edgeworth (estimate)   seeds    status",
        f" {'─' * 102}",
        " head           0.9760 ± 0.0021 [0.9734, 0.9786]   1.388                       5 of 5   small",
        " LoRA, rank 8   0.9812 ± 0.0009 [0.9801, 0.9823]                               4 of 5   small (partial)",
    ]


def test_heads_and_long_cells_are_broken_between_words_first(monkeypatch, capsys):
    lines = printed(FIGURES, 80, monkeypatch, capsys)
    assert lines[2:10] == [
        "",
        "                                          σ by",
        "                                          Edgeworth",
        " method         accuracy (fraction)       (estimate)   seeds    status",
        f" {'─' * 78}",
        " head           0.9760 ± 0.0021           1.388        5 of 5   small",
        "                [0.9734, 0.9786]",
        " LoRA, rank 8   0.9812 ± 0.0009                        4 of 5   small (partial)",
    ]


def test_a_head_that_is_broken_takes_no_more_than_its_lines(monkeypatch, capsys):
    lines = printed(FIGURES, 95, monkeypatch, capsys)
    assert " method         accuracy (fraction)                (estimate)   seeds    status" in lines
    assert " head           0.9760 ± 0.0021 [0.9734, 0.9786]   1.388        5 of 5   small" in lines


def test_what_needs_little_is_not_broken_for_what_needs_much(monkeypatch, capsys):
    table = Table("two", "", ["a", "b"], [["a few words more than 20", "and many, many words " * 3]], [])
    assert " a few words more than 20   and many, many words and" in printed(table, 55, monkeypatch, capsys)


def test_a_row_is_a_block_where_its_cells_would_be_slivers(monkeypatch, capsys):
    lines = printed(FIGURES, 60, monkeypatch, capsys)
    assert lines == [
        "",
        "figures",
        "",
        "method                     head",
        "accuracy (fraction)        0.9760 ± 0.0021 [0.9734, 0.9786]",
        "σ by Edgeworth (estimate)  1.388",
        "seeds                      5 of 5",
        "status                     small",
        "",
        "method                     LoRA, rank 8",
        "accuracy (fraction)        0.9812 ± 0.0009 [0.9801, 0.9823]",
        "seeds                      4 of 5",
        "status                     small (partial)",
        "",
        "a note",
        FIGURES.notes[1],  # to be copied
    ]


def test_names_of_runs_stay_whole_beside_their_figures(monkeypatch, capsys):
    run = "tiny-sms_spam-head-dp8-seed0-0f777101"
    table = Table("results", "", ["metric", run, "another"], [["accuracy", "0.8663 [0.8443, 0.8857]", "1"]], [])
    assert printed(table, 59, monkeypatch, capsys)[1:-1] == [
        f"metric{'':33}accuracy",
        f"{run}  0.8663 [0.8443,",
        f"{'':39}0.8857]",
        f"another{'':32}1",
    ]


def test_facts_stay_beside_their_names_however_narrow(monkeypatch, capsys):
    facts = Table("facts", "", ["", ""], [["ledger", "whole up to release 20"], ["digest", "f" * 64]], [])
    lines = printed(facts, 40, monkeypatch, capsys)
    assert " ledger   whole up to release 20" in lines
    assert f" digest   {'f' * 29}" in lines


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 200])
def test_no_line_is_longer_than_there_are_columns_and_no_word_is_lost(columns, monkeypatch, capsys):
    lines = printed(FIGURES, columns, monkeypatch, capsys)
    assert all(len(line) <= columns for line in lines if "privlm sweep" not in line)
    assert {"small", "(partial)", "1.388", "seeds"} <= set(" ".join(lines).split())


@pytest.mark.parametrize("columns", ["", "0", "-3", "wide"])
def test_columns_that_are_no_number_are_none(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    assert line_width() == 400
