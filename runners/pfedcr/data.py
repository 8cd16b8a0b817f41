"""The clients of a run and their lines, with the alphabet that all of them share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from privlm.content import Content, digest_of_rows, is_listed, remembered, source_name
from privlm.errors import UsageError

from .admission import Admission
from .alphabet import Alphabet, normalised, read_alphabet, read_simplified, require_same, union
from .contents import WORDS
from .fonts import require_fonts
from .line import Line
from .readers import Source, sources
from .rendered import client_fonts, mislabelled, render_client

UNION = "union"
"""data.alphabet: what the clients declare together, each in its alphabet.txt."""


@dataclass(frozen=True)
class Client:
    """A holder of lines, which never leave it. name: of the folder, the column's value, or the organisation."""

    name: str
    train: list[Line]
    test: list[Line]


@dataclass(frozen=True)
class Clients:
    """notes: sentences for the results."""

    alphabet: Alphabet
    clients: list[Client]
    notes: list[str] = field(default_factory=list)

    @cached_property
    def train(self) -> list[Line]:
        """Of all clients together: what nobody sees but a central arm."""
        return [line for client in self.clients for line in client.train]

    def __len__(self) -> int:
        return len(self.clients)


def load(config: Any) -> Clients:
    """The lines that a run's `data` and `model` describe.

    Raises UsageError, naming field, file or line, for what cannot be used; what of single lines cannot be used is
    counted, and told in the notes.
    """
    data = config.data
    if not hasattr(data, "on_oov"):
        raise UsageError(f"data: '{data.name}' is data of another kind; task=pfedcr takes text lines: rendered_lines")
    return _rendered(config) if data.source == "rendered" else _own(config)


def content_of(config: Any, fingerprint: str) -> Content:
    """What is behind the name of the data. fingerprint: of the fonts of rendered lines, of the files of own ones."""
    from .config import LinesConfig

    data = config.data

    def read() -> Content:
        clients = load(config).clients
        parts = {"train": [client.train for client in clients], "test": [client.test for client in clients]}
        splits = {name: _digest(name, [line for lines in part for line in lines]) for name, part in parts.items()}
        known = data.source == "rendered" or is_listed(data, fingerprint)
        digest = sha256("".join(splits.values()).encode()).hexdigest()
        return Content(data.name if known else source_name(data.path), digest, known, splits)

    return remembered(LinesConfig, data, f"{fingerprint} {config.model.family} {config.model.height}", read)


def _digest(split: str, lines: Sequence[Line]) -> str:
    return digest_of_rows(split, [[line.where for line in lines], [line.text for line in lines]])


def admission(config: Any, alphabet: Alphabet) -> Admission:
    """The rules of a run, with nothing kept out yet."""
    data, model = config.data, config.model
    table = read_simplified(Path(data.simplified).expanduser()) if data.simplified else {}
    return Admission(alphabet, model.family, model.height, model.max_width, data.on_oov, table)


def _rendered(config: Any) -> Clients:
    data = config.data
    names = list(data.clients)
    paths = require_fonts(client_fonts(names), data.fonts)
    alphabet = Alphabet.of(WORDS[data.alphabet].alphabet)
    clients, notes = [], []
    for name in names:
        rules = admission(config, alphabet)
        train, test = (
            _fitting(render_client(name, split, number, data, paths, config.model.height), rules)
            for split, number in (("train", data.num_train_lines), ("test", data.num_test_lines))
        )
        train = mislabelled(train, data.wrong_labels, alphabet, name, data.seed)
        clients.append(_client(name, train, test))
        notes += rules.notes(name)
    looks = "telecom light on dark" if data.inverted else "all dark on light"
    notes.append(f"rendered lines, contents {data.contents}, {data.difficulty}, {looks}; nobody's data")
    return Clients(alphabet, clients, notes)


def _fitting(lines: Sequence[Line], rules: Admission) -> list[Line]:
    from PIL import Image

    found = (rules.sized(Image.fromarray(line.image), line.text, line.where) for line in lines)
    return [line for line in found if line is not None]


def _own(config: Any) -> Clients:
    data = config.data
    by_name = sources(data)
    alphabet = _declared(data, by_name)
    clients, notes = [], []
    for name, source in by_name.items():
        rules = admission(config, alphabet)
        lines: dict[str, list[Line]] = {"train": [], "test": []}
        for sample in source.read():
            if sample.problem is not None:
                rules.refused[sample.problem].append(sample.where)
                continue
            line = rules.line(sample.content, sample.label, sample.where)
            if line is not None:
                lines[sample.split].append(line)
        notes += rules.notes(name)
        clients.append(_client(name, lines["train"], lines["test"], rules))
    return Clients(alphabet, clients, notes)


def _client(name: str, train: list[Line], test: list[Line], rules: Admission | None = None) -> Client:
    if not train or not test:
        kept_out = "; ".join(rules.notes(name)) if rules else ""
        raise UsageError(
            f"data: client {name} has {len(train)} lines to train and {len(test)} to test on, and needs one of each"
            f"{f' ({kept_out})' if kept_out else ''}: leave it out of data.clients, or see to its lines"
        )
    return Client(name, train, test)


def _declared(data: Any, by_name: Mapping[str, Source]) -> Alphabet:
    """Raises UsageError where a client declares another alphabet than data.alphabet, with the difference."""
    declared = {name: read_alphabet(source.alphabet) for name, source in by_name.items() if source.alphabet}
    if data.alphabet == UNION:
        silent = [name for name in by_name if name not in declared]
        if silent:
            raise UsageError(
                f"data.alphabet=union: client {silent[0]} declares none (alphabet.txt in its folder): give one to "
                "each, or data.alphabet=FILE for all"
            )
        return union(declared)
    text = WORDS[data.alphabet].alphabet if data.alphabet in WORDS else read_alphabet(Path(data.alphabet).expanduser())
    alphabet = Alphabet.of(text)
    if data.on_oov == "extend":
        return Alphabet.of(text + "".join(_characters(data, by_name)))
    for name, characters in declared.items():
        require_same(Alphabet.of(characters), alphabet, f"alphabet.txt of client {name}")
    return alphabet


def _characters(data: Any, by_name: Mapping[str, Source]) -> set[str]:
    """Of all labels: that they are told to all is what data.on_oov=extend means."""
    table = read_simplified(Path(data.simplified).expanduser()) if data.simplified else {}
    labels = (sample.label for source in by_name.values() for sample in source.read())
    return {symbol for label in labels for symbol in normalised(label, table)}
