"""The plan of a run or of one of its stages, what was spent at its end, and how often that is asked."""

import dataclasses
import json
import math
from types import SimpleNamespace
from typing import Any

import pytest

from privlm.errors import UsageError
from privlm.privacy import accounting
from privlm.privacy.account import account, price_rows
from privlm.privacy.accounting import Segment, accountant
from privlm.privacy.ledger import Ledger, Setting
from privlm.privacy.plan import PrivacyPlan, make_plan
from privlm.report.card import privacy_card
from privlm.results import Result

pytestmark = pytest.mark.torch_free

SIZE = {"dataset_size": 1000, "batch_size": 50, "steps": 40}


def plan_of(*, spent: tuple[Segment, ...] = (), compare: bool = True, **changes: Any) -> PrivacyPlan:
    size = {name: changes.pop(name, value) for name, value in SIZE.items()}
    privacy = {
        "delta": 1e-4, "allow_large_delta": False, "adjacency": "add_remove", "noise_multiplier": None, "epsilon": 3.0,
        "accountant": "pld", "order": 2, "strict": True, "clipping": "flat", "clipping_norm": 1.0,
        "sampling": "poisson", "rng": "reproducible",
    }  # fmt: skip
    return make_plan(SimpleNamespace(**(privacy | changes)), **size, compare=compare, spent=spent)


def carry_out(plan: PrivacyPlan, ledger: Ledger, steps: int | None = None) -> None:
    setting = Setting(plan.sampling_rate, plan.noise_multiplier, plan.clipping_norm, 50.0, plan.unit)
    for step in range(1, 1 + (plan.steps if steps is None else steps)):
        ledger.record(step, setting, f"{id(plan)} {step}")


@pytest.fixture
def queries(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What PLD was asked, answers from memory left out."""
    asked: list[Any] = []
    compute = accountant._pld

    def counted(segments: Any, *rest: Any) -> Any:
        asked.append(segments)
        return compute(segments, *rest)

    monkeypatch.setattr(accountant, "_pld", counted)
    accountant._epsilon.cache_clear()
    return asked


def test_a_run_asks_for_its_certified_epsilon_once(queries: list[Any]) -> None:
    """The search for the noise ends with the certificate of the whole plan; an evaluation asks for its own step."""
    plan, ledger = plan_of(), Ledger()
    in_search = len(queries)
    assert in_search <= 2  # of a search by other means
    account(plan, ledger, steps=0)
    carry_out(plan, ledger)
    halfway = ledger.segments(through_step=20)
    for segments in (halfway, ledger.segments(through_step=40)):
        accounting.epsilon(segments, plan.delta, adjacency=plan.adjacency, discretization=1e-3)
    account(plan, ledger, steps=40)
    assert [sum(part.steps for part in segments) for segments in queries[in_search:]] == [20, 40]


def test_without_a_comparison_only_the_noise_that_is_used_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    compared, alone = plan_of(), plan_of(compare=False)
    assert alone == dataclasses.replace(compared, noise_multipliers={"pld": compared.noise_multiplier})
    assert set(compared.noise_multipliers) == {"pld", "rdp", "gdp", "edgeworth"}
    asked: list[str] = []
    search = accounting.noise_multiplier

    def seen(*, accountant: str, **setting: Any) -> Any:
        asked.append(accountant)
        return search(accountant=accountant, **setting)

    monkeypatch.setattr(accounting, "noise_multiplier", seen)
    for strict, names in ((True, ["edgeworth", "pld"]), (False, ["edgeworth"])):
        asked.clear()
        plan = plan_of(compare=False, accountant="edgeworth", strict=strict)
        assert asked == names
        assert plan.noise_multiplier == plan.noise_multipliers[names[-1]]
        assert bool(plan.warnings) == strict


def test_stages_share_a_budget() -> None:
    spent = (Segment(0.1, 2.0, 30), Segment(0.5, 9.0, 1))
    plan, alone = plan_of(spent=spent, compare=False), plan_of(compare=False)
    assert 3.0 - 1e-3 <= plan.epsilon <= 3.0
    whole = [*spent, Segment(0.05, plan.noise_multiplier, 40)]
    assert plan.epsilon == accounting.epsilon(whole, plan.delta).epsilon
    assert plan.noise_multiplier > alone.noise_multiplier
    assert plan.budget == 3.0
    assert "after 40 steps and the stages before" in plan.describe()
    with pytest.raises(UsageError, match=r"privacy\.epsilon=3: earlier releases have spent [3-9]\.\d+ of it"):
        plan_of(spent=(Segment(0.1, 0.8, 50),))


def test_a_plan_covers_what_is_a_part_of_it() -> None:
    plan = plan_of(spent=(Segment(0.1, 2.0, 30),), noise_multiplier=1.5, epsilon=None)
    step = plan.step
    for segments in ([], [step], [Segment(0.1, 2.0, 30), dataclasses.replace(step, steps=40)], [Segment(0.1, 2.0, 7)]):
        assert plan.covers(segments)
    for segments in ([dataclasses.replace(step, steps=41)], [Segment(0.1, 2.0, 31)], [Segment(0.1, 1.9, 1)]):
        assert not plan.covers(segments)
    same = plan_of(spent=(step,), noise_multiplier=1.5, epsilon=None)
    assert same.covers([dataclasses.replace(step, steps=41)])


def test_the_account_of_one_stage_is_flat() -> None:
    plan, ledger = plan_of(noise_multiplier=1.5, epsilon=None), Ledger()
    carry_out(plan, ledger.of("train"), steps=10)
    told = account({"train": plan}, ledger, steps={"train": 9}, flags=["seeded_noise"])
    assert told == account(plan, ledger, steps=9, flags=["seeded_noise"])
    assert told["epsilon"] == accounting.epsilon([Segment(0.05, 1.5, 10)], 1e-4).epsilon
    assert (told["steps"], told["planned_steps"], told["repeated_releases"]) == (9, 40, 1)
    assert not {"stages", "spent"} & set(told)
    assert price_rows(told) == [
        Result("epsilon", told["epsilon"], "epsilon"),
        Result("epsilon_edgeworth", told["estimates"]["edgeworth"], "epsilon (estimate)"),
        Result("noise_multiplier", 1.5, "clipping norms"),
    ]


def test_the_price_of_a_stage_with_a_budget() -> None:
    plan = plan_of()
    rows = price_rows(json.loads(json.dumps(account(plan, Ledger(), steps=0))))
    by_accountant = [(f"noise_multiplier_{name}", value) for name, value in plan.noise_multipliers.items()]
    assert [(row.metric, row.value, row.unit) for row in rows[2:]] == [
        ("noise_multiplier", plan.noise_multiplier, "clipping norms"),
        *((name, value, "clipping norms") for name, value in by_accountant),
        ("saving_vs_rdp", plan.saving_vs_rdp, "percent"),
    ]


@pytest.fixture(scope="module")
def two_stages() -> dict[str, Any]:
    """privacy.json of a teacher, and a student on more data with what is left of the budget."""
    ledger = Ledger()
    teacher = plan_of(noise_multiplier=2.0, epsilon=None)
    carry_out(teacher, ledger.of("teacher"))
    student = plan_of(spent=tuple(ledger.segments()), dataset_size=2000, batch_size=80, delta="1/2N")
    carry_out(student, ledger.of("student"), steps=41)
    told = account({"teacher": teacher, "student": student}, ledger, steps={"teacher": 40, "student": 40})
    return told | {
        "whole": accounting.epsilon(ledger.segments(), 1e-4),
        "plans": {"teacher": teacher, "student": student},
    }


def test_several_stages_have_one_price_and_facts_of_their_own(two_stages: dict[str, Any]) -> None:
    told, whole, plans = two_stages, two_stages["whole"], two_stages["plans"]
    assert told["delta"] == min(plan.delta for plan in plans.values()) == 1e-4
    assert (told["epsilon"], told["guarantee"], told["certificate"]) == (whole.epsilon, True, whole.to_dict())
    assert told["bounds"]["rdp"] == accounting.epsilon(whole.segments, 1e-4, accountant="rdp").epsilon
    assert told["repeated_releases"] == 1
    assert told["unit"] == "record"
    assert list(told["stages"]) == ["teacher", "student"]
    for name, own in told["stages"].items():
        assert own["noise_multiplier"] == plans[name].noise_multiplier
        assert (own["steps"], own["dataset_size"], own["delta"]) == (40, plans[name].dataset_size, plans[name].delta)
        assert not {"epsilon", "bounds", "estimates", "unit"} & set(own)  # a plan's price is not the run's
        assert not (set(own) - {"delta", "target_epsilon"}) & set(told)


def test_the_rows_of_several_stages_name_them(two_stages: dict[str, Any]) -> None:
    rows = price_rows(two_stages)
    noises = {row.split: row.value for row in rows if row.metric == "noise_multiplier"}
    assert noises == {name: plan.noise_multiplier for name, plan in two_stages["plans"].items()}
    assert [row.metric for row in rows if row.split is None] == ["epsilon", "epsilon_edgeworth"]
    assert {row.split for row in rows if row.metric == "noise_multiplier_rdp"} == {"student"}


def test_the_card_of_several_stages(two_stages: dict[str, Any]) -> None:
    card = privacy_card(two_stages)
    facts = dict(card.facts)
    assert card.headline.endswith("0.0001)-differential privacy per record")
    assert facts["mechanism"] == "dp_sgd"
    assert facts["training examples N of teacher"] == "1,000"
    assert facts["training examples N of student"] == "2,000"
    assert facts["steps T of teacher"] == facts["steps T of student"] == "40"
    assert facts["δ of student"] == "0.00025 (1/N = 0.0005)"
    assert facts["σ was set by of teacher"] == "the user"
    assert not {"steps T", "δ", "noise multiplier σ"} & set(facts)
    assert card.readings[0].guaranteed == two_stages["epsilon"]


@pytest.mark.parametrize("change", [{"adjacency": "zero_out"}, {"order": 1}])
def test_stages_that_no_single_epsilon_describes_are_refused(change: dict[str, Any]) -> None:
    given = {"noise_multiplier": 1.5, "epsilon": None}
    plans = {"teacher": plan_of(**given), "student": plan_of(**given, **change)}
    (name,) = change
    with pytest.raises(UsageError, match=rf"privacy\.{name} differs between the stages"):
        account(plans, Ledger(), steps={"teacher": 0, "student": 0})


@pytest.mark.parametrize(("noise", "why"), [(0.0, "promises"), (1e-7, "promises"), (math.inf, "leaves")])
def test_noise_that_is_none_and_noise_without_end_are_refused(noise: float, why: str) -> None:
    with pytest.raises(UsageError, match=rf"privacy\.noise_multiplier={noise:g} {why} nothing"):
        plan_of(noise_multiplier=noise, epsilon=None)


@pytest.mark.parametrize("given", [{}, {"noise_multiplier": 1.0, "epsilon": None}])
@pytest.mark.parametrize("accountant", ["pld", "gdp", "edgeworth"])
@pytest.mark.parametrize("strict", [True, False])
def test_a_delta_that_the_accountant_cannot_certify_is_refused_with_the_one_that_can(
    given: dict[str, Any], accountant: str, strict: bool
) -> None:
    remedy = r"privacy\.delta = 1e-12 is below 1e-10.*raise privacy\.delta, or take privacy\.accountant=rdp"
    with pytest.raises(UsageError, match=remedy):
        plan_of(delta=1e-12, accountant=accountant, strict=strict, **given)


def test_pld_certifies_the_least_delta_it_can() -> None:
    plan = plan_of(delta=1e-10, noise_multiplier=1.0, epsilon=None)
    assert plan.certifier == "pld"
    assert accounting.epsilon([dataclasses.replace(plan.step, steps=40)], 1e-10).guarantee


def test_below_the_deltas_of_pld_rdp_certifies_plan_and_result() -> None:
    plan, ledger = plan_of(delta=1e-12, accountant="rdp"), Ledger()
    assert 3.0 - 1e-3 <= plan.epsilon <= 3.0
    assert set(plan.noise_multipliers) == {"rdp", "gdp", "edgeworth"}
    assert "by rdp at delta 1e-12" in plan.describe()
    carry_out(plan, ledger)
    told = account(plan, ledger, steps=40)
    assert (told["accountant"], told["guarantee"], told["epsilon"]) == ("rdp", True, plan.epsilon)
    assert told["certificate"]["accountant"] == "rdp"


def test_the_epsilon_that_is_printed_is_not_below_the_certified_one() -> None:
    for noise in (1.0, 1.3, 2.7):
        plan = plan_of(noise_multiplier=noise, epsilon=None)
        assert float(plan.describe().split()[2]) >= plan.epsilon
