"""Adds a member to an enum of strings that is closed: what a library asks of whoever registers a plug-in. No torch."""

from __future__ import annotations

from enum import Enum
from typing import Any


def add_member(enum: type[Enum], name: str) -> Any:
    """`enum.NAME` with the value NAME, as if the class had been written with it; the one there is where it has one.

    Access, call, equality, hash, iteration, pickle and deep copies of such a member are those of any other.

    enum: a subclass of str too, with members.
    """
    if name in enum.__members__:
        return enum[name]
    members: Any = enum
    member = str.__new__(members, name)
    member._name_, member._value_ = name, name
    member.__objclass__ = enum
    member._sort_order_ = len(members._member_names_)
    members._member_names_.append(name)
    members._member_map_[name] = member
    members._value2member_map_[name] = member
    getattr(enum, "_hashable_values_", []).append(name)  # Python 3.13: what `in` looks at
    type.__setattr__(enum, name, member)  # past the enum's own, which lets nobody set a member
    return member
