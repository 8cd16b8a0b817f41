import json
import math

import pytest

from privlm.report.render import FORMATS, console, print_table, to_json
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
