"""What the four organisations write: made-up addresses, payments, beds and telephones. Names belong to nobody."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np

OWN_SHARE = 0.55
"""Of the lines of an organisation that are of its own kind, where contents are mixed; the others share the rest."""


@dataclass(frozen=True)
class Words:
    """The characters that contents are made of; all are different."""

    surnames: str
    given: str
    cities: str
    districts: str
    roads: str
    departments: str
    fixed: str = "市区路号人民币元科床"
    digits: str = "0123456789"

    @property
    def alphabet(self) -> str:
        return "".join(getattr(self, field.name) for field in fields(self))


WORDS = {
    "small": Words("王李张刘陈杨赵黄", "伟芳娜敏静强磊洋", "京沪津渝", "东西南北", "华山海江", "内外儿眼"),
    "large": Words(
        "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗",
        "伟芳娜敏静强磊洋艳勇军杰娟涛明超秀霞平刚桂英玉兰红鹏飞丽梅燕辉玲建志文斌",
        "京沪津渝苏杭宁汉",
        "东西南北中新丰石安顺",
        "华山海江河湖云松竹桃柳桥福康长春",
        "内外儿眼骨牙心肺脑肾皮产",
    ),
}
"""data.alphabet -> what its contents are made of: 52 characters, and 122."""

Drawn = np.random.Generator


def _one(symbols: str, rng: Drawn) -> str:
    return symbols[int(rng.integers(len(symbols)))]


def _number(words: Words, low: int, high: int, rng: Drawn) -> str:
    return str(int(rng.integers(low, high)))


def _name(words: Words, rng: Drawn) -> str:
    return _one(words.surnames, rng) + "".join(_one(words.given, rng) for _ in range(int(rng.integers(1, 3))))


def _address(words: Words, rng: Drawn) -> str:
    place = f"{_one(words.cities, rng)}市{_one(words.districts, rng)}区{_one(words.roads, rng)}路"
    return f"{place}{_number(words, 1, 1000, rng)}号"


def _payment(words: Words, rng: Drawn) -> str:
    return f"{_name(words, rng)}人民币{_number(words, 10, 100_000, rng)}元"


def _bed(words: Words, rng: Drawn) -> str:
    return f"{_name(words, rng)}{_one(words.departments, rng)}科{_number(words, 1, 100, rng)}床"


def _telephone(words: Words, rng: Drawn) -> str:
    return f"{_name(words, rng)}{_number(words, 1_000_000, 10_000_000, rng)}"


KINDS: dict[str, Callable[[Words, Drawn], str]] = {
    "express": _address,
    "bank": _payment,
    "hospital": _bed,
    "telecom": _telephone,
}
"""Organisation -> how a text of its own kind is made."""


def text_of(organisation: str, words: Words, rng: Drawn, *, mixed: bool) -> str:
    """mixed: it writes what the others do, too."""
    kind = organisation
    if mixed and rng.random() >= OWN_SHARE:
        kind = str(rng.choice([other for other in KINDS if other != organisation]))
    return KINDS[kind](words, rng)
