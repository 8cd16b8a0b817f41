"""Items of the causal suites: prompts as the authors sent them, truths, options, and what broken files say."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from privlm import registry
from privlm.errors import UsageError

registry.runners_dir()  # makes privlm.runners importable in a plain checkout

from privlm.runners.causal import (  # noqa: E402
    arctic,
    crass,
    memorisation,
    neuropathic,
    normality,
    redaction,
    tuebingen,
    vignettes,
)  # fmt: skip
from privlm.runners.causal.items import Item, Question  # noqa: E402
from privlm.runners.causal.sources import EMBEDDED, Sources  # noqa: E402

pytestmark = pytest.mark.torch_free

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
KICIMAN = DATA / "kiciman_causal"
SHIPPED = Sources(None)


def table(name: str) -> list[dict[str, str]]:
    """A CSV file of the authors' repository."""
    path = KICIMAN / name
    if not path.exists():
        pytest.skip("the authors' files are not at hand")
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def recorded(name: str) -> list[dict[str, Any]]:
    path = KICIMAN / "author_outputs" / name
    if not path.exists():
        pytest.skip("the authors' outputs are not at hand")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def prompts(items: Iterator[Item] | tuple[Item, ...]) -> list[str]:
    return [item.question.prompt for item in items]


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A data folder of one's own, to be broken."""
    shutil.copytree(EMBEDDED, tmp_path / "data")
    return tmp_path / "data"


# --- prompts --------------------------------------------------------------------------------------------------------


def test_two_prompts_are_those_sent_but_for_two_corrected_ones() -> None:
    items = tuebingen.load(SHIPPED, "two").items
    sent = [row["prompt"] for row in recorded("tueb_gpt-3.5-turbo_results.jsonl")]
    different = [item for item, prompt in zip(items, sent, strict=True) if item.question.prompt != prompt]
    assert [item.id for item in different] == ["pair0026 <-", "pair0068 <-"]
    assert all(item.earlier[0].prompt in sent for item in different)


def test_single_prompts_are_those_released() -> None:
    released = [row["prompt"].replace("\t", "\n") for row in table("tuebingen/prompts.csv")]
    assert prompts(tuebingen.load(SHIPPED, "single").items) == released
    assert all(prompt.startswith(" ") for prompt in released)


def test_arctic_prompts_are_those_released_and_sent() -> None:
    released = [row["prompt"].replace("\t", "\n") for row in table("arctic/prompts.csv")]
    assert prompts(arctic.load(SHIPPED).items) == released
    sent = [row["prompt"] for row in recorded("arctic_gpt-3.5-turbo_system_results_singleprompt_1.jsonl")]
    assert released == sent


@pytest.mark.parametrize("suffix", ["", "_lab"])
def test_vignettes_are_those_sent(suffix: str) -> None:
    sent = [row["prompt"] for row in recorded(f"ac_gpt-3.5-turbo_system_results{suffix}.jsonl")]
    assert prompts(vignettes.load(SHIPPED, lab=bool(suffix)).items) == sent


def test_crass_prompts_are_those_sent() -> None:
    items = crass.load(SHIPPED).items
    assert prompts(items) == [row["prompt"] for row in recorded("crass_gpt-3.5-turbo_system_results.jsonl")]
    assert Counter(len(item.question.options) for item in items) == {3: 230, 4: 44}


def test_one_side_prompts_are_those_released() -> None:
    released = {(row["prompt"], row["groundtruth"]) for row in table("neuropathic/one_side_prompts.csv")}
    items = neuropathic.load_one_side(SHIPPED).items
    assert len(items) == 950
    assert {(item.question.prompt, item.question.truth) for item in items} == released


def test_graph100_prompts_are_those_sent() -> None:
    items = neuropathic.load_graph100(SHIPPED).items
    assert prompts(items) == [row["prompt"] for row in recorded("neuro100_gpt-3.5-turbo_system_results.jsonl")]
    assert Counter(item.question.truth for item in items) == {"A": 50, "C": 50}


@pytest.mark.parametrize("file", ["prompts.csv", "author_outputs"])
def test_every_neuropathic_prompt_is_a_wording_of_one_link(file: str) -> None:
    if file == "prompts.csv":
        rows = table(f"neuropathic/{file}")
        known = {row["prompt"].replace("\t", "\n"): row["groundtruth"] for row in rows}
    else:
        verdicts = table("author_outputs/neuro_gpt-3.5-turbo_system_results.csv")
        sent = recorded("neuro_gpt-3.5-turbo_system_results.jsonl")
        known = {row["prompt"]: verdict["groundtruth"] for row, verdict in zip(sent, verdicts, strict=True)}
    items = neuropathic.load_pairs(SHIPPED, seed=0).items
    wordings = [{question.prompt: question for question in (item.question, *item.earlier)} for item in items]
    found = [[questions[prompt] for prompt in questions if prompt in known] for questions in wordings]
    assert [len(questions) for questions in found] == [1] * 475
    assert all(known[question.prompt] == question.truth for (question,) in found)


def test_options_of_the_pairs_are_drawn_by_seed() -> None:
    truths = [[item.question.truth for item in neuropathic.load_pairs(SHIPPED, seed).items] for seed in (0, 0, 1)]
    assert truths[0] == truths[1] != truths[2]
    assert 180 < truths[0].count("A") < 295


# --- swapped options ------------------------------------------------------------------------------------------------


SUITES = {
    "two": tuebingen.load(SHIPPED, "two"), "single": tuebingen.load(SHIPPED, "single"),
    "pair": neuropathic.load_pairs(SHIPPED, 0), "one_side": neuropathic.load_one_side(SHIPPED),
    "graph100": neuropathic.load_graph100(SHIPPED), "arctic": arctic.load(SHIPPED), "crass": crass.load(SHIPPED),
    "vignettes": vignettes.load(SHIPPED, lab=False), "vignettes_lab": vignettes.load(SHIPPED, lab=True),
}  # fmt: skip


@pytest.mark.parametrize("name", SUITES)
def test_swapped_options_say_the_same_in_another_order(name: str) -> None:
    for item in SUITES[name].items:
        assert item.swapped is not None
        assert item.swapped.prompt != item.question.prompt
        assert sorted(item.swapped.options) == sorted(item.question.options)
        if name not in ("pair", "arctic"):  # there the options of both are made from the ends of the pair
            assert item.swapped.content(item.swapped.truth) == item.question.content(item.question.truth)
        for letter, option in zip("ABCD", item.swapped.options, strict=False):
            assert f"{letter}. {option}" in item.swapped.prompt or f"{letter}: {option}" in item.swapped.prompt


@pytest.mark.parametrize("name", ["pair", "arctic"])
def test_the_truth_moves_with_its_option(name: str) -> None:
    for item in SUITES[name].items:
        assert item.swapped is not None
        assert item.swapped.content(item.swapped.truth) == item.question.content(item.question.truth)


# --- the other suites -----------------------------------------------------------------------------------------------


def test_pairs_have_their_weights_and_directions() -> None:
    pairs = tuebingen.read_pairs(SHIPPED)
    assert Counter(pair.direction for pair in pairs) == {"->": 78, "<-": 30}
    assert [pair.id for pair in pairs if pair.weight == 0] == [
        f"pair{n}" for n in ("0052", "0053", "0054", "0055", "0071")
    ]


def test_normality_asks_in_two_steps() -> None:
    if not (DATA / "bigbench_causal").exists():
        pytest.skip("BIG-bench is not at hand")
    items = normality.load(Sources(str(DATA))).items
    assert len(items) == 190
    item = items[0]
    assert item.follow_up is not None
    second = item.follow_up(" The CEO starts\n the programme. ")
    assert "Causal event: The CEO starts the programme.\n" in second.prompt
    assert second.truth in ("Normal", "Abnormal")
    assert normality.load(Sources(str(DATA / "bigbench_causal"))).items[0].question == item.question


def test_a_stripped_canary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "causal_judgment.json").write_text(json.dumps({"examples": []}))
    with pytest.raises(UsageError, match="no canary"):
        normality.load(Sources(str(tmp_path)))


def test_memorised_rows_are_read_whole() -> None:
    suite = memorisation.load(SHIPPED)
    assert len(suite.items) == 107
    by_id = {item.id: item.question for item in suite.items}
    read = suite.format.strict
    right = by_id["pair0005"]
    assert read("so: <Answer> abalone |  -> </Answer>", right) == right.truth == "abalone | ->"
    assert read("<Answer>Abalone</Answer>", right) is None
    assert read("<Answer>a | b | -></Answer>", right) is None
    with_bars = by_id["pair0085"]
    assert read("<Answer>http://www.maths.lancs.ac.uk/Software/Oswald/ | -></Answer>", with_bars) == with_bars.truth


def test_redaction_leaves_out_one_word_of_each_prompt() -> None:
    suite = redaction.load(SHIPPED, seed=0)
    assert len(suite.items) == 216
    whole, shorter = suite.items[0::2], suite.items[1::2]
    for before, after in zip(whole, shorter, strict=True):
        missing = Counter(before.question.prompt.split()) - Counter(after.question.prompt.split())
        assert missing.total() == 1
        (word,) = missing
        assert after.part == redaction.VARIABLE or after.part in word.lower() or "<" in word
    assert {item.part for item in shorter} != {item.part for item in redaction.load(SHIPPED, seed=1).items[1::2]}


# --- broken files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("tuebingen/pairmeta.txt", "0018 1 1 2 2 1\n", "0018 1 1 2 2 nan\n", "weight of pair 0018 is 'nan'"),
        ("tuebingen/pairmeta.txt", "0018 1 1 2 2 1\n", "", "no weight for pair0018"),
        ("tuebingen/results.txt", "pair0002", "pair0001", "'pair0001' stands twice"),
        ("tuebingen/prompts.txt", "pair0007, does", "pair0999, does", "pair0999 is no pair"),
        ("tuebingen/results.txt", "GAGurine (from R package MASS),->", "GAGurine,--", "direction of pair0018 is '--'"),
    ],
)
def test_a_broken_table_of_pairs_is_named(copied: Path, name: str, old: str, new: str, message: str) -> None:
    path = copied / "kiciman_causal" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UsageError, match=message):
        tuebingen.load(Sources(str(copied)), "two")


def test_links_of_unknown_nodes_are_listed(copied: Path) -> None:
    path = copied / "kiciman_causal" / "neuropathic" / "data.json"
    graph = json.loads(path.read_text())
    graph["links"] += [{"source": "Elbow", "target": "IBS"}, {"source": "IBS", "target": "Knee"}]
    path.write_text(json.dumps(graph))
    with pytest.raises(UsageError, match="links of unknown nodes: Elbow, Knee"):
        neuropathic.load_pairs(Sources(str(copied)), 0)


def test_a_matrix_of_another_size_is_refused(copied: Path) -> None:
    path = copied / "kiciman_causal" / "arctic" / "ground_truth_adjacency.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UsageError, match="not a 0/1 matrix of 12 x 12"):
        arctic.load(Sources(str(copied)))


def test_a_missing_file_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no file kiciman_causal/crass/prompts.csv or crass/prompts.csv in"):
        crass.load(Sources(str(tmp_path)))
    with pytest.raises(UsageError, match=r"causal_judgment.json does not ship with PrivLM: give data.path=FOLDER"):
        normality.load(SHIPPED)
    with pytest.raises(UsageError, match=r"data\.path: no folder"):
        Sources(str(tmp_path / "absent"))


def test_separators_inside_options_do_no_harm() -> None:
    question = Question("?", "A", ("yes; of course\tnot", "no"))
    assert crass.CRASS.strict("<Answer>yes; of course\tnot</Answer>", question) == "A"
    assert crass.CRASS.strict("<Answer>B: no.</Answer>", question) == "B"
