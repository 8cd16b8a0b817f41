"""One reader for every kind of file: exact texts, quotes, encodings, and broken files that are named by line."""

import csv
import gzip
import io
import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privlm.data.readers import READERS, read_table
from privlm.errors import UsageError

pytestmark = pytest.mark.torch_free

HARD = [
    "007",
    "NA",
    "",
    " null ",
    "1e5",
    "2020-01-01",
    'a "lone quote',
    "tab\there",
    "two\nlines",
    "cr\r\nlf",
    "\u2028",
]
"""Texts that a reader may take for something else, or split."""

hard_characters = st.sampled_from('ab \t\n\r",;\'\\\u2028\u0085\ufeff\0😀é"')
any_text = st.text(hard_characters | st.characters(codec="utf-8"), max_size=12)
quickly = settings(max_examples=50, deadline=None)
any_rows = st.lists(st.tuples(any_text, any_text), min_size=1, max_size=6)


def read(path, content, **how):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_table(path, **how)


def as_csv(rows, **dialect):
    file = io.StringIO(newline="")
    writer = csv.writer(file, **dialect)
    writer.writerow(["text", "label"])
    writer.writerows(rows)
    return file.getvalue()


def rows_of(table):
    return list(zip(table.columns["text"], table.columns["label"], strict=True))


# --- what was written is read ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("read")


@quickly
@given(rows=any_rows, quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_what_csv_writes_is_read(rows, quoting, folder):
    assert rows_of(read(folder / "a.csv", as_csv(rows, quoting=quoting))) == rows


@quickly
@given(rows=any_rows, quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_what_csv_writes_with_tabs_is_read_as_quoted(rows, quoting, folder):
    content = as_csv(rows, quoting=quoting, delimiter="\t")
    assert rows_of(read(folder / "a.tsv", content, quoting="rfc4180")) == rows


@quickly
@given(rows=any_rows)
def test_a_tsv_in_which_all_is_quoted_is_found_out(rows, folder):
    content = as_csv(rows, quoting=csv.QUOTE_ALL, delimiter="\t")
    assert rows_of(read(folder / "a.tsv", content)) == rows


def test_tabs_and_line_breaks_in_quotes_make_no_rows_of_their_own(folder):
    """Each of these lines has the header's number of tabs."""
    assert rows_of(read(folder / "a.tsv", '"text"\t"label"\n"\t\n"\t""\n')) == [("\t\n", "")]


@quickly
@given(rows=st.lists(st.tuples(any_text, any_text), min_size=1, max_size=6))
def test_fields_without_tab_and_line_break_are_read_verbatim_where_quotes_are_text(rows, folder):
    rows = [tuple(value.translate({9: " ", 10: " ", 13: " "}) + "." for value in row) for row in rows]
    content = "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows)
    assert rows_of(read(folder / "a.tsv", content, quoting="none")) == rows


@quickly
@given(rows=any_rows, ascii_only=st.booleans())
def test_what_json_writes_is_read(rows, ascii_only, folder):
    objects = [{"text": text, "label": label} for text, label in rows]
    lines = "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in objects)
    for name, content in {
        "a.jsonl": lines,
        "lines.json": lines if len(rows) > 1 else json.dumps(objects),
        "a.json": json.dumps(objects, ensure_ascii=ascii_only, indent=1),
        "wrapped.json": json.dumps({"version": 1, "data": objects}),
    }.items():
        assert rows_of(read(folder / name, content)) == rows


@quickly
@given(rows=any_rows)
def test_what_parquet_holds_is_read(rows, folder):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("datasets")
    texts, labels = zip(*rows, strict=True)
    parquet.write_table(pyarrow.table({"text": texts, "label": labels}), folder / "a.parquet")
    assert rows_of(read_table(folder / "a.parquet")) == rows


@pytest.mark.parametrize("ending", [ending for ending in READERS if ending != ".parquet"])
def test_texts_stay_texts_also_when_compressed(ending, tmp_path):
    rows = [(text, "x") for text in HARD]
    lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
    contents = {
        ".csv": as_csv(rows),
        ".tsv": as_csv(rows, delimiter="\t"),
        ".jsonl": "\n".join(lines),
        ".json": f"[{','.join(lines)}]",
    }
    plain = read(tmp_path / f"a{ending}", contents[ending])
    packed = read(tmp_path / f"a{ending}.gz", gzip.compress(contents[ending].encode()))
    assert rows_of(plain) == rows_of(packed) == rows


def test_json_keeps_its_types_and_a_missing_field_is_none(tmp_path):
    table = read(tmp_path / "a.jsonl", '{"text": "a", "label": 1}\n\n{"text": null, "more": [true]}\n')
    assert table.columns == {"text": ["a", None], "label": [1, None], "more": [None, [True]]}
    assert table.where(1) == f"{tmp_path / 'a.jsonl'} line 3"


def saved(tmp_path, **columns):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "positive"])}
    )
    return datasets.Dataset.from_dict(columns, features=features)


def test_class_ids_of_a_saved_folder_become_their_names(tmp_path):
    data = saved(tmp_path, text=["a", "b", "c", "d"], label=[1, 0, -1, None])
    data.save_to_disk(tmp_path / "folder", num_shards=2)
    data.to_parquet(tmp_path / "a.parquet")
    expected = {"text": ["a", "b", "c", "d"], "label": ["positive", "negative", "", ""]}
    assert read_table(tmp_path / "folder").columns == read_table(tmp_path / "a.parquet").columns == expected


# --- quotes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('"lone quote\t1', '"lone quote'),
        ('"wholly quoted, as a person may write"\t1', '"wholly quoted, as a person may write"'),
        ('5" and ""more""\t1', '5" and ""more""'),
        ('"she said ""well"""\t1', 'she said "well"'),
        ('"a\ttab"\t1', "a\ttab"),
        ('"two\nlines"\t1', "two\nlines"),
    ],
)
def test_quotes_of_a_tsv_are_text_unless_they_can_only_be_marks(line, text, tmp_path):
    assert read(tmp_path / "a.tsv", f"text\tlabel\n{line}\nplain\t0\n").columns["text"] == [text, "plain"]


def test_one_lone_quote_makes_all_quotes_of_a_tsv_text(tmp_path):
    table = read(tmp_path / "a.tsv", 'text\tlabel\n"she said ""well"""\t1\n5" nails\t0\n')
    assert table.columns["text"] == ['"she said ""well"""', '5" nails']


def test_lone_quotes_on_two_lines_do_not_swallow_what_is_between(tmp_path):
    table = read(tmp_path / "a.tsv", 'text\tlabel\n"opened\t1\nbetween\t0\nclosed"\t1\n')
    assert table.columns["text"] == ['"opened', "between", 'closed"']


def test_data_quoting_decides_against_what_was_found_out(tmp_path):
    content = 'text\tlabel\n"she said ""well"""\t1\n'
    assert read(tmp_path / "a.tsv", content, quoting="none").columns["text"] == ['"she said ""well"""']
    assert read(tmp_path / "b.tsv", 'text\tlabel\n"a"\t1\n', quoting="rfc4180").columns["text"] == ["a"]
    assert read(tmp_path / "a.csv", 'text,label\n"a,1\n', quoting="none").columns["text"] == ['"a']
    with pytest.raises(UsageError, match=r"data\.quoting: 'some' is not one of none, rfc4180"):
        read(tmp_path / "a.csv", content, quoting="some")


def test_a_file_without_a_known_ending_holds_lines_whose_quotes_are_text(tmp_path):
    table = read(tmp_path / "messages.txt", 'ham\t"a ""b"""\n', header=("label", "text"))
    assert table.columns == {"label": ["ham"], "text": ['"a ""b"""']}


def test_fields_longer_than_the_csv_modules_limit_are_read_and_the_limit_stays(tmp_path):
    limit = csv.field_size_limit()
    assert read(tmp_path / "a.csv", f"text,label\n{'x' * (limit + 1)},1\n").columns["text"] == ["x" * (limit + 1)]
    assert csv.field_size_limit() == limit


def test_semicolons_separate_where_the_header_has_only_them(tmp_path):
    assert read(tmp_path / "a.csv", 'text;label\n"a;b, c";1\n').columns == {"text": ["a;b, c"], "label": ["1"]}
    assert read(tmp_path / "b.csv", "text,a;b\nx,y;z\n").columns == {"text": ["x"], "a;b": ["y;z"]}


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_blank_lines_are_no_rows(name, tmp_path):
    rows = {"a.csv": "text,label\n\nx,1\n\n", "a.tsv": "text\tlabel\n\nx\t1\n\n"}
    table = read(tmp_path / name, rows.get(name, '\n{"text": "x", "label": "1"}\r\n\n'))
    assert table.columns == {"text": ["x"], "label": ["1"]}
    assert "line" in table.where(0)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_blank_line_of_one_column_is_an_empty_text(name, tmp_path):
    assert read(tmp_path / name, "text\na\n\nb\n").columns == {"text": ["a", "", "b"]}


# --- encodings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.json"])
def test_encodings_are_known_by_their_byte_order_mark(name, encoding, tmp_path):
    content = {"a.csv": "text,label\r\né\ufeff😀,1\r\n", "a.tsv": "text\tlabel\r\né\ufeff😀\t1\r\n"}
    table = read(tmp_path / name, content.get(name, '[{"text": "é\ufeff😀", "label": "1"}]').encode(encoding))
    assert table.columns == {"text": ["é\ufeff😀"], "label": ["1"]}


def test_other_encodings_are_read_when_asked_for(tmp_path):
    content = "text,label\nfine,1\nMüller,1\n".encode("latin-1")
    assert read(tmp_path / "a.csv", content, encoding="latin-1").columns["text"] == ["fine", "Müller"]
    with pytest.raises(UsageError, match=r"a\.csv line 3: not UTF-8; name it by data\.encoding, e\.g\. latin-1"):
        read(tmp_path / "a.csv", content)
    with pytest.raises(UsageError, match=r"a\.csv line 3: not ASCII"):
        read(tmp_path / "a.csv", content, encoding="ascii")
    with pytest.raises(UsageError, match=r"line 3: not UTF-16"):
        read(tmp_path / "a.csv", "text,label\nfine,1\n".encode("utf-16") + b"\x00\xd8")
    for name in ("klingon", "base64"):
        with pytest.raises(UsageError, match=rf"data\.encoding: '{name}' is no encoding of text"):
            read(tmp_path / "a.csv", content, encoding=name)


# --- broken files ---------------------------------------------------------------------------------------------------

SECRET = "my secret"

BROKEN = {
    "ragged.csv": (f'text,label\n"two\nlines",1\n{SECRET},1,2\n', "line 4: 3 comma-separated fields instead of 2"),
    "ragged.tsv": (f"text\tlabel\n{SECRET}\n", "line 2: 1 tab-separated fields instead of 2$"),
    "quotes.tsv": (f'text\tlabel\n"a\tb"\t1\n{SECRET}\n', r"line 2: 3 .* data\.quoting=rfc4180 if"),
    "open.csv": (f'text,label\nfine,1\n"{SECRET},1\nmore,0\n', r"line 3: malformed quotes .* data\.quoting=none"),
    "after.csv": (f'text,label\n"{SECRET}"s,1\n', "line 2: malformed quotes"),
    "mac.csv": (f"text,label\r{SECRET},1\r", "line 1: malformed"),
    "twice.csv": (f"{SECRET},label,{SECRET}\na,b,c\n", "line 1: columns 1 and 3 have the same name"),
    "empty.csv": ("", "no examples, the file is empty"),
    "empty.tsv": ("", "no examples, the file is empty"),
    "empty.json": (" ", "no examples, the file is empty"),
    "empty.jsonl": ("\n", "no examples, the file is empty"),
    "cut.json": (f'[{{"text": "{SECRET}"}},\n{{"text": ', r"not JSON \(line 2 column"),
    "cut.jsonl": (f'{{"text": "a"}}\n{{"text": "{SECRET}', r"line 2: not JSON \(column"),
    "list.jsonl": (f'{{"text": "a"}}\n["{SECRET}"]', "line 2: not a JSON object"),
    "list.json": (f'[{{"text": "a"}}, "{SECRET}"]', "row 2: not a JSON object"),
    "map.json": (f'{{"{SECRET}": "ham"}}', "neither a list of JSON objects nor an object that holds one such list"),
    "lists.json": (f'{{"a": [], "b": ["{SECRET}"]}}', "neither a list"),
    "twice.jsonl": (f'{{"text": "a", "text": "{SECRET}"}}', "line 1: two fields of an object have the same name"),
    "deep.json": ("[" * 100_000, "too deeply nested"),
    "long.jsonl": ('{"text": ' + "1" * 5000 + "}", "line 1: a number too long"),
    "a.csv.gz": (gzip.compress(b"text,label\nfine,1\n" * 99)[:-9], "a broken compressed file"),
    "b.csv.gz": (f"text,label\n{SECRET},1\n", "a broken compressed file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_with_its_line_and_without_its_text(name, tmp_path):
    content, message = BROKEN[name]
    with pytest.raises(UsageError, match=message) as error:
        read(tmp_path / name, content)
    assert name in str(error.value)
    assert SECRET not in str(error.value)


def test_broken_parquet_and_saved_folders_are_named(tmp_path):
    pytest.importorskip("datasets")
    with pytest.raises(UsageError, match=r"a\.parquet: not a parquet file"):
        read(tmp_path / "a.parquet", "PAR1 but no more")
    data = saved(tmp_path, text=["a"], label=[1])
    data.save_to_disk(tmp_path / "folder")
    (part,) = (tmp_path / "folder").glob("*.arrow")
    part.write_bytes(b"not arrow")
    with pytest.raises(UsageError, match="folder: not a folder"):
        read_table(tmp_path / "folder")
    with pytest.raises(UsageError, match="not a folder"):
        read_table(tmp_path)


def test_a_missing_column_lists_those_that_are_there(tmp_path):
    for name, content in {"a.csv": "title,Körper\nx,y\n", "a.json": '[{"title": "x", "Körper": "y"}]'}.items():
        with pytest.raises(UsageError, match=r"no column 'text' or body \(data\.text_fields\); .* title, Körper$"):
            read(tmp_path / name, content).column(["text", "body"], "data.text_fields")


@pytest.mark.parametrize("first", ["my secret\tham", "secret\tham", "+49170\tham"])
def test_a_first_line_that_may_be_data_is_not_printed(first, tmp_path):
    table = read(tmp_path / "a.tsv", f"{first}\nanother\tham\n")
    with pytest.raises(UsageError, match=r"line 1: .* does not look like names of columns") as error:
        table.column(["text"], "data.text_fields")
    assert first.split("\t")[0] not in str(error.value)


@pytest.mark.parametrize("value", ["1", "null", "[]", '"\\ud83d"'])
def test_a_value_that_is_no_text_is_named_by_its_line(value, tmp_path):
    table = read(tmp_path / "a.jsonl", f'{{"text": "a"}}\n\n{{"text": {value}}}')
    with pytest.raises(UsageError, match=r"line 3: no text in field 'text' \(data\.text_fields\)"):
        table.texts(["text"], "data.text_fields")


# --- nothing is left behind -----------------------------------------------------------------------------------------

READ_ALL = """
import sys
from pathlib import Path
from privlm.data.readers import read_table
for path in sorted(Path(sys.argv[1]).iterdir()):
    assert "SENTINEL" in str(read_table(path).columns), path
"""


@pytest.mark.medium
def test_reading_leaves_no_private_row_outside_the_data(tmp_path):
    """Every library's cache, temporary files and the folder of the data itself are searched for a text."""
    rows = [("SENTINEL", "positive")]
    data = tmp_path / "data"
    data.mkdir()
    saved(tmp_path, text=["SENTINEL"], label=[1]).save_to_disk(data / "folder")
    saved(tmp_path, text=["SENTINEL"], label=[1]).to_parquet(data / "a.parquet")
    packed = gzip.compress((data / "a.parquet").read_bytes())
    (data / "b.parquet.gz").write_bytes(packed)
    (data / "a.csv").write_text(as_csv(rows))
    (data / "a.csv.gz").write_bytes(gzip.compress(as_csv(rows).encode()))
    (data / "a.tsv").write_text(as_csv(rows, delimiter="\t"))
    (data / "a.json").write_text(json.dumps([{"text": "SENTINEL"}]))
    (data / "a.jsonl").write_text(json.dumps({"text": "SENTINEL"}))
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    places = ("HOME", "HF_HOME", "HF_DATASETS_CACHE", "HF_HUB_CACHE", "XDG_CACHE_HOME", "TMPDIR", "ARROW_HOME")
    for place in places:
        (tmp_path / "caches" / place).mkdir(parents=True)
    environment = os.environ | {place: str(tmp_path / "caches" / place) for place in places}
    subprocess.run([sys.executable, "-c", READ_ALL, str(data)], env=environment, cwd=tmp_path / "caches", check=True)
    written = [path for path in (tmp_path / "caches").rglob("*") if path.is_file()]
    assert not [path for path in written if b"SENTINEL" in path.read_bytes()]
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before
