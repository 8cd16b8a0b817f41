"""What task pfedcr wants of a machine beside the core, for `privlm doctor`. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator

from privlm import environment

from .fonts import FONTS, install_line, missing_fonts

PACKAGES = {
    "rendered and own lines": ("Pillow",),
    "data=line_lmdb": ("lmdb",),
    "task.outside_reader=rapidocr": ("rapidocr", "onnxruntime"),
}
"""What is wanted -> the distributions that it needs, of the extra `ocr`."""


def needs() -> Iterator[tuple[str, str]]:
    """What there is or is not, and the remedy where something is missing, else nothing."""
    for use, names in PACKAGES.items():
        absent = [name for name in names if environment.package_version(name) is None]
        if absent:
            yield f"{use}: {', '.join(absent)} not installed", "pip install 'privlm[ocr]'"
        else:
            yield f"{use}: {', '.join(f'{name} {environment.package_version(name)}' for name in names)}", ""
    missing = missing_fonts()
    if missing:
        yield f"Chinese fonts: no {', '.join(missing)}", f"scripts/install_fonts.sh, or {install_line(missing)}"
    else:
        yield f"Chinese fonts: {', '.join(FONTS)}", ""
