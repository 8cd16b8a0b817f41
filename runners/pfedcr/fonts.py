"""The fonts that lines are rendered with: Debian packages, found by the names of their files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from privlm.errors import UsageError

FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts")


@dataclass(frozen=True)
class Font:
    """file: its name, wherever it lies. index: of the face within a collection. package: of Debian."""

    file: str
    index: int
    package: str


FONTS = {
    "noto_sans": Font("NotoSansCJK-Regular.ttc", 2, "fonts-noto-cjk"),
    "noto_serif_bold": Font("NotoSerifCJK-Bold.ttc", 2, "fonts-noto-cjk"),
    "ukai": Font("ukai.ttc", 0, "fonts-arphic-ukai"),
    "uming": Font("uming.ttc", 0, "fonts-arphic-uming"),
    "wqy_microhei": Font("wqy-microhei.ttc", 0, "fonts-wqy-microhei"),
    "wqy_zenhei": Font("wqy-zenhei.ttc", 0, "fonts-wqy-zenhei"),
}
"""Name -> font. Index 2 of the Noto collections has the Chinese forms of simplified characters."""

NOWHERE = "\U0010ffff"
"""A code point that no font has a glyph for: what is drawn for it is drawn for all that a font lacks."""


def require_fonts(names: Iterable[str], given: Mapping[str, str]) -> dict[str, Path]:
    """Name -> file. given: paths of a user's choice, data.fonts.

    Raises UsageError for a name that is no font's, a path that is not there, or fonts that are not installed, with the
    line that installs them.
    """
    unknown = [name for name in given if name not in FONTS]
    if unknown:
        raise UsageError(f"data.fonts.{unknown[0]}: the fonts are {', '.join(FONTS)}")
    found = {name: Path(given[name]).expanduser() if name in given else find_font(name) for name in names}
    for name, path in found.items():
        if name in given and path is not None and not path.is_file():
            raise UsageError(f"data.fonts.{name}: there is no file {path}")
    missing = [name for name, path in found.items() if path is None]
    if missing:
        raise UsageError(
            f"no Chinese font to render lines with: {', '.join(missing)} not found below {', '.join(FOLDERS[:2])}; "
            f"{install_line(missing)}, or give data.fonts={{{missing[0]}: FILE}}"
        )
    return {name: path for name, path in found.items() if path is not None}


def find_font(name: str) -> Path | None:
    """The file of a font of FONTS, None where it is not installed."""
    return _files().get(FONTS[name].file)


def missing_fonts() -> list[str]:
    """The fonts of FONTS that are not installed."""
    return [name for name in FONTS if find_font(name) is None]


def install_line(names: Iterable[str]) -> str:
    packages = dict.fromkeys(FONTS[name].package for name in names)
    return f"apt-get install --no-install-recommends {' '.join(packages)}"


class Face:
    """A font at a size. Raises UsageError where its file is no font that can be read."""

    def __init__(self, name: str, path: Path, size: int) -> None:
        from PIL import ImageFont

        self.name = name
        try:
            self.font: Any = ImageFont.truetype(str(path), size, index=_index(name, path))
        except OSError as error:
            raise UsageError(f"data.fonts.{name}: {path} is no font that can be read: {error}") from None
        self._known: dict[str, bool] = {}

    def has(self, symbol: str) -> bool:
        """Whether it draws another picture for a character than for what it lacks."""
        if symbol not in self._known:
            self._known[symbol] = self._picture(symbol) != self._picture(NOWHERE)
        return self._known[symbol]

    def has_all(self, text: str) -> bool:
        return all(map(self.has, text))

    def _picture(self, symbol: str) -> tuple[Any, ...]:
        mask = self.font.getmask(symbol, mode="L")
        return mask.size, bytes(mask)


def _index(name: str, path: Path) -> int:
    """A file of a user's own is no collection of ours: its first face is taken."""
    return FONTS[name].index if path.name == FONTS[name].file else 0


@cache
def _files() -> dict[str, Path]:
    wanted = {font.file for font in FONTS.values()}
    folders = [Path(folder).expanduser() for folder in FOLDERS]
    found = [path for folder in folders if folder.is_dir() for path in folder.rglob("*") if path.name in wanted]
    return {path.name: path for path in reversed(found)}
