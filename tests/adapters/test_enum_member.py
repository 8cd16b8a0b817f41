"""A member that is added to an enum of strings is one like any other, on every Python."""

import copy
import enum
import json
import pickle
import sys

import pytest

from privlm.adapters.enum_member import add_member

pytestmark = pytest.mark.torch_free


class Kind(str, enum.Enum):  # noqa: UP042 - as PeftType is
    FIRST = "FIRST"


ADDED = add_member(Kind, "ADDED")


def test_access_call_equality_hash_and_iteration():
    assert Kind.ADDED is Kind("ADDED") is Kind["ADDED"] is ADDED
    assert (ADDED == "ADDED", hash(ADDED), ADDED.name, ADDED.value) == (True, hash("ADDED"), "ADDED", "ADDED")
    assert list(Kind) == [Kind.FIRST, ADDED]
    assert len(Kind) == 2
    assert {Kind.ADDED: 1}["ADDED"] == 1
    assert isinstance(ADDED, Kind)
    assert repr(ADDED) == "<Kind.ADDED: 'ADDED'>"
    assert Kind.FIRST is Kind("FIRST")


@pytest.mark.skipif(sys.version_info < (3, 12), reason="an enum then knows members alone")
def test_its_value_is_one_of_the_enum_s():
    assert "ADDED" in Kind
    assert "OTHER" not in Kind


def test_copies_pickles_and_json_are_of_the_same_member():
    assert copy.deepcopy(ADDED) is copy.copy(ADDED) is pickle.loads(pickle.dumps(ADDED)) is ADDED
    assert json.dumps({"kind": ADDED}) == '{"kind": "ADDED"}'


def test_a_name_that_is_there_is_left_as_it_is():
    assert add_member(Kind, "ADDED") is ADDED
    assert add_member(Kind, "FIRST") is Kind.FIRST
    assert len(Kind) == 2


def test_other_names_are_still_unknown():
    with pytest.raises(ValueError, match="'OTHER' is not a valid Kind"):
        Kind("OTHER")
    with pytest.raises(AttributeError):
        _ = Kind.OTHER
