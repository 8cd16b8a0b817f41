"""What schemas are made of, and the checks of the group llm; those of the other groups are in tests/cli."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
from omegaconf import MISSING, OmegaConf

from privlm.errors import UsageError
from privlm.llm.schema import EndpointLLMConfig, ReplayLLMConfig
from privlm.schema import all_found, defaults, field_at, marked, problems, require_packages, setting

pytestmark = pytest.mark.torch_free


@dataclass
class Inner:
    share: float = setting(above=0, at_most=1, same_cell=True)
    kinds: list[str] = setting(options=("first", "second"))


@dataclass
class Outer:
    count: int | None = setting(at_least=2)
    rates: dict[str, float] = setting(above=0)
    path: str | None = setting(same_run=True)
    inner: Inner = MISSING
    free: Any = MISSING

    def check(self, config):
        return [f"count is {self.count} in {config.name}"] if self.count == 3 else []


def outer(**changes):
    right = {"count": 2, "rates": {}, "path": None, "inner": {"share": 0.5, "kinds": ["first"]}, "free": None}
    return OmegaConf.merge(OmegaConf.structured(Outer), right, changes)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, []),
        ({"count": None, "free": -1}, []),
        ({"count": 1}, ["group.count must be at least 2, not 1"]),
        ({"rates": {"a": 1, "b": 0}}, ["group.rates.b must be greater than 0, not 0.0"]),
        ({"rates": {"a": math.inf}}, ["group.rates.a must be greater than 0, not inf"]),
        ({"inner": {"share": 2}}, ["group.inner.share must be greater than 0 and at most 1, not 2.0"]),
        ({"inner": {"share": math.nan}}, ["group.inner.share must be greater than 0 and at most 1, not nan"]),
        (
            {"inner": {"kinds": ["first", "secnd"]}},
            ["group.inner.kinds: 'secnd' is not one of first, second; did you mean 'second'?"],
        ),
        ({"count": 3}, ["count is 3 in whole"]),
    ],
)
def test_the_rules_of_fields_hold_at_every_depth_and_in_lists_and_mappings(changes, found):
    assert problems(outer(**changes), OmegaConf.create({"name": "whole"}), "group.") == found


def test_the_roles_of_fields_are_found_at_every_depth():
    assert marked(outer(), "same_run") == ["path"]
    assert marked(outer(), "same_cell") == ["inner.share"]


def test_a_field_is_found_by_its_path():
    assert field_at(Outer, ["inner", "kinds"]).options == ("first", "second")
    assert field_at(Outer, ["rates", "any"]).above == 0
    assert field_at(Outer, ["inner", "nothing"]) is None
    assert field_at(Outer, ["count", "nothing"]) is None


SERVER = {"base_url": "http://127.0.0.1:8000/v1", "model": "m"}


def test_what_is_missing_is_told_together():
    def lacks(message):
        def part():
            raise UsageError(message)

        return part

    assert all_found(lambda: {"a": "1"}, lambda: {"b": "2"}) == {"a": "1", "b": "2"}
    with pytest.raises(UsageError, match="no weights\nno data"):
        all_found(lacks("no weights"), lambda: {"a": "1"}, lacks("no data"))


def test_a_missing_package_is_named_with_its_extra():
    require_packages("this test", "pytest", extra="dev")
    with pytest.raises(UsageError, match=r"llm=endpoint needs no-such-package: pip install 'privlm\[llm\]'"):
        require_packages("llm=endpoint", "pytest", "no-such-package", extra="llm")


def endpoint(**changes):
    node = OmegaConf.structured(defaults(EndpointLLMConfig, "llm", "endpoint", **SERVER | changes))
    return problems(node, node, "llm.")


def test_a_server_with_address_and_model_is_enough():
    assert endpoint() == []
    assert endpoint(api="completions", score="echo", price={"input": 1.0, "output": 2.0}, budget={"usd": 5.0}) == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"base_url": None}, "llm.base_url: give the address"),
        ({"model": None}, "llm.model: name the model"),
        ({"base_url": "127.0.0.1:8000"}, "llm.base_url must begin with http"),
        ({"base_url": "http://user:secret@host/v1"}, "llm.base_url holds a name or password"),
        ({"api_key_env": "sk-canary-5f2b"}, "llm.api_key_env must be the name"),
        ({"score": "echo"}, "llm.score=echo needs llm.api=completions"),
        ({"concurrency": 65}, "llm.concurrency must be at least 1 and at most 64, not 65"),
        ({"concurrency": 0}, "llm.concurrency must be at least 1 and at most 64, not 0"),
        ({"retry": {"max_attempts": 0}}, "llm.retry.max_attempts must be greater than 0"),
        ({"timeout": {"read": -1.0}}, "llm.timeout.read must be greater than 0"),
        ({"rpm": 0}, "llm.rpm must be greater than 0"),
        ({"price": {"input": -1.0}}, "llm.price.input must be at least 0, not -1"),
        ({"budget": {"calls": -1}}, "llm.budget.calls must be at least 0, not -1"),
        ({"budget": {"usd": 5.0}}, "llm.budget.usd needs llm.price"),
    ],
)
def test_a_problem_is_named_without_quoting_a_secret(changes, problem):
    (found,) = endpoint(**changes)
    assert found.startswith(problem)
    assert "secret" not in found
    assert "canary" not in found


def test_replay_needs_a_file():
    node = OmegaConf.structured(defaults(ReplayLLMConfig, "llm", "replay"))
    (found,) = problems(node, node, "llm.")
    assert found.startswith("llm.path: name the file")
