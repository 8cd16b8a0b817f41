"""Loading of labelled texts: the embedded messages, GLUE's files, the hub's cache, and every kind of bad file."""

import csv
import gzip
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from privlm.cli.schemas import options_of
from privlm.config import DataConfig, defaults
from privlm.data import locate as data_files
from privlm.data.locate import EMBEDDED_SHA256, EMBEDDED_SMS, LOCATORS, locate
from privlm.data.readers import QUOTING
from privlm.data.text_classification import FORMATS, load, marks
from privlm.errors import UsageError

pytestmark = pytest.mark.torch_free

SHARED = Path(__file__).resolve().parents[2] / "../shared/data"


def sms(**changes) -> DataConfig:
    fields = {
        "name": "sms_spam",
        "format": "sms",
        "hub_id": None,
        "hub_config": None,
        "path": None,
        "text_fields": ["text"],
        "label_field": "label",
        "aliases": {},
        "labels": ["ham", "spam"],
        "positive_label": "spam",
        "train_split": "train",
        "eval_splits": ["test"],
        "max_train_examples": None,
        "split_sizes": {},
        "encoding": None,
        "quoting": None,
        "licence": "CC BY 4.0",
        "public_overlap": [],
    }
    return DataConfig(**(fields | changes))


def sst2(**changes) -> DataConfig:
    fields = {
        "name": "sst2",
        "format": "glue",
        "hub_id": "nyu-mll/glue",
        "hub_config": "sst2",
        "text_fields": ["sentence"],
        "labels": ["negative", "positive"],
        "eval_splits": ["dev"],
    }
    return sms(**(fields | changes))


def glue_folder(folder: Path, train: str | bytes, dev: str = "sentence\tlabel\nfine\t1\n") -> str:
    (folder / "train.tsv").write_bytes(train if isinstance(train, bytes) else train.encode())
    (folder / "dev.tsv").write_text(dev)
    return str(folder)


def shared(name: str) -> str:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"no shared data beside the checkout: {name}")
    return str(folder)


def test_embedded_messages_are_deduplicated_and_split_by_hash():
    data = load(sms())
    test = data.evaluation["test"]
    assert (len(data.train), len(test)) == (4131, 1040)
    assert np.bincount(np.concatenate([data.train.labels, test.labels])).tolist() == [5171 - 653, 653]
    assert np.bincount(test.labels)[0] / 1040 == pytest.approx(0.866, abs=5e-4)
    assert not set(data.train.texts[0]) & set(test.texts[0])
    assert data.notes == ("403 repeated messages left out",)


def test_one_more_message_moves_no_other(tmp_path):
    lines = EMBEDDED_SMS.read_text(encoding="utf-8").split("\n")[:50]
    fewer, more = tmp_path / "fewer", tmp_path / "more"
    fewer.write_text("\n".join(lines), encoding="utf-8")
    more.write_text("\n".join(["spam\tan unheard of message", *lines]), encoding="utf-8")
    before, after = load(sms(path=str(fewer))), load(sms(path=str(more)))
    texts = set(after.train.texts[0]) - set(before.train.texts[0])
    texts |= set(after.evaluation["test"].texts[0]) - set(before.evaluation["test"].texts[0])
    assert texts == {"an unheard of message"}


def test_changed_embedded_data_are_refused(tmp_path, monkeypatch):
    changed = tmp_path / "SMSSpamCollection"
    changed.write_bytes(EMBEDDED_SMS.read_bytes().replace(b"ham", b"Ham", 1))
    monkeypatch.setattr(data_files, "EMBEDDED_SMS", changed)
    with pytest.raises(UsageError, match="sha256"):
        locate(sms())


def test_fingerprint_follows_content_not_place(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    same = "sentence\tlabel\ngood\t1\n"
    fingerprints = [
        locate(sst2(path=glue_folder(tmp_path / name, train))).fingerprint
        for name, train in (("a", same), ("b", same), ("c", same + "bad\t0\n"))
    ]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_sst2_counts_and_verbatim_text():
    data = load(sst2(path=shared("glue/SST-2")))
    assert (len(data.train), len(data.evaluation["dev"])) == (67349, 872)
    assert np.bincount(data.train.labels).tolist() == [29780, 37569]
    assert all(text.endswith(" ") for text in data.evaluation["dev"].texts[0])  # as in the hub's copy


def test_hub_and_local_copies_of_sst2_are_equal():
    try:
        hub = load(sst2())
    except UsageError as error:
        pytest.skip(str(error))
    local = load(sst2(path=shared("glue/SST-2")))
    for ours, theirs in ((local.train, hub.train), (local.evaluation["dev"], hub.evaluation["dev"])):
        assert ours.texts == theirs.texts
        assert np.array_equal(ours.labels, theirs.labels)


GLUE_SMALL = {
    "qnli": ("QNLI", {}, [4523, 4476]),
    "qqp": ("QQP", {}, [5747, 3252]),
    "mnli": ("MNLI", {"eval_splits": ["dev"]}, [3061, 2980, 2958]),
}


@pytest.mark.parametrize("name", GLUE_SMALL)
def test_glue_small_by_the_shipped_configs(name):
    folder, changes, counts = GLUE_SMALL[name]
    data = load(defaults(DataConfig, "data", name, path=shared(f"glue_small/{folder}"), **changes))
    assert np.bincount(data.train.labels).tolist() == counts
    assert len(data.evaluation["dev"]) == 1000
    assert len(data.train.texts) == 2
    assert data.is_subset
    assert "subset of" in data.notes[-1]
    assert "train 8,999 of" in data.notes[-1]


def test_labels_are_mapped_by_name_not_by_appearance():
    labels = ["contradiction", "entailment", "neutral"]
    config = defaults(DataConfig, "data", "mnli", path=shared("glue_small/MNLI"), eval_splits=["dev"], labels=labels)
    assert np.bincount(load(config).train.labels).tolist() == [2958, 3061, 2980]


GLUE_TSV = {
    "qnli": ("index\tquestion\tsentence\tlabel\n0\tWho?\tIt was she.\tnot_entailment\n", ("Who?", "It was she."), 1),
    "qqp": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\tWhy \tHow?\t1\n", ("Why ", "How?"), 1),
    "mnli": (
        "index\tgenre\tsentence1\tsentence2\tlabel1\tgold_label\n0\tfiction\tA dog.\tA cat.\tneutral\tcontradiction\n",
        ("A dog.", "A cat."),
        2,
    ),
}


@pytest.mark.parametrize("name", GLUE_TSV)
def test_the_columns_of_glues_own_files_are_known(name, tmp_path):
    content, texts, label = GLUE_TSV[name]
    config = defaults(DataConfig, "data", name, path=str(tmp_path))
    for split in ("train", *config.eval_splits):
        (tmp_path / f"{split}.tsv").write_text(content)
    data = load(config)
    assert (*(column[0] for column in data.train.texts),) == texts
    assert data.train.labels.tolist() == [label]
    assert list(data.evaluation) == config.eval_splits


def test_the_whole_data_set_is_no_subset_and_a_part_of_it_is():
    path = shared("glue/SST-2")
    assert not load(defaults(DataConfig, "data", "sst2", path=path)).is_subset
    part = load(defaults(DataConfig, "data", "sst2", path=path, max_train_examples=4000))
    assert part.notes[-1] == "subset of sst2: train 4,000 of 67,349 examples"


def test_marks():
    config = defaults(DataConfig, "data", "mnli")
    data = load(sms(max_train_examples=100, split_sizes={"train": 4131}))
    assert marks(data, config, ["multi_nli", "squad"]) == ["subset", "public-overlap"]
    assert marks(load(sms()), config, ["squad"]) == []


def test_numeric_names_are_not_mistaken_for_ids(tmp_path):
    path = glue_folder(tmp_path, "sentence\tlabel\na\t1\nb\t2\nc\t2\n", dev="sentence\tlabel\nfine\t2\n")
    assert load(sst2(path=path, labels=["2", "1"])).train.labels.tolist() == [1, 0, 0]


def test_empty_text_quotes_and_line_separators_are_kept(tmp_path):
    path = glue_folder(tmp_path, 'sentence\tlabel\r\n\t0\r\na "lone\u2028quote \t1\r\n')
    assert load(sst2(path=path)).train.texts == (["", 'a "lone\u2028quote '],)


def test_max_train_examples_keeps_the_first_and_says_so():
    data = load(sms(max_train_examples=100))
    assert data.train.texts[0] == load(sms()).train.texts[0][:100]
    assert len(data.evaluation["test"]) == 1040
    assert "first 100 of 4,131" in data.notes[1]


SECRET = "my secret"


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (f"sentence\tlabel\nfine\t1\n{SECRET}\t7\n", r"line 3: field 'label' .*negative, positive"),
        (f"sentence\tlabel\n1\t{SECRET}\n", r"line 2: field 'label'"),
        (
            f"index\tsentence\n0\t{SECRET}\n",
            r"line 1: no column 'label' \(data.label_field\); .* index, sentence",
        ),
        (f"{SECRET}\t1\nfine\t1\n", r"line 1: no column 'sentence' \(data.text_fields\); its first line does not look"),
        (f"sentence\tlabel\n{SECRET}\n", r"line 2: 1 tab-separated fields instead of 2"),
        (f"sentence\tlabel\nfine\t1\n{SECRET}".encode() + b"\xff\t1\n", r"line 3: not UTF-8"),
        ("sentence\tlabel\n", "no examples"),
        ("", "no examples"),
    ],
)
def test_bad_file_is_named_without_its_text(tmp_path, train, message):
    with pytest.raises(UsageError, match=message) as error:
        load(sst2(path=glue_folder(tmp_path, train)))
    assert "train.tsv" in str(error.value)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("line", ['{"sentence": "my secret"', '["my secret"]'])
def test_bad_json_line_is_named_without_its_text(tmp_path, line):
    (tmp_path / "train.jsonl").write_text(json.dumps({"sentence": "a", "label": 1}) + "\n" + line)
    (tmp_path / "dev.jsonl").write_text(json.dumps({"sentence": "a", "label": 1}))
    with pytest.raises(UsageError, match=r"train\.jsonl line 2: not (a )?JSON") as error:
        load(sst2(path=str(tmp_path)))
    assert SECRET not in str(error.value)


def labelled(ending):
    """A training and a dev split of sst2 in a kind of file."""
    rows = [{"sentence": "good, ", "label": "1"}, {"sentence": 'a "bad"\none', "label": "negative"}]
    if ending == ".jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows)
    if ending == ".json":
        return json.dumps({"data": rows})
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, rows[0], delimiter="\t" if ending == ".tsv" else ",")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


@pytest.mark.parametrize("ending", [".tsv", ".csv", ".jsonl", ".json", ".csv.gz"])
@pytest.mark.parametrize("dev", ["dev", "validation"])
def test_a_split_may_be_any_kind_of_file(ending, dev, tmp_path):
    content = labelled(ending.removesuffix(".gz")).encode()
    for name in ("train", dev):
        (tmp_path / f"{name}{ending}").write_bytes(gzip.compress(content) if ending.endswith(".gz") else content)
    data = load(sst2(path=str(tmp_path)))
    for split in (data.train, data.evaluation["dev"]):
        assert split.texts == (["good, ", 'a "bad"\none'],)
        assert split.labels.tolist() == [1, 0]


def test_saved_splits_are_read_and_their_fingerprint_follows_the_content(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["positive", "negative"])}
    )
    fingerprints = []
    for name, texts in (("a", ["good", "bad"]), ("b", ["good", "bad"]), ("c", ["good", "worse"])):
        data = datasets.Dataset.from_dict({"sentence": texts, "label": [0, 1]}, features=features)
        datasets.DatasetDict({"train": data, "validation": data}).save_to_disk(tmp_path / name)
        loaded = load(sst2(path=str(tmp_path / name)))
        assert loaded.train.texts == loaded.evaluation["dev"].texts == (texts,)
        assert loaded.train.labels.tolist() == [1, 0]  # by name, not by the file's ids
        fingerprints.append(loaded.fingerprint)
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_a_broken_saved_split_is_named(tmp_path):
    for name in ("train", "dev"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dataset_info.json").write_text("{}")
        (tmp_path / name / "state.json").write_text("[")
    with pytest.raises(UsageError, match=r"data\.path: .*train cannot be read"):
        locate(sst2(path=str(tmp_path)))


def test_a_collection_of_messages_may_be_a_csv(tmp_path):
    messages = [("spam" if i % 3 else "ham", f'message {i}, "so"') for i in range(40)]
    with (tmp_path / "own.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("label", "text"), *messages])
    lines = "".join(f"{label}\t{text}\n" for label, text in messages)
    (tmp_path / "own.txt").write_text(lines)
    (tmp_path / "own.tsv").write_text(lines)
    csv_file, txt, tsv = (load(sms(path=str(tmp_path / name))) for name in ("own.csv", "own.txt", "own.tsv"))
    assert csv_file.train.texts == txt.train.texts == tsv.train.texts
    assert csv_file.evaluation["test"].labels.tolist() == txt.evaluation["test"].labels.tolist()


def test_one_file_where_splits_are_needed_is_refused(tmp_path):
    (tmp_path / "own.csv").write_text("sentence,label\na,1\n")
    with pytest.raises(UsageError, match=r"own\.csv is one file, .* a folder that holds train\.csv, dev\.csv"):
        locate(sst2(path=str(tmp_path / "own.csv")))


def test_fingerprints_enter_run_hashes_and_stay_what_they_were(tmp_path):
    assert locate(sms()).fingerprint == f"sha256:{EMBEDDED_SHA256[EMBEDDED_SMS.name]}"
    found = locate(sst2(path=glue_folder(tmp_path, "sentence\tlabel\ngood\t1\n"))).fingerprint
    assert found == "sha256:4bf9437515473cf508598019e7b3777c2d9ceb2109452e01df330ef4eb73287b"


def test_the_options_of_the_format_are_its_tables():
    assert tuple(options_of("data.format")) == tuple(sorted(FORMATS)) == tuple(sorted(LOCATORS))
    assert tuple(options_of("data.quoting")) == tuple(sorted(QUOTING))


def test_splits_that_are_there_are_named(tmp_path):
    with pytest.raises(
        UsageError, match=r"no file dev_matched\.tsv .* data\.eval_splits from what is there: dev, train"
    ):
        locate(sst2(path=glue_folder(tmp_path, "sentence\tlabel\n"), eval_splits=["dev_matched"]))


@pytest.mark.parametrize("splits", [[], ["dev", "train"]])
def test_evaluation_never_reads_the_training_split(splits, tmp_path):
    with pytest.raises(UsageError, match=r"data\.eval_splits"):
        load(sst2(path=glue_folder(tmp_path, "sentence\tlabel\n"), eval_splits=splits))


def test_missing_path_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"data\.path: no file train\.tsv"):
        locate(sst2(path=str(tmp_path)))
    with pytest.raises(UsageError, match=r"data\.path: no file .*absent"):
        locate(sms(path=str(tmp_path / "absent")))


def test_offline_without_cache_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match=r"data\.path=FOLDER holding train\.tsv, dev\.tsv, or data=sms_spam"):
        locate(sst2())


def test_hub_cache_gives_the_same_examples_as_the_local_files(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    revision = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "datasets--nyu-mll--glue"
    snapshot = repo / "snapshots" / revision
    (snapshot / "sst2").mkdir(parents=True)
    (snapshot / "README.md").write_text("GLUE")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(revision)
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "positive"])}
    )
    rows = {"sentence": ["good ", "bad "], "label": [1, 0]}
    for split in ("train", "validation"):
        datasets.Dataset.from_dict(rows, features=features).to_parquet(
            snapshot / "sst2" / f"{split}-00000-of-00001.parquet"
        )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    tsv = "sentence\tlabel\ngood \t1\nbad \t0\n"
    cached, local = load(sst2()), load(sst2(path=glue_folder(tmp_path, tsv, dev=tsv)))
    assert cached.fingerprint == f"hub:nyu-mll/glue/sst2@{revision}"
    assert cached.train.texts == local.train.texts
    assert Counter(cached.train.labels.tolist()) == Counter(local.train.labels.tolist())
    assert cached.train.labels.tolist() == [1, 0]
    swapped = load(sst2(labels=["positive", "negative"]))
    assert swapped.train.labels.tolist() == [0, 1]
