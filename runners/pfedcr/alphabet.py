"""The characters that a recogniser can read: declared beforehand, never collected from private texts."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from privlm.errors import UsageError

BLANK = 0
"""The class of CTC that stands for no character; those of the characters begin at 1."""

NUM_NAMED = 5  # of many characters that differ


@dataclass(frozen=True)
class Alphabet:
    """symbols: different characters in the order of their classes, which is that of their code points: alphabets that
    hold the same characters are equal, whoever declared them and in which order.
    """

    symbols: str

    @classmethod
    def of(cls, characters: Iterable[str]) -> Alphabet:
        """Raises UsageError for no character at all, and for one that `normalised` would change."""
        symbols = "".join(sorted(set(characters)))
        if not symbols:
            raise UsageError("data.alphabet: there is no character in it")
        changed = [symbol for symbol in symbols if normalised(symbol) != symbol]
        if changed:
            raise UsageError(
                f"data.alphabet: {_named(changed)} never occurs in a normalised text (NFKC, lower case, no blanks): "
                "leave it out"
            )
        return cls(symbols)

    @property
    def num_classes(self) -> int:
        """With the blank."""
        return 1 + len(self.symbols)

    def classes(self, text: str) -> list[int]:
        """Raises KeyError for a character that is not in it."""
        return [self._classes[symbol] for symbol in text]

    def text(self, classes: Iterable[int]) -> str:
        return "".join(self.symbols[number - 1] for number in classes)

    def unknown(self, text: str) -> str:
        """The characters of a text that are not in it."""
        return "".join(symbol for symbol in text if symbol not in self._classes)

    @cached_property
    def _classes(self) -> dict[str, int]:
        return {symbol: number for number, symbol in enumerate(self.symbols, start=1)}


def union(declared: Mapping[str, str]) -> Alphabet:
    """What any of the clients declares: client -> characters."""
    return Alphabet.of("".join(declared.values()))


def require_same(found: Alphabet, wanted: Alphabet, whose: str) -> None:
    """Raises UsageError with the difference. whose: the message begins with it."""
    if found == wanted:
        return
    parts = [
        f"{word} {_named(sorted(set(a) - set(b)))}"
        for word, a, b in (("lacks", wanted.symbols, found.symbols), ("has also", found.symbols, wanted.symbols))
        if set(a) - set(b)
    ]
    raise UsageError(f"{whose} is another alphabet than that of this run: it {' and '.join(parts)}")


def read_alphabet(path: Path) -> str:
    """The characters of a text file, whatever its line ends. Raises UsageError where it cannot be read."""
    try:
        return normalised(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"data.alphabet: {path} cannot be read as UTF-8 text ({type(error).__name__})") from None


def normalised(text: str, simplified: Mapping[str, str] | None = None) -> str:
    """What is compared: compatible forms are one (NFKC: full width is half width), lower case, no blanks, no control or
    format characters.

    simplified: traditional character -> simplified one.
    """
    text = unicodedata.normalize("NFKC", text).lower()
    kept = [symbol for symbol in text if not symbol.isspace() and unicodedata.category(symbol) not in ("Cc", "Cf")]
    return "".join((simplified or {}).get(symbol, symbol) for symbol in kept)


def read_simplified(path: Path) -> dict[str, str]:
    """A table of lines `traditional<TAB>simplified`, one character each. Raises UsageError for another line."""
    table = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        pair = line.split("\t")
        if len(pair) != 2 or any(len(symbol) != 1 for symbol in pair):
            raise UsageError(f"data.simplified: {path}, line {number}: not one character, a tab and one character")
        table[pair[0]] = pair[1]
    return table


def _named(symbols: Iterable[str]) -> str:
    symbols = list(symbols)
    more = f" and {len(symbols) - NUM_NAMED} more" if len(symbols) > NUM_NAMED else ""
    return ", ".join(f"{symbol!r}" for symbol in symbols[:NUM_NAMED]) + more
