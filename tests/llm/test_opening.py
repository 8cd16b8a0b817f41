"""Roles of one run: a bill, a budget and a line at the end for each, in one record."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf
from support.llm import ScriptedBackend, ask

from privlm.config import LLMBudget, LocalLLMConfig, ReplayLLMConfig, defaults
from privlm.errors import UsageError
from privlm.llm import BudgetExhausted, LanguageModel, Spent, open_llm
from privlm.llm.record import FILE_NAME, CallRecord

pytestmark = pytest.mark.torch_free


class Run:
    """What open_llm needs of a job."""

    run_hash = "0123456789abcdef"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.stop = SimpleNamespace(signum=0)
        self.said: list[str] = []
        self.notes: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)

    def note(self, *notes: str) -> None:
        self.notes += notes


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path)


def configured(**changes: Any) -> Any:
    return OmegaConf.structured(defaults(LocalLLMConfig, "llm", "tiny", **changes))


def budget(**limits: Any) -> LLMBudget:
    return LLMBudget(**{"calls": None, "tokens": None, "usd": None, "seconds": None} | limits)


def prompts(num: int, of: str = "question") -> list[Any]:
    return [ask(f"{of} {number}") for number in range(num)]


def bills(run: Run, *payers: str) -> list[Spent]:
    record = CallRecord(run.directory / FILE_NAME)
    try:
        return [record.spent(payer) for payer in payers]
    finally:
        record.close()


def test_two_roles_on_one_record_do_not_eat_each_others_budget(run):
    config = configured(budget=budget(calls=3))
    reader, guide = ScriptedBackend(model="reader"), ScriptedBackend(model="guide")
    with (
        open_llm(config, run, role="reader", backend=reader) as reading,
        open_llm(config, run, role="guide", backend=guide) as guiding,
    ):
        guiding.generate(prompts(2))
        assert len(reading.generate(prompts(3))) == 3
        with pytest.raises(BudgetExhausted, match=r"^guide: llm\.budget\.calls=3 is reached$"):
            guiding.generate(prompts(4))
    assert (len(reader.asked), len(guide.asked)) == (3, 3)
    assert [line.partition(",")[0] for line in run.said] == ["guide (guide): 3 calls", "reader (reader): 3 calls"]
    hashed = run.run_hash
    assert [bill.calls for bill in bills(run, hashed, f"{hashed} reader", f"{hashed} guide")] == [0, 3, 3]


def test_what_a_role_has_spent_counts_in_its_next_try(run):
    config = configured(budget=budget(calls=3))
    for num, role in ((2, "reader"), (1, "guide")):
        with open_llm(config, run, role=role, backend=ScriptedBackend(model=role)) as model:
            model.generate(prompts(num))
    again = ScriptedBackend(model="reader")
    with open_llm(config, run, role="reader", backend=again) as model, pytest.raises(BudgetExhausted):
        model.generate(prompts(9))
    assert len(again.asked) == 1


def test_the_bill_of_a_run_without_roles_is_that_of_records_of_before(run):
    record = CallRecord(run.directory / FILE_NAME)
    record.store([], run.run_hash, Spent(calls=2))
    record.close()
    backend = ScriptedBackend()
    config = configured(budget=budget(calls=3))
    reached = pytest.raises(BudgetExhausted, match=r"^llm\.budget\.calls=3 is reached$")
    with open_llm(config, run, backend=backend) as model, reached:
        model.generate(prompts(5))
    assert len(backend.asked) == 1
    assert bills(run, run.run_hash)[0].calls == 3
    assert run.said[0].startswith("scripted: 1 calls")


def test_roles_share_what_one_model_has_answered(run):
    for role, calls in (("reader", 2), ("judge", 0)):
        with open_llm(configured(), run, role=role, backend=ScriptedBackend()) as model:
            model.generate(prompts(2))
            assert model.usage.calls == calls


def test_a_role_is_named_with_the_words_that_chose_its_model(run, tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text('{"prompt": "question 0", "answer": "yes"}\n')
    config = OmegaConf.structured(defaults(ReplayLLMConfig, "llm", "replay", path=str(path)))
    with open_llm(config, run, role="judge") as model:
        model.generate(prompts(1))
        with pytest.raises(UsageError, match=r"^judge \(llm=replay\) cannot score given text"):
            model.require("score", by="the judge")
    with open_llm(config, run) as model:
        model.generate(prompts(1))
    assert [line.partition(": ")[0] for line in run.said] == ["judge (llm=replay)", "llm=replay"]


def test_a_backend_that_was_handed_in_stays_open(run):
    closed = []
    backend = ScriptedBackend()
    backend.close = lambda: closed.append(True)  # type: ignore[method-assign]
    with open_llm(configured(), run, backend=backend) as model:
        assert isinstance(model, LanguageModel)
    assert not closed
