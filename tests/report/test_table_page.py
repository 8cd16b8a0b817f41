import re

import pytest

from privlm.report.html_page import TEMPLATES
from privlm.report.table import Table
from privlm.report.table_page import table_page

pytestmark = pytest.mark.torch_free

ROWS = [
    ["<b>ours</b>", "SST-2", "91.6", "91.1 ± 0.5 [89.9, 92.4]", "3 of 3", "-0.5", "match", "Table 2"],
    ["<b>ours</b>", "QNLI", "not found", "", "0 of 3", "", "not run", ""],
    ["theirs", "SST-2", "90.0", "80.0 ± —", "1 of 3", "-10.0", "differs", "Table 2"],
]
COLUMNS = ["method", "column", "published", "ours", "seeds", "delta", "status", "source"]


def table_of(*statuses, **changes):
    content = {
        "name": "toy", "title": "A & B", "columns": COLUMNS, "rows": ROWS, "notes": ["<i>note</i>"],
        "values": [{"status": status} for status in statuses or ("match", "not run", "differs")],
    }  # fmt: skip
    return Table(**content | changes)


def banners(page):
    return re.findall(r'<p class="banner">(.*)</p>', page)


def test_the_page_is_one_file_in_light_and_dark(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"\x89PNG picture")
    page = table_page(table_of(), tmp_path / "picture.png")
    assert page.startswith("<!doctype html>")
    assert '<img src="data:image/png;base64,iVBORyBwaWN0dXJl"' in page
    assert page.count("prefers-color-scheme: dark") == 2  # of all pages, and of the picture
    assert not re.search(r"http|<script|url\(|@import|<link", page)


def test_without_a_picture_there_is_none():
    assert "<img" not in table_page(table_of(), None)


def test_all_pages_have_one_head():
    for template in TEMPLATES.glob("*.html"):
        text = template.read_text(encoding="utf-8")
        assert ("<!doctype" in text) == (template.name == "base.html")
        assert "--page:" not in text or template.name == "base.html"


def test_names_and_notes_are_escaped():
    page = table_page(table_of(), None)
    assert "<h1>A &amp; B</h1>" in page
    assert "<li>&lt;i&gt;note&lt;/i&gt;" in page
    assert "<b>" not in page


def test_status_words_have_the_colours_of_the_terminal():
    page = table_page(table_of(), None)
    tones = dict(re.findall(r'<td class="tone-(\w+)">\s*([\w ]+?)\s*<', page))
    assert tones == {"good": "match", "quiet": "not run", "warn": "differs"}


def test_rows_of_one_name_share_its_cell_and_figures_stand_above_their_spread():
    page = table_page(table_of(), None)
    assert page.count("&lt;b&gt;ours&lt;/b&gt;") == 1
    assert page.count('rowspan="2"') == 1
    assert re.search(r'class="number">\s*91.1<span class="rest">± 0.5 \[89.9, 92.4\]</span>', page)
    assert re.search(r'class="number">\s*3 of 3\s*<', page)
    assert re.search(r'class="number quiet">\s*not found\s*<', page)


@pytest.mark.parametrize(
    ("statuses", "beginnings"),
    [
        (("match", "not run", "differs"), []),
        (("small", "small, partial", "failed"), ["Small scale"]),
        (("smoke", "smoke, partial", "not run"), ["Smoke run"]),
        (("small, subset", "match", "not run"), ["1 of 2 with a figure: Small scale"]),
    ],
)
def test_figures_of_another_scale_have_a_banner(statuses, beginnings):
    found = banners(table_page(table_of(*statuses), None))
    assert len(found) == len(beginnings)
    assert all(text.startswith(beginning) for text, beginning in zip(found, beginnings, strict=True))


def test_claims_and_commands_stand_apart_from_the_notes():
    claims = [{"claim": "a: b", "verdict": "holds"}, {"claim": "c", "verdict": "not decidable"}]
    notes = [
        "claim: a: b: holds (difference +1)",
        "claim: c: not decidable, 1 shared seeds",
        "note",
        "run: privlm sweep x=1",
    ]
    page = table_page(table_of(claims=claims, notes=notes), None)
    assert '<span class="mark guarantee">holds</span><span>a: b (difference +1)</span>' in page
    assert '<span class="mark open">not decidable</span><span>c, 1 shared seeds</span>' in page
    assert re.findall(r"<li>(.*)", page) == ["note"]
    assert "<pre>privlm sweep x=1</pre>" in page


def test_an_empty_table_has_a_page():
    page = table_page(table_of(rows=[], values=[], notes=[]), None)
    assert "<th" in page
    assert not banners(page)
